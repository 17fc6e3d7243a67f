//! Backups over the network of a server that is played: cut at every message, with everything in the stream that no server
//! sends, and into a store that fails at every operation.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use object_store::memory::InMemory;

use super::super::budget::Budget;
use super::super::detection::Wanted;
use super::super::perform::{BackupError, BackupOptions, BackupReport};
use super::tar::tests::{file, header};
use super::{RemoteError, perform_remote};
use crate::error::ErrorKind;
use crate::instance::SessionError;
use crate::instance::replication::server_fixture::{Played, copy_data, description, message, ready, refusal_of, rows};
use crate::pg::backup_manifest::{ManifestVersion, ManifestWriter};
use crate::pg::control::ControlFile;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_fixture::{control_of, segments, with_backup_end};
use crate::pg::wal_name::WalFileName;
use crate::pg::wal_page::FirstPage;
use crate::progress::Progress;
use crate::repo::lane_fixture::{MAJOR, archive};
use crate::repo::{LaneFacts, Repository, StoredBackup};
use crate::store::fault::{Fault, FaultStore, When};
use crate::store::{RetryPolicy, Store, Verb};

const START: &str = "0/700028";
const STOP: &str = "0/700100";

/// What a server streams.
#[derive(Clone)]
struct Script {
    control: ControlFile,
    system_id: SystemId,
    /// The archive of the data directory, file by file.
    files: Vec<(String, Vec<u8>)>,
    /// Entries of another kind.
    entries: Vec<Vec<u8>>,
    /// What the manifest says of files that are not as it says.
    listed: BTreeMap<String, Option<Vec<u8>>>,
    /// A file that the manifest lists once more.
    repeated: Option<&'static str>,
    /// Position and timeline of the end.
    end: (&'static str, &'static str),
    /// Bytes that the archive lacks at its end.
    cut: usize,
    /// How many messages are sent.
    messages: usize,
}

