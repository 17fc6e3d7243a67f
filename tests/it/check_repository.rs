//! What can be wrong with a repository on a volume, one thing at a time: `walvault check` names it, and nothing else; and
//! never is a repository made where none was.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use ::walvault::format::document;
use ::walvault::repo::LaneFacts;

use crate::support::process::Outcome;
use crate::support::user::ServerUser;
use crate::support::{Disk, Major, Site, Stop, TestRepo, TestServer, Walvault};

/// A server that is down, so that only the repository can be in the way, with a backup and some WAL.
struct Stopped {
    site: Site,
}

impl Stopped {
    fn new(major: Major) -> Self {
        let mut site = Site::of(TestServer::builder(major).segment_mib(1));
        site.backup();
        for _ in 0..3 {
            site.server.archive_all();
        }
        site.server.stop(Stop::Fast);
        Self { site }
    }

    fn check(&self, walvault: &Walvault) -> Outcome {
        walvault.run(self.words())
    }

    fn words(&self) -> [String; 4] {
        [
            "check".to_owned(),
            "--json".to_owned(),
            "--pgdata".to_owned(),
            self.site.server.pgdata().display().to_string(),
        ]
    }

    /// Damages a copy of the repository and panics unless exactly these codes fail, in these words.
    #[track_caller]
    fn expect(&self, damage: impl FnOnce(&TestRepo), codes: &[&str], words: &str) {
        let repo = self.site.repo.duplicate();
        damage(&repo);
        expect_failures(&self.check(&Walvault::on(&repo)), codes, words);
    }
}

#[track_caller]
fn expect_failures(outcome: &Outcome, codes: &[&str], words: &str) {
    let report = outcome.json();
    let findings = report["findings"].as_array().expect("an array").iter();
    let failed = findings.filter(|finding| finding["level"] == "fail");
    let failed: Vec<&str> = failed.map(|finding| finding["code"].as_str().expect("a code")).collect();
    assert_eq!(failed, codes, "{}", outcome.story());
    assert!(outcome.stdout.contains(words), "{words:?} was expected\n{}", outcome.story());
    assert_eq!(outcome.code, Some(if codes.is_empty() { 1 } else { 2 }), "{}", outcome.story());
}

#[test]
fn half_a_copy_of_a_repository_is_named_by_what_is_missing() {
    let stopped = Stopped::new(Major::V17);
    stopped.expect(|_| {}, &[], "every pack is there");
    stopped.expect(
        |repo| repo.remove("main/repository.json"),
        &["repository"],
        "main/repository.json is missing and main/",
    );
    stopped.expect(|repo| repo.remove(&repo.find("main/*/lane.json")), &["lane"], "lane.json is missing");
    stopped.expect(|repo| repo.remove(&repo.find_all("main/*/packs/*")[0]), &["packs"], "is missing, and backup");
    stopped.expect(
        |repo| repo.truncate(&repo.find_all("main/*/packs/*")[0], 4000),
        &["packs"],
        "has 4000 bytes, and backup",
    );
    stopped.expect(|repo| repo.flip_bit(&repo.find("main/*/backups/*"), 8 * 300), &["backup", "manifests"], "backup ");
    let segments = stopped.site.repo.find_all("main/*/wal/*/*/0*.zst");
    let segments: Vec<_> = segments.iter().filter(|key| !key.contains(".backup")).collect();
    let middle = segments[segments.len() - 2];
    let name = Path::new(middle.as_str()).file_stem().expect("a name").to_string_lossy().into_owned();
    stopped.expect(|repo| repo.remove(middle), &["holes"], &format!("{name} is missing, and"));
    let backup = stopped.site.walvault.run(["list", "--json"]).expect_ok().json();
    assert!(backup["backups"][0]["start_lsn"].is_string());
    let first = segments
        .iter()
        .find(|key| stopped.site.repo.find_all("*.backup.zst")[0].contains(&key[key.len() - 28..key.len() - 4]));
    let first = first.expect("the backup's first segment");
    stopped.expect(|repo| repo.remove(first), &["holes"], "is missing, and");
    stopped.expect(
        |repo| {
            let key = repo.find("main/*/lane.json");
            let mut facts: LaneFacts = document::decode(&repo.read(&key), "lane.json").expect("just written");
            facts.segment_size *= 2;
            repo.replace(&key, &document::encode(&facts));
        },
        &["lane"],
        "was made for",
    );
    stopped.expect(
        |repo| {
            let lane = repo.find("main/*/lane.json").replace("/lane.json", "/contested/0123456789abcdef/x/y.zst");
            fs::create_dir_all(repo.path().join(&lane).parent().expect("a folder")).expect("a directory of ours");
            fs::write(repo.path().join(&lane), "x").expect("a directory of ours");
            ServerUser::get().take_over(repo.path());
        },
        &["contested"],
        "two servers write one timeline",
    );
    // Another place is another writer.
    let copy = stopped.site.server.beside("copy");
    let mut cp = crate::support::process::command("/usr/bin/cp");
    cp.arg("-a").arg(format!("{}/.", stopped.site.server.pgdata().display())).arg(&copy);
    crate::support::process::run(cp).expect_ok();
    let outcome = stopped.site.walvault.run(["check", "--json", "--pgdata", &copy.display().to_string()]);
    expect_failures(&outcome, &[], "was begun by another server");
}

