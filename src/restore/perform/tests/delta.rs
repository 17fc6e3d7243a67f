//! A directory that is there is brought to the backup, whatever it holds and whenever that is interrupted.

use std::os::unix::fs::{MetadataExt, symlink};

use super::*;

/// A directory restored, and then changed as a server and its operators would, differently each time.
fn diverged(name: &str) -> (Site, Contents, Vec<(PathBuf, u32, Sha256)>) {
    let site = Site::new(name);
    let contents = Contents::new();
    site.commit(&contents.entries(), &contents);
    site.restore().unwrap();
    let whole = tree(&site.directory);
    diverge(&site);
    (site, contents, whole)
}

fn diverge(site: &Site) {
    let at = |name: &str| site.directory.join(name);
    std::fs::write(at("global/pg_control"), control_of(&site.sound)).unwrap();
    let mut large = std::fs::read(at("base/large")).unwrap();
    // A block in the first frame, one that was zeros, and the end.
    large[40_000] ^= 1;
    large[FRAME_BYTES + 50_000] = 7;
    large.extend([9; 20_000]);
    std::fs::write(at("base/large"), large).unwrap();
    std::fs::remove_file(at("base/one")).unwrap();
    std::fs::write(at("base/inline"), b"16\n").unwrap();
    std::fs::create_dir_all(at("base/999/deep")).unwrap();
    std::fs::write(at("base/999/deep/1"), b"of another history").unwrap();
    std::fs::write(at("pg_wal/000000010000000000000009"), b"stale").unwrap();
    std::fs::create_dir_all(at("pg_replslot/held")).unwrap();
    std::fs::write(at("standby.signal"), b"").unwrap();
    std::fs::write(at("postmaster.opts"), b"postgres\n").unwrap();
}

#[test]
fn what_differs_is_written_and_what_the_backup_does_not_have_is_removed() {
    let (site, _, whole) = diverged("delta");
    let inode = |name: &str| std::fs::metadata(site.directory.join(name)).unwrap().ino();
    let (large, another) = (inode("base/large"), inode("base/another"));
    assert!(matches!(site.restore(), Err(RestoreError::Place(PlaceError::NotEmpty { .. }))));
    let report = site.delta().unwrap();
    assert_eq!(tree(&site.directory), whole);
    assert_eq!((inode("base/large"), inode("base/another")), (large, another), "written over, not made again");
    // base/999, the segment, pg_replslot and postmaster.opts; the signal is the restore's own.
    assert_eq!(report.removed, Some(4));
}

#[test]
fn only_frames_that_differ_are_read_and_only_blocks_that_differ_are_written() {
    let (site, ..) = diverged("delta-reads");
    let bytes = |site: &Site| {
        let before = site.faulty.operations();
        site.delta().unwrap();
        site.faulty.operations() - before
    };
    let some = bytes(&site);
    std::fs::write(site.directory.join("global/pg_control"), control_of(&site.sound)).unwrap();
    // Nothing differs but pg_control: of the packs only tables and leaves are read.
    let none = bytes(&site);
    assert!(none < some, "{none} and {some} requests");
}

#[test]
fn links_in_the_way_are_removed_and_never_followed() {
    let (site, _, whole) = diverged("delta-links");
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, b"somebody else's").unwrap();
    let at = |name: &str| site.directory.join(name);
    std::fs::remove_file(at("base/another")).unwrap();
    symlink(&victim, at("base/another")).unwrap();
    std::fs::remove_file(at("base/inline")).unwrap();
    std::fs::hard_link(&victim, at("base/inline")).unwrap();
    symlink(outside.path(), at("base/998")).unwrap();
    site.delta().unwrap();
    assert_eq!(tree(&site.directory), whole);
    assert_eq!(std::fs::read(&victim).unwrap(), b"somebody else's");
}

#[test]
fn the_log_is_emptied_through_its_link() {
    let (site, ..) = diverged("delta-log");
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::remove_dir_all(site.directory.join("pg_wal")).unwrap();
    symlink(elsewhere.path(), site.directory.join("pg_wal")).unwrap();
    std::fs::write(elsewhere.path().join("000000010000000000000009"), b"stale").unwrap();
    site.delta().unwrap();
    let left: Vec<_> = std::fs::read_dir(elsewhere.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["walvault.plan"]);
    assert!(site.directory.join("pg_wal").is_symlink());
}

