//! What README.md and docs/operations.md show is run as it stands, with only the places changed.

use std::fs;
use std::path::Path;

use ::walvault::cli::exit::{Fault, LEFT_OUT, Role, failure, judged};
use ::walvault::config::KEYS;
use ::walvault::error::ErrorKind;
use ::walvault::instance::RecoveryMode;
use ::walvault::workflow::check::{Code, Level};

use crate::support::process::{Outcome, command, run};
use crate::support::{Major, Stop, TestRepo, TestServer, walvault};

fn text_of(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {document}: {error}"))
}

/// Fenced blocks of a document, each with the comment on the line before it.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    let mut before = "";
    while let Some(line) = lines.next() {
        // Blocks in lists are indented.
        let line = line.trim_start();
        if line.starts_with("```") {
            let block: Vec<&str> = lines.by_ref().map(str::trim_start).take_while(|line| *line != "```").collect();
            let label = before.strip_prefix("<!-- ").and_then(|label| label.strip_suffix(" -->")).unwrap_or_default();
            blocks.push((label.to_owned(), block.join("\n") + "\n"));
        }
        before = line;
    }
    blocks
}

fn block<'a>(blocks: &'a [(String, String)], label: &str) -> &'a str {
    let found = blocks.iter().find(|(found, _)| found == label);
    &found.unwrap_or_else(|| panic!("no block is labelled {label:?}")).1
}

/// The places that the documents name, and those of this test instead.
struct Places(Vec<(&'static str, String)>);

impl Places {
    fn of(repo: &TestRepo, server: &TestServer, restored: &Path) -> Self {
        let path = |path: &Path| path.display().to_string();
        Self(vec![
            ("/usr/bin/walvault", path(walvault::binary())),
            ("/mnt/backup/postgresql", path(&repo.path().join("postgresql"))),
            ("/var/lib/postgresql/17/main", path(server.pgdata())),
            ("/var/lib/postgresql/17/restored", path(restored)),
        ])
    }

    fn put(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (shown, here)| text.replace(shown, here))
    }
}

#[test]
fn the_commands_of_the_readme_bring_a_dropped_table_back() {
    let (operations, blocks) = (blocks(&text_of("docs/operations.md")), blocks(&text_of("README.md")));
    let repo = TestRepo::new();
    let mut server = TestServer::builder(Major::V17).segment_mib(1).create();
    let restored = server.beside("").join("restored");
    let mut places = Places::of(&repo, &server, &restored);
    let settings = server.beside("etc").join("main.toml");
    fs::write(&settings, places.put(block(&blocks, "main.toml"))).expect("a directory of ours");
    let tried = |places: &Places, block: &str| -> Outcome {
        let mut shell = command("/bin/sh");
        // /etc/walvault is not ours to write.
        shell.env("WALVAULT_CONFIG", &settings).env("PGUSER", "postgres");
        shell.args(["-e", "-c", &places.put(block)]);
        run(shell)
    };
    let shell = |places: &Places, block: &str| tried(places, block).expect_ok();

    shell(&places, block(&blocks, "run: init"));
    let configuration = fs::read_to_string(server.pgdata().join("postgresql.conf")).expect("a data directory");
    let lines = places.put(block(&blocks, "postgresql.conf"));
    fs::write(server.pgdata().join("postgresql.conf"), configuration + &lines).expect("a data directory");
    server.set_env("WALVAULT_CONFIG", &settings);
    server.start();
    server.sql("create table accounts as select 42 as balance");
    shell(&places, block(&blocks, "run: backup"));
    server.sql("insert into accounts values (43)");
    let moment = server.query_one("select now()");
    server.sql("drop table accounts");
    server.archive_all();

    // A test's server does without fsync, and its repository lies beside its data.
    let checked = tried(&places, block(&blocks, "run: check")).expect_code(1);
    assert!(checked.stdout.contains("the same bytes"), "{}", checked.story());
    assert!(checked.stdout.ends_with("2 to be mended; 38 ok\n"), "{}", checked.story());
    assert_eq!(block(&operations, "run: check"), block(&blocks, "run: check"));
    assert!(shell(&places, block(&operations, "run: status")).stdout.starts_with("OK: "));
    places.0.push(("2026-11-21 14:30:00+01:00", moment));
    for (looking, expected) in [
        (block(&blocks, "run: look"), "replays"),
        (block(&operations, "run: choices"), "restorable from"),
        (block(&operations, "run: plan"), "replays"),
    ] {
        let shown = shell(&places, looking).stdout;
        assert!(shown.contains(expected), "{shown}");
    }
    server.stop(Stop::Fast);
    shell(&places, block(&blocks, "run: restore"));
    assert_eq!(block(&operations, "run: restore"), block(&blocks, "run: restore"));
    let mut copy = TestServer::over(Major::V17, &restored);
    copy.start();
    copy.wait_until("select pg_get_wal_replay_pause_state()", "paused");
    let rows = "set lock_timeout = '1s'; select string_agg(balance::text, ' ' order by balance) from accounts";
    let locked = copy.psql(rows).expect_err("the dropping transaction holds its lock until it ends");
    assert!(locked.contains("lock timeout"), "{locked}");
    copy.sql("select pg_wal_replay_resume()");
    copy.wait_until_writable();
    assert_eq!(copy.sql(rows), "42 43");
}

#[test]
fn every_block_of_the_documents_is_run_or_says_why_not() {
    let readme: &[&str] =
        &["run: init", "run: backup", "run: check", "run: look", "run: restore", "main.toml", "postgresql.conf"];
    for (document, run) in [
        ("README.md", readme),
        ("docs/operations.md", &["run: check", "run: status", "run: choices", "run: plan", "run: restore"]),
        ("docs/coming-from.md", &[]),
    ] {
        for (label, block) in blocks(&text_of(document)) {
            let is_run = run.contains(&label.as_str()) || label.starts_with("not run: ");
            assert!(is_run, "{label:?} of {document} is not run:\n{block}");
        }
    }
    let makefile = text_of("Makefile");
    for target in ["demo", "test"] {
        assert!(makefile.contains(&format!("\n{target}:")), "the README shows make {target}");
    }
}

/// What a link to a heading ends in, as those who show Markdown make it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn links_of_the_documents_lead_to_files_and_headings() {
    let documents = [
        "README.md",
        "CHANGELOG.md",
        "docs/coming-from.md",
        "docs/decisions.md",
        "docs/format.md",
        "docs/operations.md",
    ];
    for document in documents {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
        let folder = path.parent().expect("a file in a folder");
        let text = text_of(document);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("https://")) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { path.clone() } else { folder.join(file) };
            assert!(file.exists(), "{document} links to {link}");
            if !place.is_empty() {
                let led_to = fs::read_to_string(&file).expect("a document");
                let mut headings = led_to.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|heading| anchor(heading) == place), "{document} links to {link}");
            }
        }
    }
}

