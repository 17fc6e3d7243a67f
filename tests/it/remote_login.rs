//! Every way into a server over the replication protocol, and every way not in, in words that say what to do.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use ::walvault::instance::replication::{ReplicationClient, Streamed, WalRequest};
use ::walvault::instance::{ConnectionSettings, LibpqEnvironment};

use crate::support::address::own_address;
use crate::support::certificates::Certificates;
use crate::support::process::{Running, command};
use crate::support::user::ServerUser;
use crate::support::{Major, Scratch, TestServer, Walvault, within};

/// Logs in and asks who the server is; returns the whole error and its hint.
fn enter(conninfo: &str) -> Result<String, (String, Option<&'static str>)> {
    enter_with(conninfo, &LibpqEnvironment::default())
}

fn enter_with(conninfo: &str, environment: &LibpqEnvironment) -> Result<String, (String, Option<&'static str>)> {
    let settings = ConnectionSettings::resolve(Some(conninfo), environment, None);
    let settings = settings.map_err(|error| (::walvault::error::chain(&error).to_string(), None))?;
    let mut client = ReplicationClient::connect(&settings)
        .map_err(|error| (::walvault::error::chain(&error).to_string(), error.hint()))?;
    let identity = client.identify().map_err(|error| (::walvault::error::chain(&error).to_string(), error.hint()))?;
    Ok(identity.system_id.to_string())
}

#[track_caller]
fn expect_in(conninfo: &str) {
    if let Err((problem, _)) = enter(conninfo) {
        panic!("{conninfo}: {problem}");
    }
}

/// Expects these words of the error, and these of its hint.
#[track_caller]
fn expect_out(conninfo: &str, words: &[&str], hint: &str) {
    let (problem, hinted) = enter(conninfo).expect_err(conninfo);
    for word in words {
        assert!(problem.contains(word), "{conninfo}: {word:?} was expected: {problem}");
    }
    assert!(hinted.unwrap_or_default().contains(hint), "{conninfo}: {hint:?} was expected: {hinted:?}");
    assert!(!problem.contains("wrong-password"), "{problem}");
}

/// Expects `backup` to end with this status, and these words in its hint.
#[track_caller]
fn expect_no_backup(conninfo: &str, code: i32, hint: &str) {
    // Who is not let in comes to no repository.
    let walvault = Walvault::bare().repository("file:///nowhere").cluster("main");
    let outcome = walvault.run(["backup", "--from", "remote", "--dbname", conninfo]).expect_code(code);
    let hinted = outcome.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap_or_default();
    assert!(hinted.contains(hint), "{hint:?} was expected\n{}", outcome.story());
    assert!(!outcome.stderr.contains("wrong-password"), "{}", outcome.story());
}

fn hba(server: &TestServer, lines: &str) {
    fs::write(server.pgdata().join("pg_hba.conf"), format!("local all postgres trust\n{lines}\n")).expect("a file");
    server.reload();
    // A reload is over when the rules are those of the file.
    let count = lines.lines().filter(|line| !line.is_empty()).count() + 1;
    server.wait_until("select count(*) from pg_hba_file_rules where error is null", &count.to_string());
}

/// Waiting for log, and ending that from outside, work over an encrypted connection as over any.
#[track_caller]
fn log_streams_and_is_cancelled(server: &TestServer, conninfo: &str) {
    let settings = ConnectionSettings::resolve(Some(conninfo), &LibpqEnvironment::default(), None).expect("settings");
    let mut client = ReplicationClient::connect(&settings).expect("a connection");
    let canceller = client.canceller().expect("the server gave a key");
    let identity = client.identify().expect("an answer");
    let request = WalRequest { slot: None, start: identity.position, timeline: identity.timeline };
    let mut stream = client.stream_wal(&request).expect("a stream");
    let patience = Duration::from_millis(20);
    // All that there is, until nothing comes any more; and then what is new.
    while !matches!(stream.next(patience).expect("no failure"), Streamed::Silence) {}
    server.sql("select pg_switch_wal()");
    let mut bytes_came = || matches!(stream.next(patience).expect("no failure"), Streamed::Log { .. });
    within(Duration::from_secs(60), &mut bytes_came, "new log comes");
    canceller.cancel().expect("the server is there");
    let mut problem = None;
    let ended = || {
        problem = stream.next(patience).err();
        problem.is_some()
    };
    within(Duration::from_secs(60), ended, "the stream is ended");
    let problem = ::walvault::error::chain(&problem.expect("it has just come")).to_string();
    assert!(problem.contains("canceling statement due to user request"), "{problem}");
}