impl Script {
    fn new() -> Self {
        let system_id = FirstPage::parse(&segments(MAJOR, 1)[0].1).unwrap().system_id;
        let control = control_of(system_id);
        let label = format!(
            "START WAL LOCATION: {START} (file 000000010000000000000007)\nCHECKPOINT LOCATION: 0/700060\n\
             BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-21 04:00:00 UTC\n\
             LABEL: walvault\nSTART TIMELINE: 1\n"
        );
        let mut noise = vec![0; 200_000];
        getrandom::fill(&mut noise).unwrap();
        let files = [
            ("backup_label", label.into_bytes()),
            ("PG_VERSION", b"15\n".to_vec()),
            ("base/1/empty", Vec::new()),
            ("base/1/zeros", vec![0; 150_000]),
            ("base/1/noise", noise),
            ("base/1/text", b"a page of text that compresses well; ".repeat(4_000)),
            ("global/pg_control", control.clone()),
        ];
        Self {
            control: ControlFile::parse(&control).unwrap(),
            system_id,
            files: files.map(|(name, bytes)| (name.to_owned(), bytes)).to_vec(),
            entries: vec![header("base/", b'5', 0), header("base/1/", b'5', 0)],
            listed: BTreeMap::new(),
            repeated: None,
            end: (STOP, "1"),
            cut: 0,
            messages: usize::MAX,
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut script = Self::new();
        change(&mut script);
        script
    }

    fn contents(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.files.iter_mut().find(|(known, _)| known == name).unwrap().1
    }

    fn manifest(&self) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), ManifestVersion::V1).unwrap();
        let modified = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let sent = self.files.iter().map(|(name, bytes)| (name.as_str(), Some(bytes)));
        let mut all: BTreeMap<&str, Option<&Vec<u8>>> = sent.collect();
        all.extend(self.listed.iter().map(|(name, bytes)| (name.as_str(), bytes.as_ref())));
        let again = self.repeated.map(|name| (name, all[name]));
        for (name, bytes) in all.into_iter().chain(again) {
            if let Some(bytes) = bytes {
                writer.file(name.as_bytes(), bytes.len() as u64, modified, crc32c::crc32c(bytes)).unwrap();
            }
        }
        writer.finish(&[(TimelineId::FIRST, START.parse().unwrap(), STOP.parse().unwrap())]).unwrap()
    }

    /// Everything that answers `BASE_BACKUP`, message by message.
    fn stream(&self) -> Vec<Vec<u8>> {
        let tablespaces =
            [description(&["spcoid", "spclocation", "size"]), tablespace_row(), message(b'C', b"SELECT\0")];
        let mut messages = vec![
            [description(&["recptr", "tli"]), rows(&[&[START, "1"]])].concat(),
            tablespaces.concat(),
            message(b'H', &[0; 3]),
            copy_data(b"nbase.tar\0\0"),
        ];
        let files = self.files.iter().map(|(name, bytes)| file(name, bytes));
        let mut tar: Vec<u8> = self.entries.iter().cloned().chain(files).flatten().chain([0; 1024]).collect();
        tar.truncate(tar.len() - self.cut);
        messages.extend(tar.chunks(100_000).map(|bytes| copy_data(&[b"d", bytes].concat())));
        messages.push(copy_data(b"m"));
        messages.extend(self.manifest().chunks(500).map(|bytes| copy_data(&[b"d", bytes].concat())));
        messages.push(message(b'c', b""));
        messages.push([description(&["recptr", "tli"]), rows(&[&[self.end.0, self.end.1]])].concat());
        messages.push(message(b'C', b"SELECT\0"));
        messages.push(ready());
        messages
    }

    fn play(self) -> Played {
        self.play_as("15.9")
    }

    fn play_as(self, version: &str) -> Played {
        let one = |text: String| [description(&["setting"]), rows(&[&[&text]]), ready()].concat();
        let answers = move |command: &str, out: &mut dyn Write| -> io::Result<bool> {
            let setting = match command {
                "SHOW archive_mode" => "on".to_owned(),
                "SHOW data_directory" => "/data".to_owned(),
                "SHOW block_size" | "SHOW wal_block_size" => "8192".to_owned(),
                "SHOW segment_size" => "1GB".to_owned(),
                "SHOW wal_segment_size" => "1MB".to_owned(),
                "SHOW data_checksums" => if self.control.data_checksums { "on" } else { "off" }.to_owned(),
                "IDENTIFY_SYSTEM" => {
                    let row: &[&str] = &[&self.system_id.to_string(), "1", STOP, ""];
                    out.write_all(
                        &[description(&["systemid", "timeline", "xlogpos", "dbname"]), rows(&[row])].concat(),
                    )?;
                    out.write_all(&ready())?;
                    return Ok(true);
                }
                command if command.starts_with("BASE_BACKUP") => {
                    let messages = self.stream();
                    for message in messages.iter().take(self.messages) {
                        out.write_all(message)?;
                    }
                    return Ok(self.messages >= messages.len());
                }
                _ => {
                    out.write_all(&refusal_of("42704", "unrecognized configuration parameter"))?;
                    return Ok(true);
                }
            };
            out.write_all(&one(setting))?;
            Ok(true)
        };
        Played::playing(version, Box::new(answers))
    }
}

fn tablespace_row() -> Vec<u8> {
    crate::instance::replication::server_fixture::row_of(&[None, None, Some("2048")])
}

/// A repository with the log archived, and the same one over a store that can be made to fail.
fn repositories() -> (Repository, Repository, FaultStore) {
    let memory = Arc::new(InMemory::new());
    let faulty = FaultStore::new(Arc::<InMemory>::clone(&memory));
    let store = |backend, name| Store::over(backend, name, RetryPolicy::brisk(1)).unwrap();
    let sound = Repository::init(store(memory, "sound"), "main").unwrap().0;
    let mut log = segments(MAJOR, 1);
    log[0].1 = with_backup_end(&log[0].1);
    let control = ControlFile::parse(&control_of(FirstPage::parse(&log[0].1).unwrap().system_id)).unwrap();
    let lane = sound.lane_for(&LaneFacts::of(&control)).unwrap();
    for (name, raw) in &log[..2] {
        archive(&lane, &WalFileName::Segment(*name), raw);
    }
    let repository = Repository::open(store(Arc::new(faulty.clone()), "faulty"), "main").unwrap();
    (sound, repository, faulty)
}

