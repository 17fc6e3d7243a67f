//! The stored format, read by a program that knows only its description: `tests/reader`, after `docs/format.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ::walvault::format::changes::{self, Found};
use ::walvault::format::object::{FRONT_BYTES, Tail};
use ::walvault::format::wal;
use ::walvault::pg::wal_facts::WalFacts;
use ::walvault::pg::{RelationChanges, RelationLocator};
use serde_json::Value;

use crate::support::process::{Outcome, command, run};
use crate::support::scratch::{Scratch, run_directory};
use crate::support::user::ServerUser;
use crate::support::{Ledger, Major, Stop, TestRepo, TestServer, Walvault};

/// What `walvault restore` itself writes, or leaves for the server: settings, signals, its plan, the manifest of the
/// restored bytes, and a `pg_control` that cannot be started without its label.
const OF_THE_RESTORE: [&str; 5] =
    ["backup_manifest", "global/pg_control", "pg_wal/walvault.plan", "postgresql.auto.conf", "recovery.signal"];

/// Returns a copy of the reader that every user may run; the source folder need not be readable for all.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let copy = run_directory().join("walvault_reader.py");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/walvault_reader.py");
        fs::copy(source, &copy).expect("the reader is beside the tests");
        copy
    })
}

/// Runs the reader, as the user that owns the repository.
pub fn reader(arguments: &[&dyn AsRef<OsStr>]) -> Outcome {
    let mut python = command("/usr/bin/python3");
    python.arg("-B").arg(program()).args(arguments);
    run(python)
}

/// Every file below a directory with its mode and bytes; directories without bytes.
fn contents(root: &Path) -> BTreeMap<PathBuf, (u32, Option<Vec<u8>>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of ours") {
            let path = entry.expect("a listed entry").path();
            let mode = fs::metadata(&path).expect("a listed entry").permissions().mode() & 0o777;
            let name = path.strip_prefix(root).expect("it was found below the root").to_owned();
            if path.is_dir() {
                found.insert(name, (mode, None));
                waiting.push(path);
            } else {
                found.insert(name, (mode, Some(fs::read(&path).expect("a file of ours"))));
            }
        }
    }
    found
}

/// A server with a tablespace and files of every kind, backed up.
struct BackedUp {
    server: TestServer,
    repo: TestRepo,
    walvault: Walvault,
    backup: String,
    /// Of the tablespace.
    oid: String,
    /// Finished segments, as they were in `pg_wal`.
    segments: Vec<(String, Vec<u8>)>,
}

fn back_up(major: Major) -> BackedUp {
    let repo = TestRepo::new();
    let walvault = Walvault::on(&repo);
    walvault.run(["init"]).expect_ok();
    let server = TestServer::builder(major).segment_mib(1).archive_command(walvault.archive_command()).start();
    server.create_tablespace("fast");
    server.sql("create table far tablespace fast as select generate_series(1, 5000) as n");
    // Larger than a pack's frame and than a task of the copy, with a hole of zeros and rows that do not compress.
    server.sql(
        "create table wide as select n, md5(n::text) || md5((n * 7)::text) as text from generate_series(1, 60000) n",
    );
    // As the manual has it for keys: nobody may write to it, not even its owner.
    let key = server.pgdata().join("server.key");
    fs::write(
        &key,
        "not a key, and longer than what is kept in a leaf itself, so that it has to be filled in afterwards",
    )
    .expect("a data directory");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).expect("just made");
    ServerUser::get().take_over(&key);
    let oid = server.query_one("select oid from pg_tablespace where spcname = 'fast'");
    let mut ledger = Ledger::create(&server);
    ledger.commit(&server, 20);
    let taken = walvault.clone().env("PGHOST", server.socket_dir()).env("PGUSER", "postgres");
    let backup =
        taken.run(["--json", "backup", "--fast"]).expect_ok().json()["id"].as_str().expect("a name").to_owned();
    let mut segments = Vec::new();
    for _ in 0..3 {
        ledger.commit(&server, 5);
        let name = server.switch_wal();
        segments.push((name.clone(), fs::read(server.pgdata().join("pg_wal").join(&name)).expect("just finished")));
        server.wait_archived(&name);
    }
    BackedUp { server, repo, walvault, backup, oid, segments }
}

