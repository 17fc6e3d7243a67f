//! The CronJobs as they stand in `deploy/`, run as Kubernetes runs it: an empty read-only root, any user, no file of the
//! server's to be seen.

use std::fs;

use crate::support::address::own_address;
use crate::support::empty_root::EmptyRoot;
use crate::support::manifest::{container, deployed, find, manifest, texts};
use crate::support::object_server::{Dialect, ObjectServer};
use crate::support::{Ledger, Major, Restored, TestServer, Walvault};

#[test]
fn the_cronjobs_take_backups_of_a_server_that_they_cannot_see() {
    let bucket = ObjectServer::start(Dialect::S3);
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AKTEST".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "the secret".to_owned()),
        ("WALVAULT_S3_ENDPOINT", bucket.url()),
    ];
    let walvault = Walvault::bare().repository(bucket.repository()).cluster("main");
    let walvault = variables.iter().fold(walvault, |walvault, (name, value)| walvault.env(name, value));
    walvault.run(["init"]).expect_ok();
    let address = own_address();
    let archive = walvault.archive_command();
    let mut server = TestServer::builder(Major::V17).segment_mib(1).listen(&address).archive_command(archive).create();
    variables.iter().for_each(|(name, value)| server.set_env(name, value));
    server.start();
    let mut ledger = Ledger::create(&server);
    ledger.commit(&server, 100);
    server.sql("create table named as select 1 as one");

    // The right of the role, and the line of the manifests' pg_hba.conf.
    server.sql(&fs::read_to_string(deployed("sql/backup-role.sql")).expect("a file of ours"));
    server.sql("alter role walvault password 'of the secret'");
    let servers = manifest("postgresql-s3.yaml");
    let hba = &find(&servers, "ConfigMap", "postgresql")["data"]["pg_hba.conf"];
    let hba =
        hba.as_str().expect("lines").replace("local all         all                   peer", "local all all trust");
    assert!(hba.contains("replication walvault"), "{hba}");
    fs::write(server.pgdata().join("pg_hba.conf"), &hba).expect("a data directory");
    server.reload();
    server.wait_until("select count(*) from pg_hba_file_rules where error is null", &hba.lines().count().to_string());

    let documents = manifest("backup-cronjob.yaml");
    let mut root = EmptyRoot::new();
    let settings = find(&documents, "ConfigMap", "walvault-backup")["data"].as_object().expect("settings").clone();
    for (name, value) in &settings {
        let value = if name == "PGHOST" { &address } else { value.as_str().expect("a text") };
        root = root.env(name, value);
    }
    for (name, value) in &variables {
        root = root.env(name, value);
    }
    let root = root
        .env("PGPASSWORD", "of the secret")
        .env("WALVAULT_REPO", &bucket.repository())
        .env("WALVAULT_CLUSTER", "main");
    root.hand_over();
    for (job, run) in
        [("walvault-backup-full", "walvault-backup-full-29384760"), ("walvault-backup", "walvault-backup-29386200")]
    {
        let backup = container(find(&documents, "CronJob", job), "backup");
        // The kubelet puts the Job's name in; nobody waits for a test.
        let arguments: Vec<String> = texts(&backup["args"])
            .iter()
            .map(|word| word.replace("$(JOB_NAME)", run))
            .filter(|word| !word.starts_with("--jitter="))
            .chain(["--fast".to_owned(), "--json".to_owned()])
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let taken = root.run("/walvault", &arguments).expect_ok();
        assert_eq!(taken.json()["annotations"]["run"], run, "{}", taken.story());
        assert!(!taken.stderr.contains("warning"), "{}", taken.story());
        let again = root.run("/walvault", &arguments).expect_ok();
        assert_eq!(again.json()["skipped"]["run"], run, "{}", again.story());
    }

    let rows = ledger.commit(&server, 10).rows;
    server.archive_all();
    let options = ["--to-latest", "--as", "clone", "--target-action", "promote"];
    let mut restored = Restored::by(&walvault, Major::V17, &options);
    variables.iter().for_each(|(name, value)| restored.server.set_env(name, value));
    Ledger::expect_rows(restored.promoted(), rows);
}
