//! A repository on a disk, of which large files go past the page cache: the real program on a real file system.
//!
//! Other tests keep their repositories in memory, where nothing is written past it. Where no directory on ext4 or XFS is
//! to be had this one writes through memory too, and says so.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use tempfile::TempDir;

use crate::support::process::{command, run};
use crate::support::strace::Point;
use crate::support::user::ServerUser;
use crate::support::{Chance, Major, Snapshot, Stop, TestServer, Walvault, soaking};

/// Types of file systems as statfs(2) tells them: ext2 to ext4, XFS.
const PAST_MEMORY: [u32; 2] = [0xEF53, 0x5846_5342];

/// A directory on a disk, if there is one, of the server's user.
fn on_a_disk() -> (TempDir, bool) {
    // The first one is every user's.
    let places = [PathBuf::from("/var/tmp"), std::env::temp_dir()];
    let kind = |place: &PathBuf| statfs(place).map(|found| found.f_type as u32);
    let found = places.iter().find(|place| kind(place).is_ok_and(|kind| PAST_MEMORY.contains(&kind)));
    let directory = TempDir::with_prefix_in("wv-", found.unwrap_or(&places[0])).expect("a new directory");
    ServerUser::get().take_over(directory.path());
    (directory, found.is_some())
}

fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    let mut cp = command("/usr/bin/cp");
    cp.arg("-a").arg(from).arg(to);
    run(cp).expect_ok();
}

#[test]
fn a_push_past_memory_that_is_struck_stores_the_segment_or_says_that_it_did_not() {
    let mut server = TestServer::builder(Major::V17).segment_mib(1).start();
    server.switch_wal();
    // Half of it is left when it is compressed: more than is written through memory.
    let noise = "string_agg(md5(n::text), '')) from generate_series(1, 28000) n";
    server.sql(&format!("select pg_logical_emit_message(false, 'noise', {noise}"));
    let segment = server.switch_wal();
    server.stop(Stop::Immediate);
    let bytes = fs::read(server.pgdata().join("pg_wal").join(&segment)).expect("the server wrote it");
    let (disk, is_known) = on_a_disk();
    let (fresh, repo) = (disk.path().join("fresh"), disk.path().join("repo"));
    let on = |root: &Path| {
        let calls = Walvault::bare().repository(format!("file://{}", root.display())).cluster("main");
        calls.in_directory(server.pgdata()).env("WALVAULT_CPUS", "1").env("WALVAULT_HOLE_TIMEOUT", "0")
    };
    on(&fresh).run(["init"]).expect_ok();
    let push = || on(&repo).env("WALVAULT_PUSH_TIMEOUT", "5").command(["wal", "push", &format!("pg_wal/{segment}")]);
    let served = || {
        let wanted = server.pgdata().join("pg_wal/RECOVERYXLOG");
        drop(fs::remove_file(&wanted));
        let fetch = on(&repo).run(["wal", "fetch", &segment, "pg_wal/RECOVERYXLOG"]);
        assert!(!fetch.is_ok() || fs::read(&wanted).is_ok_and(|served| served == bytes), "{}", fetch.story());
        fetch.is_ok()
    };

    copy(&fresh, &repo);
    let log = disk.path().join("log");
    let mut traced = command("/usr/bin/strace");
    traced.args(["-f", "-qq", "-y", "-e", "trace=fcntl,fsync,?link,linkat", "-o"]).arg(&log).arg("--");
    traced.arg(push().get_program()).args(push().get_args()).current_dir(server.pgdata());
    traced.env("WALVAULT_PUSH_TIMEOUT", "60");
    run(traced).expect_ok();
    let text = fs::read_to_string(&log).expect("strace wrote it");
    let name = format!("{segment}.zst#");
    let steps: Vec<&str> = text.lines().filter(|line| line.contains(&name)).collect();
    let step = |words: &str| steps.iter().position(|line| line.contains(words));
    let past = step("O_DIRECT");
    assert_eq!(past.is_some(), is_known, "on {:?}:\n{text}", disk.path());
    assert!(past < step("fsync(") && step("fsync(").is_some() && step("fsync(") < step("link"), "{steps:#?}");
    assert!(served());

    copy(&fresh, &repo);
    let before = Snapshot::of(&fresh);
    let (mut points, mut felt) = (Point::all_of(&push()), 0);
    points.retain(Point::writes);
    let chance = Chance::new();
    while !points.is_empty() && (soaking() || felt < 12) {
        let point = points.swap_remove(chance.below(points.len() as u64) as usize);
        copy(&fresh, &repo);
        let struck = point.strike(&push());
        felt += u32::from(struck.felt);
        let story = format!("{point}\n{}", struck.outcome.story());
        let differences = before.differences(&Snapshot::of(&repo));
        assert!(differences.iter().all(|line| line.starts_with("added ")), "{differences:#?}\n{story}");
        assert!(served() || !struck.outcome.is_ok(), "acknowledged and not there\n{story}");
        let again = run(on(&repo).command(["wal", "push", &format!("pg_wal/{segment}")]));
        assert!(again.is_ok() && served(), "{point}: what is left behind is in the way\n{}", again.story());
    }
    assert!(felt >= 12, "only {felt} points were reached");
}
