//! What can be asked of a backup besides being one.

use crate::support::process::{command, run};
use crate::support::{Major, Site};

#[test]
fn notes_are_stored_with_the_backup_and_bad_ones_are_refused_before_it() {
    let site = Site::start(Major::V15);
    let notes = ["--annotation", "ticket=OPS-17", "--annotation", "why=before the move = really"];
    let taken = site.try_backup(&notes).expect_ok().json();
    let expected = serde_json::json!({ "ticket": "OPS-17", "why": "before the move = really" });
    assert_eq!(taken["annotations"], expected);
    let list = site.walvault.run(["list", "--json"]).expect_ok().json();
    assert_eq!(list["backups"][0]["annotations"], expected);
    let id = taken["id"].as_str().expect("a name");
    assert_eq!(site.walvault.run(["show", id, "--json"]).expect_ok().json()["annotations"], expected);
    let shown = site.walvault.run(["show", id]).expect_ok().stdout;
    assert!(shown.contains("annotation      why = before the move = really\n"), "{shown}");
    for (note, words) in
        [("alone", "write KEY=VALUE"), ("a b=c", "a key has 1 to 64"), ("a=", "a value has 1 to 1024 bytes")]
    {
        let refused = site.try_backup(&["--annotation", note]).expect_code(64);
        assert!(refused.stderr.contains(words), "{}", refused.story());
    }
    let twice = site.try_backup(&["--annotation", "a=1", "--annotation", "a=2"]).expect_code(64);
    assert!(twice.stderr.contains("given twice"), "{}", twice.story());
    assert_eq!(site.listed().len(), 1);
}

#[test]
fn a_backup_for_another_role_does_nothing_and_says_so() {
    let site = Site::start(Major::V17);
    let standby = {
        site.backup();
        site.server.archive_all();
        let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &site.server.conninfo()]);
        standby.server.start();
        standby
    };
    let before = site.repo.snapshot();
    let ask = |server: &crate::support::TestServer, role: &str, more: &[&str]| {
        let conninfo = server.conninfo();
        let words = ["backup", "--fast", "--dbname", &conninfo, "--only-if-role", role];
        site.walvault.run(words.iter().chain(more))
    };
    let words = "no backup taken: the server is a standby, and --only-if-role asks for a primary";
    let skipped = ask(&standby.server, "primary", &[]).expect_ok();
    assert_eq!((skipped.stdout.as_str(), skipped.stderr.trim_end()), ("", words));
    let skipped = ask(&standby.server, "primary", &["--json"]).expect_ok();
    let expected = serde_json::json!({ "skipped": { "reason": "role", "wanted": "primary", "role": "standby" } });
    assert_eq!((skipped.json(), skipped.stderr.trim_end()), (expected, words));
    let skipped = ask(&site.server, "standby", &["--json"]).expect_ok().json();
    assert_eq!(skipped["skipped"]["role"], "primary");
    ask(&site.server, "replica", &[]).expect_code(64);
    before.expect_unchanged(site.repo.path());
    ask(&site.server, "primary", &[]).expect_ok();
    assert_eq!(site.listed().len(), 2);
}

/// What is read in how much time is tested by arithmetic beside the code; here, that the limit reaches the reading, and
/// that a person sees it move.
#[test]
fn a_limited_backup_shows_its_progress_on_a_terminal_and_takes_its_time() {
    let site = Site::start(Major::V15);
    for rate in ["fast", "10MB", "1KiB"] {
        let refused = site.try_backup(&["--rate-limit", rate]).expect_code(64);
        assert!(refused.stderr.contains("--rate-limit"), "{}", refused.story());
    }
    let words = ["backup", "--fast", "--dbname", &site.server.conninfo(), "--rate-limit", "16MiB"];
    let call = site.walvault.command(words);
    let quoted = std::iter::once(call.get_program()).chain(call.get_args());
    let quoted: Vec<String> = quoted.map(|word| format!("'{}'", word.to_str().expect("plain text"))).collect();
    let mut terminal = command("/usr/bin/script");
    terminal.args(["-q", "-e", "-c", &quoted.join(" "), "/dev/null"]);
    let shown = run(terminal).expect_ok();
    let list = site.walvault.run(["list", "--json"]).expect_ok().json();
    let bytes = list["backups"][0]["bytes"].as_f64().expect("a number");
    // Only the last read may begin at the very end of its budget.
    assert!(shown.elapsed.as_secs_f64() >= bytes / f64::from(16 << 20) - 0.1, "{bytes} bytes\n{}", shown.story());
    assert!(shown.stdout.contains("\rread ") && shown.stdout.contains(" left\x1b[K"), "{}", shown.story());
    assert!(shown.stdout.contains("\r\x1b[Kbackup "), "{}", shown.story());
}