#[test]
fn every_sslmode_and_every_login_gets_in_or_is_refused_in_words() {
    let address = own_address();
    let certificates = Certificates::new(&address);
    let mut server = TestServer::builder(Major::V17).segment_mib(1).listen(&address).create();
    certificates.install("server", server.pgdata());
    for (name, value) in [("ssl", "on"), ("ssl_ca_file", "root.crt")] {
        server.set(name, value);
    }
    server.start();
    server.sql(
        "create role backup replication login password 'right-password'; create role plain login password 'p'; \
         set password_encryption = 'md5'; create role old replication login password 'right-password'",
    );
    hba(
        &server,
        "hostssl replication backup all scram-sha-256\nhostssl all backup all scram-sha-256\n\
         hostnossl replication backup 127.0.0.0/8 scram-sha-256\n\
         host replication old all md5\nhost replication plain all scram-sha-256",
    );
    let at = |rest: &str| format!("host=db.test hostaddr={address} user=backup password=right-password {rest}");
    let root = format!("sslrootcert={}", certificates.at("ca.crt"));
    let stranger = format!("sslrootcert={}", certificates.at("other.crt"));

    for mode in ["disable", "allow", "prefer", "require"] {
        expect_in(&at(&format!("sslmode={mode}")));
    }
    expect_in(&at(&format!("sslmode=verify-ca {root}")));
    expect_in(&at(&format!("sslmode=verify-full {root} channel_binding=require")));
    expect_in(&at(&format!("sslmode=require {root}")));
    expect_in(&at(&format!("sslmode=verify-full {root} sslnegotiation=direct")));
    expect_in(&at("sslmode=require channel_binding=disable"));
    expect_in(&format!("host={address} user=backup password=right-password sslmode=verify-full {root}"));
    expect_in(&format!("hostaddr={address} user=old password=right-password"));

    let encrypt = "compare sslmode and sslrootcert";
    expect_out(&at(&format!("sslmode=verify-ca {stranger}")), &["encrypt the connection", "UnknownIssuer"], encrypt);
    expect_out(&at(&format!("sslmode=require {stranger}")), &["UnknownIssuer"], encrypt);
    let other_name = format!("host=other.test hostaddr={address} user=backup password=right-password sslmode=");
    expect_in(&format!("{other_name}verify-ca {root}"));
    expect_out(&format!("{other_name}verify-full {root}"), &["not valid for name", "other.test"], encrypt);
    expect_out(&at("sslmode=verify-full"), &["no root certificate"], encrypt);
    expect_out(&at("sslmode=verify-full sslrootcert=/nowhere.crt"), &["/nowhere.crt", "No such file"], encrypt);
    expect_out(&at("sslmode=disable channel_binding=require"), &["channel_binding=require was asked for"], "");
    let old = format!("hostaddr={address} user=old password=right-password channel_binding=require sslmode=require");
    expect_out(&old, &["channel_binding=require was asked for"], "");

    let wrong = format!("host=db.test hostaddr={address} user=backup password=wrong-password");
    expect_out(&wrong, &["password authentication failed for user \"backup\""], "PGPASSWORD, PGPASSFILE or ~/.pgpass");
    expect_out(&format!("hostaddr={address} user=backup"), &["asks for a password"], "");
    let nobody = format!("hostaddr={address} user=nobody password=x");
    expect_out(&nobody, &["no pg_hba.conf entry for replication connection"], "add a line for database replication");
    let plain = format!("hostaddr={address} user=plain password=p");
    expect_out(&plain, &["permission denied to start WAL sender"], "alter role … replication");
    expect_out("hostaddr=127.0.0.1 port=1 user=x", &["connect to 127.0.0.1:1", "refused"], "");
    for (conninfo, hint) in [
        (&wrong, "check the user and PGPASSWORD"),
        (&nobody, "add a line for database replication"),
        (&plain, "alter role … replication"),
    ] {
        expect_no_backup(conninfo, 1, hint);
    }

    log_streams_and_is_cancelled(&server, &at("sslmode=require"));

    // Passwords and services come from files too.
    let files = Scratch::new();
    fs::write(files.join("pass"), "db.test:5432:replication:backup:right-password\n").expect("ours");
    let service = format!("[main]\nhost=db.test\nhostaddr={address}\nuser=backup\nsslmode=require\n");
    fs::write(files.join("services"), service).expect("ours");
    let environment = LibpqEnvironment {
        passfile: Some(files.join("pass")),
        service_files: vec![files.join("services")],
        ..Default::default()
    };
    enter_with("service=main", &environment).unwrap_or_else(|(problem, _)| panic!("{problem}"));
    let (problem, _) = enter_with("service=mian", &environment).expect_err("there is none");
    assert!(problem.contains("the service \"mian\" is not in "), "{problem}");

    // A client's certificate instead of a password; a key that others can read is not used.
    hba(&server, "hostssl replication backup all cert");
    let own = format!("sslcert={} sslkey={}", certificates.at("client.crt"), certificates.at("client.key"));
    let key = certificates.at("client.key");
    let mode = |mode| fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("ours");
    mode(0o644);
    expect_out(&at(&format!("sslmode=require {own}")), &["client.key is readable for others"], "");
    mode(0o600);
    expect_in(&at(&format!("sslmode=require {own}")));

    // A password in clear text goes over an encrypted connection only.
    hba(&server, "host replication backup all password");
    expect_out(&at("sslmode=disable"), &["asks for the password in clear text"], "");
    expect_in(&at("sslmode=require"));

    // A certificate that nobody else signed is trusted if it is the very one that was given.
    certificates.install("self", server.pgdata());
    server.reload();
    let own_root = format!("sslmode=verify-ca sslrootcert={}", certificates.at("self.crt"));
    within(Duration::from_secs(60), || enter(&at(&own_root)).is_ok(), "the server has its new certificate");
    expect_out(&at(&format!("sslmode=verify-ca {root}")), &["encrypt the connection"], encrypt);
    server.set("ssl", "off");
    server.reload();
    within(Duration::from_secs(60), || enter(&at("sslmode=require")).is_err(), "the server has no encryption");
    expect_out(&at("sslmode=require"), &["the server has no encryption (ssl is off)"], encrypt);
    expect_out(&at("sslmode=prefer"), &["asks for the password in clear text"], "");
}