#[test]
fn another_reader_restores_a_backup_byte_for_byte() {
    for major in [Major::V15, Major::V17] {
        let BackedUp { mut server, repo, walvault, mut backup, oid, .. } = back_up(major);
        if major == Major::V17 {
            // One that names packs of another, in pieces of single blocks.
            server.sql("update wide set text = 'changed' where n % 3000 = 0");
            let walvault = walvault.clone().env("PGHOST", server.socket_dir()).env("PGUSER", "postgres");
            let taken = walvault.run(["--json", "backup", "--fast"]).expect_ok().json();
            assert_eq!(taken["parent"], backup.as_str(), "{taken:#}");
            // This server makes no summaries.
            let reason = taken["changes"]["reason"].as_str().expect("words");
            assert!(taken["changes"]["method"] == "log" && reason.contains("summarize_wal is off"), "{taken:#}");
            taken["id"].as_str().expect("a name").clone_into(&mut backup);
        }
        server.stop(Stop::Fast);
        let place = Scratch::new();
        let (ours, theirs, moved) = (place.join("ours"), place.join("theirs"), place.join("moved"));
        let moved = format!("{oid}={}", moved.display());
        let options = ["--to-latest", "--as", "primary", "--tablespace", &moved].map(OsStr::new);
        walvault.run([OsStr::new("restore"), ours.as_os_str()].into_iter().chain(options)).expect_ok();
        reader(&[&"restore", &repo.path(), &"main", &backup, &theirs]).expect_ok();

        let (ours, theirs) = (contents(&ours), contents(&theirs));
        let names = |of: &BTreeMap<PathBuf, _>| {
            let own = |name: &&PathBuf| !OF_THE_RESTORE.iter().any(|written| name.as_path() == Path::new(written));
            of.keys().filter(own).cloned().collect::<Vec<_>>()
        };
        assert_eq!(names(&ours), names(&theirs), "PostgreSQL {major}");
        let tablespace = Path::new("pg_tblspc").join(&oid);
        assert!(
            names(&ours).iter().filter(|name| name.starts_with(&tablespace)).count() > 2,
            "the tablespace is there"
        );
        for name in names(&ours) {
            assert!(ours[&name] == theirs[&name], "{} differs after a backup of PostgreSQL {major}", name.display());
        }
        let control = |of: &BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>| of[Path::new("global/pg_control")].1.clone();
        let (ours, theirs) = (control(&ours).expect("a file"), control(&theirs).expect("a file"));
        let different: Vec<usize> = (0..8192).filter(|at| ours[*at] != theirs[*at]).collect();
        // The checkpoint at 32 to 39 and the CRC at 288 to 291.
        assert!(
            !different.is_empty() && different.iter().all(|at| (32..40).contains(at) || (288..292).contains(at)),
            "restore changed more of pg_control than checkpoint and CRC: {different:?}"
        );
    }
}

#[test]
fn another_reader_and_plain_zstd_give_back_the_wal_that_was_archived() {
    for major in [Major::V15, Major::V17] {
        let BackedUp { repo, segments, server, .. } = back_up(major);
        let lane = format!("{}-1", server.system_id());
        let place = Scratch::new();
        for (name, bytes) in &segments {
            reader(&[&"wal", &repo.path(), &"main", &lane, name, &place.join(name)]).expect_ok();
            assert!(fs::read(place.join(name)).expect("just written") == *bytes, "{name} of PostgreSQL {major}");

            let key = repo.find(&format!("main/{lane}/wal/*/{name}.zst"));
            let told = reader(&[&"changes", &repo.path(), &"main", &lane, name]).expect_ok().stdout;
            assert_eq!(told.lines().map(str::to_owned).collect::<Vec<_>>(), changes_of(&repo.read(&key)), "{name}");
            let told = reader(&[&"hint", &repo.path(), &"main", &lane, name]).expect_ok().stdout;
            let stored = repo.read(&key);
            let (_, ours) = wal::decode_facts(&stored, stored.len() as u64).expect("sound");
            assert!(ours.as_ref().is_some_and(|facts| facts.records > 0), "{name}");
            assert_eq!(serde_json::from_str::<Option<WalFacts>>(&told).expect("a hint"), ours, "{name}");
            let object = repo.path().join(key);
            let plain = place.join(&format!("{name}.plain"));
            let mut zstd = command("/usr/bin/zstd");
            zstd.args(["-q", "-d"]).arg(object).arg("-o").arg(&plain);
            run(zstd).expect_ok();
            assert!(fs::read(plain).expect("just written") == *bytes, "{name} of PostgreSQL {major} by zstd alone");
        }
    }
}

/// What a segment's object says that it changes, as the other reader prints it.
fn changes_of(stored: &[u8]) -> Vec<String> {
    let found = changes::find(stored, stored.len() as u64).expect("sound");
    let Found::Changes(told, _) = found else { panic!("{found:?}") };
    assert!(!told.relations.is_empty(), "{told:?}");
    let line = |one: &RelationChanges| {
        let RelationLocator { tablespace, database, relation } = one.relation;
        let limit = one.limit.map_or_else(|| "None".to_owned(), |limit| limit.to_string());
        let runs: String = one.runs.iter().map(|run| format!(" {}+{}", run.first, run.len)).collect();
        format!("{tablespace} {database} {relation} {limit}{runs}")
    };
    told.relations.iter().map(line).collect()
}

