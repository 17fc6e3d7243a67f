//! A backup and a restore stay in the memory that they were given, whatever the number and size of the files.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use crate::support::process::{Outcome, command, run};
use crate::support::scratch::Scratch;
use crate::support::user::ServerUser;
use crate::support::walvault::binary;
use crate::support::{Major, Site, TestServer, soaking};

/// Runs a program to its end and says on the last line of stderr how much memory it had at its peak.
const MEASURE: &str = "
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)";

/// Runs walvault with two threads and returns its peak in KiB.
fn peak(site: &Site, arguments: &[&OsStr]) -> (u64, Outcome) {
    let mut python = command("/usr/bin/python3");
    python.args(["-c", MEASURE]).arg(binary()).args(["--repo", &site.repo.url(), "--cluster", "main"]).args(arguments);
    python.env("WALVAULT_CPUS", "2");
    let outcome = run(python).expect_ok();
    let last = outcome.stderr.lines().last().expect("the peak");
    (last.parse().expect("a number"), outcome)
}

/// Puts files into a data directory: many small ones, and one that does not compress.
fn fill(data: &Path, files: usize, large: usize) {
    let many = data.join("many");
    fs::create_dir(&many).expect("a data directory");
    for n in 0..files {
        fs::write(many.join(format!("{n:08}")), format!("{n} ").repeat(n % 200)).expect("a new directory");
    }
    let mut noise = vec![0u8; large];
    let mut seed = 1u64;
    for word in noise.chunks_exact_mut(8) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(seed ^ seed >> 29).to_le_bytes());
    }
    fs::write(data.join("large"), noise).expect("a data directory");
    let user = ServerUser::get();
    user.take_over(&data.join("large"));
    user.take_over(&many);
}

/// A program that was built for debugging is larger, and the kernel maps more or fewer of its pages from run to run.
const DEBUG_KIB: u64 = if cfg!(debug_assertions) { 16 << 10 } else { 0 };

#[test]
fn memory_stays_in_the_budget_with_many_files_and_a_large_one() {
    let site = Site::of(TestServer::builder(Major::V17).set("summarize_wal", "on"));
    fill(site.server.pgdata(), if soaking() { 100_000 } else { 20_000 }, 160 << 20);
    let conninfo = site.server.conninfo();
    let place = Scratch::new();
    for (number, (arguments, budget)) in [(&["--memory", "40"][..], 40), (&[], 48)].into_iter().enumerate() {
        let own: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let with =
            |words: &[&str]| words.iter().map(OsString::from).chain(own.iter().cloned()).collect::<Vec<OsString>>();
        let measured = |words: Vec<OsString>, what: &str| {
            let (peak, outcome) = peak(&site, &words.iter().map(OsString::as_os_str).collect::<Vec<_>>());
            assert!(peak <= (budget << 10) + DEBUG_KIB, "{what} took {peak} KiB of {budget} MiB\n{}", outcome.story());
        };
        measured(with(&["backup", "--fast", "--dbname", &conninfo, "--full"]), "the backup");
        measured(with(&["backup", "--fast", "--dbname", &conninfo, "--read-all"]), "the backup that builds on it");
        if budget == 48 {
            let remote = ["backup", "--fast", "--dbname", &conninfo, "--from", "remote"];
            measured(with(&remote), "the backup that the server sent changes for");
            measured(with(&[&remote[..], &["--full"]].concat()), "the backup that the server sent");
        }
        let to = place.join(&format!("data-{number}"));
        let to = to.to_str().expect("plain text");
        measured(with(&["restore", to, "--to-backup-end", "--as", "clone"]), "the restore");
        for name in ["large", "many/00019999", "many/00000000"] {
            let same = fs::read(site.server.pgdata().join(name)).expect("a file")
                == fs::read(Path::new(to).join(name)).expect("a file");
            assert!(same, "{name}");
        }
    }
}

/// What a file of a stream holds until all came, past those that the budget counts, with what the allocator keeps of it.
const FILE_BYTES: u64 = 400;
const COUNTED_FILES: u64 = 40_000;

#[test]
fn a_backup_over_the_network_holds_little_more_for_a_hundred_thousand_files() {
    const FILES: u64 = 100_000;
    let site = Site::of(TestServer::builder(Major::V17).segment_mib(1).set("archive_mode", "off"));
    fill(site.server.pgdata(), FILES as usize, 0);
    let conninfo = site.server.conninfo();
    // With the WAL beside it: two segments, and what one compresses to.
    let arguments =
        ["backup", "--from", "remote", "--with-wal", "--fast", "--memory", "40", "--dbname", &conninfo].map(OsStr::new);
    let (peak, outcome) = peak(&site, &arguments);
    let most = (40 << 10) + (FILES - COUNTED_FILES) * FILE_BYTES / 1024 + (3 << 10) + DEBUG_KIB;
    assert!(peak <= most, "the backup took {peak} KiB of {most}\n{}", outcome.story());
}