#[test]
fn sql_is_encrypted_in_the_same_way() {
    let address = own_address();
    let certificates = Certificates::new(&address);
    let mut server = TestServer::builder(Major::V15).segment_mib(1).listen(&address).create();
    certificates.install("server", server.pgdata());
    server.set("ssl", "on");
    server.start();
    server.sql("create role backup superuser login password 'right-password'");
    hba(&server, "hostssl all backup all scram-sha-256");
    let walvault = Walvault::bare().repository("file:///dev/null").cluster("main");
    let root = certificates.at("ca.crt");
    fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("ours");
    ServerUser::get().take_over(Path::new(&root).parent().expect("a directory"));
    let ask = |rest: &str| {
        let conninfo = format!("host=db.test hostaddr={address} user=backup password=right-password {rest}");
        // No backup: the server has the other role. It is asked by SQL all the same.
        walvault.run(["backup", "--from", "local", "--only-if-role", "standby", "--dbname", &conninfo])
    };
    for rest in
        ["sslmode=require", "sslmode=prefer", "sslmode=allow", &format!("sslmode=verify-full sslrootcert={root}")]
    {
        let outcome = ask(rest).expect_ok();
        assert!(outcome.stderr.contains("no backup taken"), "{rest}: {}", outcome.story());
    }
    let outcome = ask(&format!("sslmode=verify-full sslrootcert={}", certificates.at("other.crt"))).expect_code(1);
    assert!(outcome.stderr.contains("UnknownIssuer"), "{}", outcome.story());
    let outcome = ask("sslmode=disable").expect_code(1);
    assert!(outcome.stderr.contains("no pg_hba.conf entry"), "{}", outcome.story());
}