#[test]
fn another_reader_refuses_what_was_damaged_or_misplaced() {
    let BackedUp { repo, backup, segments, server, .. } = back_up(Major::V15);
    let lane = format!("{}-1", server.system_id());
    let place = Scratch::new();
    let (name, other) = (&segments[0].0, &segments[1].0);
    let object = |name: &str| repo.find(&format!("main/*/wal/*/{name}.zst"));
    let read = |name: &str| reader(&[&"wal", &repo.path(), &"main", &lane, &name, &place.join("out")]);
    for bit in [8 * 20, 8 * 300, 8 * (repo.read(&object(name)).len() as u64 - 1)] {
        repo.flip_bit(&object(name), bit);
        read(name).expect_code(1);
        repo.flip_bit(&object(name), bit);
    }
    repo.replace(&object(name), &repo.read(&object(other)));
    let said = read(name).expect_code(1).stderr;
    assert!(said.contains(&format!("made for {lane}/{other}")), "{said}");

    // The first pack names relations; a restore does not need it.
    let pack = repo.find(&format!("main/*/packs/{backup}/000002.zst"));
    repo.flip_bit(&pack, 8 * 1000);
    reader(&[&"restore", &repo.path(), &"main", &backup, &place.join("restored")]).expect_code(1);
}

/// Returns the two documents of a manifest, without its tables.
fn envelope_and_root(manifest: &[u8]) -> Vec<u8> {
    let tail = Tail::decode(manifest, manifest.len() as u64).expect("a stored manifest");
    let section = tail.section(manifest, manifest.len() as u64).expect("a stored manifest");
    let length = |at: usize| u32::from_le_bytes(section[at..at + 4].try_into().expect("4 bytes")) as usize;
    let frames = &manifest[FRONT_BYTES..FRONT_BYTES + length(0) + length(40)];
    zstd::decode_all(frames).expect("two frames of JSON")
}

#[test]
fn another_reader_names_the_relations_that_the_server_has() {
    let BackedUp { repo, backup, server, oid, .. } = back_up(Major::V17);
    let names = reader(&[&"relations", &repo.path(), &"main", &backup]).expect_ok().stdout;
    let of_server = |sql: &str| {
        let line = server.query_one(sql);
        line.replace('|', " ")
    };
    let database = server.query_one("select oid from pg_database where datname = current_database()");
    let rows = |name: &str, tablespace: &str| {
        of_server(&format!(
            "select {database}, 'public', relname, oid, pg_relation_filenode(oid), {tablespace}, relkind from pg_class \
             where relname = '{name}'"
        ))
    };
    for line in [rows("wide", "1663"), rows("far", &oid)] {
        assert!(names.lines().any(|found| found == line), "{line:?} is missing of\n{names}");
    }
    let count = server.query_one("select count(*) from pg_class where relkind <> 'c' and relpersistence <> 't'");
    let prefix = format!("{database} ");
    assert_eq!(names.lines().filter(|line| line.starts_with(&prefix)).count().to_string(), count);
}

/// Adds the names of all members, however deep.
fn members(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            names.insert(name.clone());
            members(value, names);
        }),
        Value::Array(list) => list.iter().for_each(|value| members(value, names)),
        _ => {}
    }
}

#[test]
fn every_member_of_every_stored_document_is_described() {
    let BackedUp { repo, walvault, oid, segments, .. } = back_up(Major::V17);
    let place = Scratch::new();
    let options = ["--to-latest", "--as", "primary", "--tablespace-root"].map(OsStr::new);
    let (restored, moved) = (place.join("restored"), place.join("moved"));
    let command = [OsStr::new("restore"), restored.as_os_str()].into_iter().chain(options);
    walvault.run(command.chain([moved.as_os_str()])).expect_ok();
    assert!(moved.join(oid).is_dir());

    let plan = fs::read(restored.join("pg_wal/walvault.plan")).expect("a restored directory");
    let small = ["main/repository.json", "main/*/lane.json", "main/*/owners/00000001/1"];
    let mut documents: Vec<Vec<u8>> = small.iter().map(|pattern| repo.read(&repo.find(pattern))).collect();
    documents.push(plan);
    let manifest = repo.read(&repo.find("main/*/backups/*/000001.zst"));
    documents.push(envelope_and_root(&manifest));
    let object = repo.read(&repo.find(&format!("main/*/wal/*/{}.zst", segments[0].0)));
    // The members of the short form, and of JSON.
    let (_, hint) = wal::decode_facts(&object, object.len() as u64).expect("a stored segment");
    documents.push(serde_json::to_vec(&hint.expect("a hint")).expect("plain values"));

    let mut names = BTreeSet::new();
    for document in &documents {
        let values = serde_json::Deserializer::from_slice(document).into_iter::<Value>();
        values.for_each(|value| members(&value.expect("JSON"), &mut names));
    }
    assert!(["sha256", "epoch", "needed_before", "pg_control", "indexer"].iter().all(|name| names.contains(*name)));
    let format = include_str!("../../docs/format.md");
    for name in names {
        assert!(format.contains(&format!("`{name}`")), "docs/format.md does not describe the member {name:?}");
    }
}
