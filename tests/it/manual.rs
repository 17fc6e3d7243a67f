//! What the program says of itself for shells, for `man`, and for lawyers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::process::{command, run};
use crate::support::{Scratch, Walvault};

/// Every command that is shown, as `wal push`.
fn commands(of: &clap::Command, prefix: &str) -> Vec<String> {
    let shown = of.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    shown
        .flat_map(|command| {
            let name = format!("{prefix}{}", command.get_name());
            let below = commands(command, &format!("{name} "));
            std::iter::once(name).chain(below)
        })
        .collect()
}

#[test]
fn every_command_has_a_page_that_says_what_its_help_says() {
    let pages = Scratch::new();
    Walvault::bare().run(["man".as_ref(), pages.path().as_os_str()]).expect_ok();
    let definition = ::walvault::cli::definition();
    let mut expected = BTreeSet::from(["walvault.1".to_owned()]);
    expected.extend(commands(&definition, "").iter().map(|name| format!("walvault-{}.1", name.replace(' ', "-"))));
    let written = fs::read_dir(pages.path()).expect("a directory");
    let written: BTreeSet<String> =
        written.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    assert_eq!(written, expected);
    let push = fs::read_to_string(pages.join("walvault-wal-push.1")).expect("a page");
    assert!(push.contains("Archive one WAL file") && push.contains("\\fB\\-\\-cluster\\fR"), "{push}");
    Walvault::bare().run(["man", "/no/such/directory"]).expect_code(1);
}

#[test]
fn every_shell_gets_completions_that_know_every_command() {
    let definition = ::walvault::cli::definition();
    for shell in ["bash", "zsh", "fish"] {
        let script = Walvault::bare().run(["completions", shell]).expect_ok().stdout;
        for name in commands(&definition, "") {
            let last = name.split(' ').next_back().expect("a word");
            assert!(script.contains(last), "{shell} does not know {name}");
        }
    }
    Walvault::bare().run(["completions", "sh"]).expect_code(64);
}

#[test]
fn bash_completes_a_command_and_its_options() {
    let script = Walvault::bare().run(["completions", "bash"]).expect_ok().stdout;
    let place = Scratch::new();
    fs::write(place.join("walvault.bash"), script).expect("a directory of ours");
    let complete = |words: &str| {
        let mut bash = command("/bin/bash");
        bash.args([
            "-euc",
            r#"
            source "$1"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _walvault walvault "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[@]}""#,
        ]);
        bash.arg("bash").arg(place.join("walvault.bash")).arg(words);
        run(bash).expect_ok().stdout.trim().to_owned()
    };
    assert_eq!(complete("walvault inst"), "install");
    assert_eq!(complete("walvault wal pu"), "push");
    assert!(complete("walvault restore --to-").contains("--to-latest"));
}

#[test]
fn every_crate_in_the_program_is_named_with_its_licence() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Not as the server's user: cargo reads the registry of whoever builds.
    let mut notices = Command::new(root.join("packaging/notices.py"));
    notices.arg("x86_64-unknown-linux-gnu").current_dir(root);
    let output = notices.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["tokio 1", "zstd-sys 2", "clap 4", "rustix 1"] {
        assert!(text.contains(&format!("\n| {name}")), "{name} is not among the notices");
    }
    assert!(!text.contains("\n| proptest "), "what only tests use is not in the program");
}
