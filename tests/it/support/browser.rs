//! Pages as a real browser sees them: Debian's Chromium, without a screen.

use std::fs;
use std::path::Path;

use super::process::{Outcome, command, run};
use super::scratch::Scratch;

const CHROMIUM: &str = "/usr/bin/chromium";

/// A browser that reaches nothing but files.
#[derive(Debug)]
pub struct Browser {
    place: Scratch,
}

impl Browser {
    /// Makes one; each call of it is a process of its own.
    #[track_caller]
    pub fn new() -> Self {
        assert!(Path::new(CHROMIUM).exists(), "{CHROMIUM} is missing: run tests/pg/install.sh test");
        let place = Scratch::new();
        place.create_dir("pages");
        Self { place }
    }

    /// Returns a page's elements once it has been loaded and its scripts have run.
    #[track_caller]
    pub fn dom(&self, page: &str) -> String {
        self.open(page, &["--dump-dom"]).expect_ok().stdout
    }

    /// Returns the page in a window of `width`, and what an expression finds in it; `scheme` is `light` or `dark`.
    ///
    /// The expression sees the page's `window` as `w`. A window of its own is never that narrow, so the page is in a frame.
    #[track_caller]
    pub fn ask(&self, page: &str, width: u32, scheme: &str, expression: &str) -> String {
        let inner = self.put("inner.html", page);
        let frame = format!(
            "<!doctype html><body style=\"margin:0;color-scheme:{scheme}\"><iframe id=f width={width} height=900 \
             style=\"border:0\" src=\"file://{inner}\"></iframe><pre id=answer></pre><script>onload = () => {{ \
             const w = document.getElementById('f').contentWindow; \
             document.getElementById('answer').textContent = String({expression}); }}</script>"
        );
        let colours = if scheme == "dark" {
            "--blink-settings=preferredColorScheme=0"
        } else {
            "--blink-settings=preferredColorScheme=1"
        };
        let dom = self.open(&frame, &["--allow-file-access-from-files", colours, "--dump-dom"]).expect_ok().stdout;
        let answer = dom.split("<pre id=\"answer\">").nth(1).and_then(|rest| rest.split("</pre>").next());
        answer.unwrap_or_else(|| panic!("no answer in\n{dom}")).to_owned()
    }

    fn put(&self, name: &str, page: &str) -> String {
        let file = self.place.join("pages").join(name);
        fs::write(&file, page).expect("a directory of ours");
        file.to_str().expect("plain text").to_owned()
    }

    /// Opens a page. The browser is not what is tested: if it does not come to its end, another one is started.
    #[track_caller]
    fn open(&self, page: &str, arguments: &[&str]) -> Outcome {
        const TRIES: usize = 3;
        let mut outcome = self.try_to_open(page, arguments);
        for _ in 1..TRIES {
            if outcome.code == Some(0) && outcome.stdout.contains("</html>") {
                break;
            }
            outcome = self.try_to_open(page, arguments);
        }
        outcome
    }

    fn try_to_open(&self, page: &str, arguments: &[&str]) -> Outcome {
        let file = self.put("page.html", page);
        // A profile of its own: two at once share nothing.
        let profile = Scratch::new();
        let mut browser = command(CHROMIUM);
        browser
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-extensions"])
            .args(["--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,1000"])
            .arg("--disable-breakpad")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("XDG_CONFIG_HOME", profile.path())
            .env("XDG_CACHE_HOME", profile.path())
            .args(arguments)
            .arg(format!("file://{file}"));
        run(browser)
    }
}
