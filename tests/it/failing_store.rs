//! A busy server whose store fails at random for a while: what was committed is restored to the last row.

use std::time::Duration;

use crate::support::object_server::{Dialect, ObjectServer, Wrong};
use crate::support::site::backup_of;
use crate::support::{Chance, Ledger, Major, Restored, TestServer, Walvault, soaking};

/// What befalls the store, each for a few requests.
fn misfortune(chance: &Chance) -> (&'static str, Wrong) {
    let method = *chance.pick(&["PUT", "PUT", "GET", "HEAD"]);
    let wrong = match chance.below(9) {
        0 => Wrong::Refuse(503, "SlowDown"),
        1 => Wrong::Refuse(500, "InternalError"),
        2 => Wrong::Refuse(403, "AccessDenied"),
        3 => Wrong::LoseReply,
        4 => Wrong::Cut(chance.below(400) as usize),
        5 => Wrong::Inside("InternalError"),
        6 => Wrong::ForeignPage(*chance.pick(&[200, 403, 404, 502])),
        7 => Wrong::Slow(Duration::from_millis(300)),
        _ => Wrong::Hang,
    };
    (method, wrong)
}

fn calls(store: &ObjectServer) -> Walvault {
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AKTEST".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "the secret".to_owned()),
        ("WALVAULT_S3_ENDPOINT", store.url()),
    ];
    let bare = Walvault::bare().repository(store.repository()).cluster("main");
    variables.into_iter().fold(bare, |walvault, (name, value)| walvault.env(name, value))
}

#[test]
fn a_busy_server_loses_no_row_while_its_store_fails_at_random() {
    let (chance, store) = (Chance::new(), ObjectServer::start(Dialect::S3));
    let walvault = calls(&store);
    walvault.run(["init"]).expect_ok();
    let mut server = TestServer::builder(Major::V17)
        .segment_mib(1)
        .archive_command(walvault.archive_command())
        .env("AWS_ACCESS_KEY_ID", "AKTEST")
        .env("AWS_SECRET_ACCESS_KEY", "the secret")
        .env("WALVAULT_S3_ENDPOINT", store.url())
        .create();
    server.start();
    let mut ledger = Ledger::create(&server);
    ledger.commit(&server, 20);
    backup_of(&server, &walvault, &[]).expect_ok();

    // What hangs ends soon, for as long as something may hang; nothing may be under way that hangs for longer, such as the
    // push of the backup's history file.
    server.archive_all();
    let patient = walvault.archive_command();
    server.set_archive_command(&format!("WALVAULT_ATTEMPT_TIMEOUT=1 WALVAULT_PUSH_TIMEOUT=3 {patient}"));
    let failures = || server.query_one("select failed_count from pg_stat_archiver").parse::<u64>().expect("a count");
    let writing = ledger.keep_committing(&server, 3);
    let early = store.objects();
    let (rounds, mut done) = (if soaking() { 600 } else { 12 }, 0);
    // At least one failure must have come through every retry to the server.
    while done < rounds || (failures() == 0 && done < 10 * rounds) {
        let (method, wrong) = misfortune(&chance);
        store.go_wrong(method, "", 1 + chance.below(12), wrong);
        server.switch_wal();
        std::thread::sleep(Duration::from_millis(100 + chance.below(300)));
        done += 1;
    }
    let ledger = writing.stop();
    assert!(failures() > 0, "nothing was felt of {done} misfortunes");
    store.heal();
    // Everything is archived once the store is well, however much waits.
    server.set_archive_command(&patient);
    server.archive_all();

    let late = store.objects();
    let changed: Vec<&String> =
        early.iter().filter(|(key, body)| late.get(*key) != Some(body)).map(|(key, _)| key).collect();
    assert!(changed.is_empty(), "what was stored changed or went away: {changed:?}");

    let target = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&walvault, Major::V17, &target);
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "AKTEST"),
        ("AWS_SECRET_ACCESS_KEY", "the secret"),
        ("WALVAULT_S3_ENDPOINT", &store.url()),
    ] {
        restored.server.set_env(name, value);
    }
    Ledger::expect_rows(restored.promoted(), ledger.last().rows);
}