fn take(repository: &Repository, server: &Played) -> Result<BackupReport, BackupError> {
    let options = BackupOptions {
        data_directory: None,
        fast: true,
        level: 1,
        budget: Budget::remote(48 << 20, 2),
        wal_patience: Duration::ZERO,
        rate: None,
        send_rate: None,
        yielding: false,
        annotations: BTreeMap::new(),
        basis: Wanted::Full,
    };
    let mut client = server.connect().map_err(RemoteError::from)?;
    let names = Err(SessionError::Answer { action: "ask for names", answer: "none".to_owned() });
    perform_remote(repository, &mut client, names, &options, &Progress::default(), None)
}

fn committed(repository: &Repository) -> Vec<StoredBackup> {
    let lane = repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap();
    lane.backups().unwrap()
}

/// Reads every frame of a committed backup.
fn read_whole(repository: &Repository, backup: &StoredBackup) {
    let lane = repository.lane(repository.lane_ids().unwrap()[0]).unwrap().unwrap();
    let tables = lane.tables(&lane.manifest(backup).unwrap()).unwrap();
    let mut raw = Vec::new();
    for reference in tables.packs.iter() {
        let pack = lane.open_pack(reference).unwrap();
        for frame in 0..reference.frames {
            pack.decode(&pack.read(frame, frame).unwrap(), frame, frame, &mut raw).unwrap();
        }
    }
}

#[test]
fn whatever_fails_in_the_store_a_backup_is_whole_or_not_there() {
    let server = Script::new().play();
    let (_, repository, faulty) = repositories();
    let before = faulty.operations();
    let report = take(&repository, &server).unwrap();
    assert_eq!((report.envelope.files, report.damaged_pages.len()), (6, 0));
    let operations = faulty.operations() - before;
    let faults = [
        Fault::Before(io::ErrorKind::Other),
        Fault::Before(io::ErrorKind::StorageFull),
        Fault::After(io::ErrorKind::Other),
        Fault::Truncate { to: 50 },
        Fault::Die,
        Fault::DieAfter,
    ];
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    let mut points = 0;
    for operation in 1..=operations {
        for fault in crate::store::fault::in_turn(&faults, operation, soaking) {
            points += 1;
            let (sound, repository, faulty) = repositories();
            let verb = matches!(fault, Fault::Truncate { .. }).then_some(Verb::Get);
            faulty.script(When { verb, ..When::nth(operation) }, fault);
            let result = take(&repository, &server);
            let listed = committed(&sound);
            assert!(listed.len() <= 1);
            listed.iter().for_each(|backup| read_whole(&sound, backup));
            assert!(result.is_err() || listed.len() == 1, "{fault:?} at {operation}: success, and nothing is listed");
            // The next one works whatever the last one left.
            take(&sound, &server).unwrap();
            assert_eq!(committed(&sound).len(), listed.len() + 1);
        }
    }
    assert!(points >= 20, "only {points} crash points");
}

#[test]
fn a_stream_that_ends_after_any_message_is_no_backup() {
    let script = Script::new();
    let all = script.stream().len();
    let (sound, ..) = repositories();
    for messages in 0..all {
        let server = Script { messages, ..script.clone() }.play();
        let error = take(&sound, &server).unwrap_err().to_string();
        assert!(error.contains("the connection to the server was lost"), "after {messages} of {all}: {error}");
        assert!(committed(&sound).is_empty(), "after {messages} of {all}");
        // It is told to end what it may still be doing, once it has begun.
        assert_eq!(server.cancelled().len(), usize::from(messages > 1), "after {messages} of {all}");
    }
    take(&sound, &Script { messages: all, ..script }.play()).unwrap();
    assert_eq!(committed(&sound).len(), 1);
}