/// Restores into a directory in which a server may run, which is refused, and once more without that.
fn is_left_alone_while_locked(site: &Site) {
    let lock = site.directory.join("postmaster.pid");
    // No process of this host has that number.
    std::fs::write(&lock, b"999999999\n").unwrap();
    let before = tree(&site.directory);
    assert!(matches!(site.delta(), Err(RestoreError::Place(PlaceError::LockFile { .. }))));
    assert_eq!(tree(&site.directory), before);
    std::fs::remove_file(&lock).unwrap();
    site.delta().unwrap();
}

#[test]
fn a_server_that_may_run_where_it_cannot_be_seen_is_left_alone() {
    let (site, ..) = diverged("delta-lock-file");
    is_left_alone_while_locked(&site);
}

#[test]
fn a_restore_that_lacked_nothing_but_the_end_and_was_started_elsewhere_is_left_alone() {
    let (site, _) = cut_off("delta-started");
    std::fs::create_dir_all(site.directory.join("global")).unwrap();
    std::fs::write(site.directory.join("global/pg_control"), control_of(&site.sound)).unwrap();
    is_left_alone_while_locked(&site);
}

#[test]
fn another_systems_directory_and_one_that_is_nobodys_are_left_as_they_are() {
    let (site, ..) = diverged("delta-foreign");
    let control = site.directory.join("global/pg_control");
    let mut other = control_of(&site.sound);
    other[0] ^= 1;
    let crc = crc32c::crc32c(&other[..288]);
    other[288..292].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&control, other).unwrap();
    let before = tree(&site.directory);
    assert!(matches!(site.delta(), Err(RestoreError::Place(PlaceError::OtherSystem { .. }))));
    for damaged in [Some(vec![0; 8192]), None] {
        match &damaged {
            Some(bytes) => std::fs::write(&control, bytes).unwrap(),
            None => std::fs::remove_file(&control).unwrap(),
        }
        assert!(matches!(site.delta(), Err(RestoreError::Place(PlaceError::Unknown { .. }))));
    }
    let not_control = |entry: &&(PathBuf, u32, Sha256)| entry.0 != control;
    let (before, after) = (before, tree(&site.directory));
    assert!(before.iter().filter(not_control).eq(after.iter().filter(not_control)));
}

#[test]
fn a_running_server_is_left_as_it_is() {
    let (site, ..) = diverged("delta-running");
    // A server's first lines: process, directory. This process is alive.
    let text = format!("{}\n{}\n1\n5432\n", std::process::id(), site.directory.display());
    std::fs::write(site.directory.join("postmaster.pid"), text).unwrap();
    let before = tree(&site.directory);
    let refused = site.delta();
    assert!(matches!(refused, Err(RestoreError::Place(PlaceError::Running { .. }))), "{refused:?}");
    assert_eq!(tree(&site.directory), before);
}

#[test]
fn wherever_it_is_interrupted_nothing_starts_until_it_was_done_again() {
    let (site, _, whole) = diverged("delta-crash-points");
    let faults = [Fault::Before(std::io::ErrorKind::Other), Fault::FlipBit { bit: 900 }, Fault::Die];
    let mut failed = 0;
    'operations: for operation in 1.. {
        for fault in faults {
            site.faulty.heal();
            diverge_again(&site);
            site.faulty.script(When { verb: Some(Verb::GetRange), ..When::nth(operation) }, fault);
            match site.delta() {
                Ok(_) if fault == faults[0] => break 'operations,
                Ok(_) => assert_eq!(tree(&site.directory), whole, "{fault:?} at {operation}"),
                Err(_) => {
                    failed += 1;
                    let control = std::fs::read(site.directory.join("global/pg_control"));
                    let untouched = control.as_ref().is_ok_and(|bytes| *bytes == control_of(&site.sound));
                    let marked = site.directory.join("walvault.restore").exists();
                    assert!(control.is_err() && marked || untouched && !marked, "{fault:?} at {operation}");
                    site.faulty.heal();
                    site.delta().unwrap();
                    assert_eq!(tree(&site.directory), whole, "{fault:?} at {operation}, and done again");
                }
            }
        }
    }
    assert!(failed > 10, "only {failed} faults were felt");
}

fn diverge_again(site: &Site) {
    for own in ["base/one", "base/999", "pg_replslot"] {
        let _ = std::fs::remove_dir_all(site.directory.join(own));
    }
    std::fs::write(site.directory.join("base/one"), b"").unwrap();
    diverge(site);
}