#[test]
fn a_full_server_a_pooler_and_a_stranger_are_told_apart() {
    let server = TestServer::builder(Major::V15).segment_mib(1).set("max_wal_senders", "1").start();
    let resolved = |conninfo: &str| {
        ConnectionSettings::resolve(Some(conninfo), &LibpqEnvironment::default(), None).expect("settings")
    };
    let held = ReplicationClient::connect(&resolved(&server.conninfo())).expect("the only one");
    expect_out(&server.conninfo(), &["exceeds max_wal_senders (currently 1)"], "raise max_wal_senders");
    expect_no_backup(&server.conninfo(), 1, "raise max_wal_senders");
    drop(held);
    within(Duration::from_secs(60), || enter(&server.conninfo()).is_ok(), "the walsender is gone");

    let place = server.beside("p");
    let ini = format!(
        "[databases]\npostgres = host={} port=5432 dbname=postgres user=postgres\n[pgbouncer]\nlisten_addr =\n\
         unix_socket_dir = {}\nlisten_port = 6432\nauth_type = any\npool_mode = session\n",
        server.socket_dir().display(),
        place.display(),
    );
    let file = place.join("pgbouncer.ini");
    fs::write(&file, ini).expect("a directory of ours");
    ServerUser::get().take_over(&file);
    let mut pgbouncer = command("/usr/sbin/pgbouncer");
    pgbouncer.arg(&file);
    let mut running = Running::start(pgbouncer);
    let listens = || std::os::unix::net::UnixStream::connect(place.join(".s.PGSQL.6432")).is_ok();
    within(Duration::from_secs(60), listens, "pgbouncer listens");
    let pooled = format!("host={} port=6432 user=postgres dbname=postgres", place.display());
    expect_out(&pooled, &["replication"], "connect to the server itself: a pooler");
    expect_no_backup(&pooled, 78, "connect to the server itself: a pooler");
    running.kill9();

    // Something that speaks another protocol, and something that says nothing.
    for (answer, words, patience) in
        [("HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak the replication protocol", 60), ("", "connect to ", 1)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let stranger = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            std::io::Write::write_all(&mut stream, answer.as_bytes()).expect("it listens");
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        expect_out(
            &format!("host=127.0.0.1 port={port} user=x sslmode=disable connect_timeout={patience}"),
            &[words],
            "",
        );
        stranger.join().expect("no panic");
    }
}

#[test]
fn of_several_hosts_the_one_that_was_asked_for_is_taken() {
    let site = crate::support::Site::of(TestServer::builder(Major::V15).segment_mib(1));
    site.backup();
    site.server.archive_all();
    let mut standby = site.restore(&["--as", "standby", "--primary-conninfo", &site.server.conninfo()]);
    standby.server.start();
    let place = Scratch::new();
    let hosts = [place.path().to_owned(), site.server.socket_dir(), standby.server.socket_dir()];
    let hosts = hosts.map(|host| host.display().to_string());
    let chosen = |attrs: &str| {
        let conninfo = format!("host={} user=postgres target_session_attrs={attrs}", hosts.join(","));
        let settings = ConnectionSettings::resolve(Some(&conninfo), &LibpqEnvironment::default(), None);
        let client = ReplicationClient::connect(&settings.expect("settings"));
        client
            .map(|client| client.endpoint().host.clone())
            .map_err(|error| ::walvault::error::chain(&error).to_string())
    };
    let [_, primary, follower] = &hosts;
    for (attrs, expected) in [
        ("any", primary),
        ("primary", primary),
        ("read-write", primary),
        ("standby", follower),
        ("read-only", follower),
        ("prefer-standby", follower),
    ] {
        assert_eq!(chosen(attrs).as_ref(), Ok(expected), "{attrs}");
    }
    standby.server.stop(crate::support::Stop::Fast);
    assert_eq!(chosen("prefer-standby").as_ref(), Ok(primary));
    let problem = chosen("standby").expect_err("there is none");
    assert!(problem.contains("none of the hosts can be used") && problem.contains("is a primary"), "{problem}");
}
