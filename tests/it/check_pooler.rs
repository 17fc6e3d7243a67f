//! A pooler between walvault and the server is found, whatever it does with what it is told.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::process::{Running, command};
use crate::support::user::ServerUser;
use crate::support::{Major, Site, TestServer, within};

#[test]
fn pgbouncer_is_found_in_every_mode() {
    let site = Site::of(TestServer::builder(Major::V15).segment_mib(1));
    let data = site.server.pgdata().display().to_string();
    for (mode, ignored) in
        [("session", ""), ("session", "options"), ("transaction", "options"), ("statement", "options")]
    {
        let place = site.server.beside("p");
        let server = site.server.socket_dir();
        let ini = format!(
            "[databases]\npostgres = host={} port=5432 dbname=postgres\n[pgbouncer]\nlisten_addr =\n\
             unix_socket_dir = {}\nlisten_port = 6432\nauth_type = any\npool_mode = {mode}\n\
             ignore_startup_parameters = extra_float_digits,{ignored}\n",
            server.display(),
            place.display(),
        );
        // Any user is taken for the one that is named here.
        let ini = ini.replace("dbname=postgres\n", "dbname=postgres user=postgres\n");
        let file = place.join("pgbouncer.ini");
        fs::write(&file, ini).expect("a directory of ours");
        ServerUser::get().take_over(&file);
        let mut pgbouncer = command("/usr/sbin/pgbouncer");
        pgbouncer.arg(&file);
        let mut running = Running::start(pgbouncer);
        let listens = || UnixStream::connect(place.join(".s.PGSQL.6432")).is_ok();
        within(Duration::from_secs(60), listens, "pgbouncer listens");
        let conninfo = format!("host={} port=6432 user=postgres dbname=postgres", place.display());
        let words = ["check", "--json", "--no-switch", "--pgdata", &data, "--dbname", &conninfo];
        let outcome = site.walvault.run(words);
        let report = outcome.json();
        let finding = report["findings"].as_array().expect("an array").iter().find(|f| f["code"] == "pooler");
        let finding = finding.expect("a finding");
        assert_eq!(finding["level"], "fail", "{mode} {ignored:?}: {}", outcome.story());
        assert!(finding["text"].as_str().is_some_and(|text| text.contains("pooler")), "{}", outcome.story());
        running.kill9();
        drop(fs::remove_file(place.join(".s.PGSQL.6432")));
    }
}
