//! A whole backup with its WAL over encrypted connections, to a server that takes no others.

use std::fs;

use crate::support::address::own_address;
use crate::support::certificates::Certificates;
use crate::support::{Ledger, Major, Site, TestRepo, TestServer, Walvault};

#[test]
fn a_backup_and_its_wal_come_over_encrypted_connections() {
    let address = own_address();
    let certificates = Certificates::new(&address);
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    walvault.run(["init"]).expect_ok();
    let builder = TestServer::builder(Major::V17).segment_mib(1).set("archive_mode", "off").listen(&address);
    let mut server = builder.set("ssl", "on").set("summarize_wal", "on").create();
    certificates.install("server", server.pgdata());
    server.start();
    server.sql("create role backup replication login password 'right-password'");
    let rules = "local all postgres trust\nhostssl replication,all backup all scram-sha-256\n";
    fs::write(server.pgdata().join("pg_hba.conf"), rules).expect("a data directory");
    server.reload();
    server.wait_until("select count(*) from pg_hba_file_rules where error is null", "2");
    let site = Site { server, repo, walvault };
    let server = &site.server;
    let mut ledger = Ledger::create(server);
    let root = certificates.readable("ca.crt");
    let conninfo = |mode: &str| {
        format!(
            "host=db.test hostaddr={address} user=backup password=right-password dbname=postgres connect_timeout=60 \
             keepalives_interval=5 keepalives_count=6 tcp_user_timeout=60000 sslmode={mode}"
        )
    };
    let backup = |conninfo: &str| {
        site.walvault.run(["backup", "--json", "--fast", "--from", "remote", "--with-wal", "--dbname", conninfo])
    };
    let bound = conninfo(&format!("verify-full sslrootcert={root} channel_binding=require"));
    let first = backup(&bound).expect_ok();
    assert!(first.stderr.contains("segments of WAL were streamed into the archive"), "{}", first.story());
    assert!(!first.stderr.contains("warning"), "{}", first.story());
    ledger.commit(server, 200);
    // What changed, in the middle of work; its WAL too.
    let writing = ledger.keep_committing(server, 5);
    server.wait_until("select count(*) > 300 from ledger", "t");
    let second = backup(&bound).expect_ok().json();
    let ledger = writing.stop();
    assert_eq!((&second["parent"], second["changes"]["method"].as_str()), (&first.json()["id"], Some("summaries")));
    server.wait_until("select count(*) from pg_replication_slots", "0");
    // Nothing comes in clear.
    let refused = backup(&conninfo("disable")).expect_code(1);
    assert!(refused.stderr.contains("no pg_hba.conf entry"), "{}", refused.story());
    let stranger = certificates.readable("other.crt");
    let refused = backup(&conninfo(&format!("verify-full sslrootcert={stranger}"))).expect_code(1);
    assert!(refused.stderr.contains("UnknownIssuer"), "{}", refused.story());

    let mut restored = site.restore(&["--to-backup-end", "--as", "clone", "--target-action", "promote"]);
    let rows = Ledger::rows_on(restored.promoted());
    assert!((300..=ledger.last().rows).contains(&rows), "{rows} rows of {}", ledger.last().rows);
    Ledger::expect_rows(&restored.server, rows);
    restored.expect_sound_pages();
}