#[test]
fn each_permission_that_is_missing_is_named() {
    if !rustix::process::getuid().is_root() {
        // Only root can take a directory away from its user, and give it back.
        return;
    }
    let stopped = Stopped::new(Major::V15);
    let take = |path: &Path, mode: u32| {
        lchown(path, Some(0), Some(0)).expect("root may");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("root may");
    };
    let lane = stopped.site.repo.find("main/*/lane.json").replace("/lane.json", "");
    let taken = |key: &str, mode: u32| {
        let key = key.to_owned();
        move |repo: &TestRepo| take(&repo.path().join(key), mode)
    };
    stopped.expect(taken("", 0o000), &["repository"], "Permission denied");
    stopped.expect(taken("main", 0o000), &["repository"], "Permission denied");
    stopped.expect(taken("main/repository.json", 0o000), &["repository"], "main/repository.json");
    stopped.expect(taken("main", 0o555), &["write"], "/main/probe");
    stopped.expect(taken(&format!("{lane}/lane.json"), 0o000), &["lane"], "lane.json");
    stopped.expect(taken(&format!("{lane}/backups"), 0o000), &["backup"], "/backups");
    stopped.expect(taken(&format!("{lane}/packs"), 0o000), &["backup"], "/packs");
    let repo = stopped.site.repo.duplicate();
    take(&repo.path().join(&lane).join("owners"), 0o000);
    let outcome = stopped.check(&Walvault::on(&repo)).expect_code(2);
    let owners = outcome.json()["findings"].as_array().expect("an array").iter().any(|finding| {
        let text = finding["text"].as_str().unwrap_or_default();
        finding["code"] == "lane" && finding["level"] == "fail" && text.contains("/owners")
    });
    assert!(owners, "{}", outcome.story());

    let settings = stopped.site.server.beside("etc").join("main.toml");
    fs::write(&settings, format!("repo = \"{}\"\n", stopped.site.repo.url())).expect("a directory of ours");
    take(&settings, 0o000);
    let walvault = Walvault::bare().cluster("main").env("WALVAULT_CONFIG", &settings);
    expect_failures(&stopped.check(&walvault), &["config"], "main.toml");
    take(&stopped.site.server.pgdata().join("pg_wal/archive_status"), 0o000);
    expect_failures(&stopped.check(&stopped.site.walvault), &["backlog"], "pg_wal");
    ServerUser::get().take_over(stopped.site.server.pgdata());
    fs::set_permissions(stopped.site.server.pgdata().join("pg_wal/archive_status"), fs::Permissions::from_mode(0o700))
        .expect("root may");
    take(&stopped.site.server.pgdata().join("global/pg_control"), 0o000);
    let outcome = stopped.check(&stopped.site.walvault);
    assert!(outcome.stdout.contains("global/pg_control: Permission denied"), "{}", outcome.story());
    for (disk, words) in [(Disk::ReadOnly, "Read-only file system"), (Disk::Full, "No space left")] {
        let stopped = Stopped::new(Major::V15);
        let repo = stopped.site.repo.duplicate();
        let checked = Walvault::on(&repo).command(stopped.words());
        let outcome = crate::support::process::run(disk.below(repo.path(), &checked));
        expect_failures(&outcome, &["write"], words);
    }
}