#[test]
fn what_no_honest_server_streams_is_no_backup_and_is_told_as_what_it_is() {
    let other = control_of(SystemId::new(12345));
    let wrong: Vec<(&str, Script)> = vec![
        ("lists 4 of the 5 files", Script::with(|s| drop(s.listed.insert("base/1/empty".to_owned(), None)))),
        ("lists PG_VERSION twice", {
            // As many as came, and one of those is not among them.
            Script::with(|s| {
                s.listed.insert("base/1/empty".to_owned(), None);
                s.repeated = Some("PG_VERSION");
            })
        }),
        ("base/1/9 arrived not at all", Script::with(|s| drop(s.listed.insert("base/1/9".to_owned(), Some(vec![1]))))),
        (
            "arrived with 3 bytes",
            Script::with(|s| drop(s.listed.insert("PG_VERSION".to_owned(), Some(b"17\n".to_vec())))),
        ),
        (
            "arrived with 3 bytes",
            Script::with(|s| drop(s.listed.insert("PG_VERSION".to_owned(), Some(b"15".to_vec())))),
        ),
        ("sent PG_VERSION twice", Script::with(|s| s.entries.push(file("PG_VERSION", b"15\n")))),
        ("sent backup_label twice", Script::with(|s| s.entries.push(file("backup_label", b"x")))),
        ("\"../../etc/x\", which leads out", Script::with(|s| s.entries.push(file("../../etc/x", b"x")))),
        ("\"/etc/x\", which leads out", Script::with(|s| s.entries.push(file("/etc/x", b"x")))),
        ("of kind '1'", Script::with(|s| s.entries.push(header("base/hard", b'1', 0)))),
        ("of kind '3'", Script::with(|s| s.entries.push(header("base/device", b'3', 0)))),
        ("of kind '2'", Script::with(|s| s.entries.push(header("base/1/link", b'2', 0)))),
        (
            "sent base/1/late behind global/pg_control",
            Script::with(|s| s.files.push(("base/1/late".to_owned(), vec![1]))),
        ),
        ("did not send a tablespace_map of", {
            Script::with(|s| s.files.insert(1, ("tablespace_map".to_owned(), b"16400 /elsewhere\n".to_vec())))
        }),
        ("bytes behind the archive's end", Script::with(|s| s.entries.push(vec![0; 512]))),
        ("an archive that is cut", Script::with(|s| s.cut = 1024 + 100)),
        ("did not send backup_label", Script::with(|s| drop(s.files.remove(0)))),
        ("did not send global/pg_control", Script::with(|s| drop(s.files.pop()))),
        ("pg_control with more bytes", Script::with(|s| s.contents("global/pg_control").resize(2 << 20, 0))),
        ("the server changed", Script::with(|s| *s.contents("global/pg_control") = other)),
        ("the timeline changed", Script::with(|s| s.end.1 = "2")),
        ("the timeline changed", Script::with(|s| s.end.0 = "0/700101")),
    ];
    let (sound, ..) = repositories();
    for (words, script) in wrong {
        let error = take(&sound, &script.play()).unwrap_err();
        let text = crate::error::chain(&error).to_string();
        assert!(text.contains(words), "{words:?} was expected: {text}");
        assert!(committed(&sound).is_empty(), "{words}");
    }
    take(&sound, &Script::new().play()).unwrap();
}

#[test]
fn a_server_of_a_major_that_nobody_knows_yet_is_refused_by_name() {
    let (sound, ..) = repositories();
    for version in ["19beta1", "12.22", ""] {
        let error = take(&sound, &Script::new().play_as(version)).unwrap_err();
        let words = format!("the server is PostgreSQL {version}; majors 13 to 18 are known here");
        assert_eq!((error.to_string(), error.kind()), (words, ErrorKind::Invalid));
        let BackupError::Remote(error) = error else { panic!("{error}") };
        assert!(error.hint().is_some_and(|hint| hint.contains("the walvault that is made for this server's major")));
    }
    assert!(committed(&sound).is_empty());
}