const KINDS: [ErrorKind; 10] = [
    ErrorKind::NotFound,
    ErrorKind::Conflict,
    ErrorKind::Denied,
    ErrorKind::Full,
    ErrorKind::Busy,
    ErrorKind::Unavailable,
    ErrorKind::Corrupt,
    ErrorKind::Invalid,
    ErrorKind::Cancelled,
    ErrorKind::Internal,
];

/// Exit codes that a command's row gives to failures: every whole number in it, but for the zero of its second cell.
fn documented(text: &str, row: &str) -> Vec<u8> {
    let line = text.lines().find(|line| line.starts_with(&format!("| {row} |")));
    let cells: Vec<&str> = line.unwrap_or_else(|| panic!("no row {row}")).split(" | ").collect();
    let mut codes: Vec<u8> =
        cells[3..].join(" ").split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
    // The column is called 1.
    if cells[2] != "never" && cells[2] != "proven absent" {
        codes.push(1);
    }
    codes.sort_unstable();
    codes.dedup();
    codes
}

#[test]
fn the_tables_of_exit_codes_give_what_the_commands_answer_and_nothing_more() {
    let mut faults =
        vec![Fault::Usage, Fault::Configuration, Fault::NotThisLane, Fault::WalMissing, Fault::NoPlan, Fault::Panic];
    faults.push(Fault::LeaseHeld);
    faults.extend(KINDS.map(Fault::Failed));
    for document in ["README.md", "docs/operations.md"] {
        let text = text_of(document);
        for (row, role) in [
            ("`wal push`", Role::Push),
            ("`wal fetch`, in recovery", Role::Fetch(RecoveryMode::Archive)),
            ("`wal fetch`, on a standby", Role::Fetch(RecoveryMode::Standby)),
            ("`backup`", Role::Backup),
            ("`plan`, `restore`", Role::Restore),
            ("`check`", Role::Check),
            ("`status`", Role::Status),
            ("others", Role::Other),
        ] {
            let mut answered: Vec<u8> = faults.iter().map(|fault| failure(role, *fault)).collect();
            if matches!(role, Role::Check | Role::Status) {
                answered.extend([Level::Warn, Level::Fail].map(judged));
            }
            if role == Role::Restore {
                // No failure: what was asked for is there, and something was left out.
                answered.push(LEFT_OUT);
            }
            answered.sort_unstable();
            answered.dedup();
            assert_eq!(documented(&text, row), answered, "{row} in {document}");
        }
    }
}

#[test]
fn the_operations_page_lists_every_setting_with_its_default_and_range() {
    let text = text_of("docs/operations.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `WALVAULT_")).collect();
    let expected: Vec<String> = KEYS
        .iter()
        .map(|key| {
            let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
            let range = key.range.map_or_else(|| "text".to_owned(), |(least, most)| format!("{least} to {most}"));
            let environment = format!("WALVAULT_{}", key.name.to_ascii_uppercase());
            format!("| `{environment}` | `{}` | {} | {range} | {} |", key.name, or_none(key.default), key.help)
        })
        .collect();
    assert_eq!(rows, expected, "the table should read:\n{}", expected.join("\n"));
}

#[test]
fn the_operations_page_lists_every_code_of_check_in_order() {
    let text = text_of("docs/operations.md");
    let table = text.split("| code | looks at | warns | fails | mend |").nth(1).expect("the table of codes");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
    let listed: Vec<String> = rows.map(|row| row.splitn(4, " | ").take(2).collect::<Vec<_>>().join(" | ")).collect();
    let known: Vec<String> = Code::ALL.iter().map(|code| format!("| `{code}` | {}", code.about())).collect();
    assert_eq!(listed, known);
}

#[test]
fn every_message_that_the_operations_page_explains_is_one_that_walvault_prints() {
    let mut sources = String::new();
    let mut waiting = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting
                .extend(fs::read_dir(&path).expect("the sources").map(|entry| entry.expect("a listed entry").path()));
        } else {
            sources.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
    let text = text_of("docs/operations.md");
    let table = text.split("| message | meaning, and what to do |").nth(1).expect("the table of messages");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let message = row.split('`').nth(1).expect("a message in backticks");
        let printed = |line: &str| line.contains(message) && !line.trim_start().starts_with("//");
        assert!(sources.lines().any(printed), "walvault prints nothing like {message:?}");
    }
}