#[test]
fn a_volume_that_is_not_mounted_gets_no_repository_beside_it() {
    let stopped = Stopped::new(Major::V17);
    let place = TestRepo::new();
    let segment = stopped.site.server.pgdata().join("pg_wal/000000010000000000000001").display().to_string();
    let missing = Walvault::bare().repository(format!("{}/postgresql", place.url())).cluster("main");
    expect_failures(&stopped.check(&missing), &["repository"], "mount the volume");
    let empty = Walvault::on(&place);
    expect_failures(&stopped.check(&empty), &["repository"], "is the volume mounted");
    for walvault in [&missing, &empty] {
        for words in [&["wal", "push", segment.as_str()][..], &["list"], &["backup"], &["status"]] {
            assert!(!walvault.run(words).is_ok(), "{words:?}");
        }
    }
    assert_eq!(fs::read_dir(place.path()).expect("there").count(), 0);
    // Neither does `init`, unless the directory above is there.
    let deep = Walvault::bare().repository(format!("{}/a/b", place.url())).cluster("main");
    let refused = deep.run(["init"]).expect_code(1);
    assert!(
        refused.stderr.contains("the directory above must be there: is the volume mounted?"),
        "{}",
        refused.story()
    );
    assert_eq!(fs::read_dir(place.path()).expect("there").count(), 0);
}

/// Runs `script` with another `/etc/fstab` in a mount namespace of its own.
fn with_fstab(line: &str, wanted: &std::process::Command) -> Option<Outcome> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let mut own = std::process::Command::new("/usr/bin/unshare");
    let setpriv = ServerUser::get().setpriv().expect("root's test run");
    let script = format!(
        "mount -t tmpfs none /etc/opt && printf '%s\\n' \"$1\" > /etc/opt/fstab && \
         touch /etc/fstab && mount --bind /etc/opt/fstab /etc/fstab && shift && exec {setpriv} \"$@\""
    );
    own.args(["--mount", "/bin/sh", "-c", &script, "sh", line]).arg(wanted.get_program()).args(wanted.get_args());
    own.env_clear().envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Some(crate::support::process::run(own))
}

#[test]
fn a_mount_point_of_fstab_must_be_mounted() {
    let stopped = Stopped::new(Major::V17);
    let place = TestRepo::new();
    let line = format!("server:/backup {} nfs hard 0 0", place.path().display());
    let inside = Walvault::bare().repository(format!("{}/postgresql", place.url())).cluster("main");
    for walvault in [&inside, &Walvault::on(&place)] {
        let Some(refused) = with_fstab(&line, &walvault.command(["init"])) else { return };
        let refused = refused.expect_code(78);
        assert!(refused.stderr.contains("nothing is mounted on"), "{}", refused.story());
        let outcome = with_fstab(&line, &walvault.command(stopped.words())).expect("root's test run");
        expect_failures(&outcome, &["repository"], "nothing is mounted on");
    }
    assert_eq!(fs::read_dir(place.path()).expect("there").count(), 0);
    inside.run(["init"]).expect_ok();
}
