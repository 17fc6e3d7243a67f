//! Every parser of bytes that others wrote, as one function of any bytes: they must come to an end, take no more memory
//! than the bytes can justify, and never panic. The fuzzer (`make fuzz`) and a property test run the same table.
//!
//! What is protected by a digest or a CRC is tried twice: as it is, and with the protection made to fit, because who can
//! write to a repository can do that too.

use std::collections::BTreeMap;
use std::hint::black_box;

use walvault::config::{Given, Settings};
use walvault::format::object::{Kind, NewObject, Object, TAIL_BYTES};
use walvault::format::pack::FrameTable;
use walvault::format::recovery_plan::RecoveryPlan;
use walvault::format::{
    Sha256, changes, document, frame, gathered, index, leaf, manifest::Manifest, tables, varint, wal,
};
use walvault::instance::{ConnectionSettings, LibpqEnvironment};
use walvault::pg::page;
use walvault::pg::relation_file::RelationFile;
use walvault::pg::tablespace_map::TablespaceMap;
use walvault::pg::{
    BackupLabel, ControlFile, FirstPage, History, Lsn, PageHeader, Record, RecordBody, RecordHeader, SegmentName,
    SegmentSize, SystemId, TimelineId, WalEvent, WalFacts, WalFileName, WalMagic, Walker,
};
use walvault::repo::{LaneFacts, LaneId, Owner, RepositoryDocument};
use walvault::store::{Key, StoreUrl};

/// A parser, by the name that `WALVAULT_PARSER` gives the fuzzer.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them.
pub const PARSERS: &[Parser] = &[
    ("object", object),
    ("pack", pack),
    ("leaf", |bytes| drop(black_box(leaf::decode(bytes)))),
    ("leaf_entries", |bytes| drop(black_box(leaf::decode(&[&leaf::start(), bytes].concat())))),
    ("manifest", manifest),
    ("document", documents),
    ("frame", frames),
    ("varint", varints),
    ("wal_trailer", wal_trailer),
    ("index", index),
    ("gathered_index", gathered_index),
    ("changes", changes_of_segments),
    ("wal_page", wal_page),
    ("wal_record", wal_record),
    ("wal_walk", wal_walk),
    ("pg_control", pg_control),
    ("page", |bytes| {
        black_box(page::verify(bytes, 7));
        black_box(page::PageHeader::read(bytes).map(|header| header.is_sane(bytes.len())));
    }),
    ("backup_label", |bytes| drop(black_box(BackupLabel::parse(bytes)))),
    ("tablespace_map", |bytes| drop(black_box(TablespaceMap::parse(bytes)))),
    ("backup_manifest", backup_manifest),
    ("history", history),
    ("names", names),
    ("conninfo", conninfo),
    ("config", config),
    ("relation_name", |bytes| drop(black_box(text(bytes, |text| text.parse::<walvault::restore::RelationName>())))),
    ("time", |bytes| {
        drop(black_box(text(bytes, |text| walvault::restore::parse_time(text, chrono::DateTime::UNIX_EPOCH))))
    }),
];

const IDENTITY: &str = "7-1/000000010000000000000001";

fn text<T>(bytes: &[u8], parse: impl Fn(&str) -> T) -> Option<T> {
    std::str::from_utf8(bytes).ok().map(parse)
}

/// Makes an object around a body and a section, every digest fitting.
fn made(kind: Kind, body: &[u8], raw: Sha256, raw_len: u64, section: &[u8]) -> Vec<u8> {
    let mut object = NewObject::new(kind, IDENTITY).expect("a short identity");
    object.body().extend_from_slice(body);
    object.finish(raw, raw_len, section).0
}

/// Splits the bytes by their first two: a length, then the rest.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<2>() else { return (bytes, &[]) };
    rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*head))))
}

fn changes_of_segments(bytes: &[u8]) {
    drop(black_box(changes::find(bytes, bytes.len() as u64)));
    drop(black_box(changes::read(bytes)));
    drop(black_box(changes::parse_folder(bytes)));
    let versioned = [&[changes::CHANGES_VERSION], bytes].concat();
    if let Ok(Some(told)) = changes::read(&versioned) {
        let mut body = Vec::new();
        changes::append(&told, &Sha256::of(b""), &mut body);
        let object = made(Kind::Wal, &body, Sha256::of(b""), 0, b"");
        let found = changes::find(&object, object.len() as u64);
        assert!(matches!(found, Ok(changes::Found::Changes(again, _)) if *again == told));
    }
}

fn object(bytes: &[u8]) {
    for kind in [Kind::Wal, Kind::Pack, Kind::Manifest] {
        let opened = Object::open(bytes, kind, IDENTITY);
        black_box(opened.and_then(|object| object.contents(1 << 20)).ok());
    }
    let (claim, body) = split(bytes);
    let claimed = claim.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let stored = made(Kind::Wal, body, Sha256::of(bytes), claimed, claim);
    let object = Object::open(&stored, Kind::Wal, IDENTITY).expect("its digests fit");
    let contents = object.contents(1 << 20);
    let mut handed = Vec::new();
    let mut take = |part: &[u8]| {
        handed.extend_from_slice(part);
        Ok::<(), ()>(())
    };
    let came_out = object.contents_to(1 << 20, &mut take).is_ok();
    assert!(!came_out || contents.as_ref() == Ok(&handed), "part by part it is another file");
    assert!(contents.is_err() || contents.is_ok_and(|raw| raw == bytes), "contents of another digest were believed");
}

fn pack(bytes: &[u8]) {
    black_box(FrameTable::decode(bytes, bytes.len() as u64).ok());
    let (section, body) = split(bytes);
    let stored = made(Kind::Pack, body, Sha256::of(section), body.len() as u64, section);
    let Ok(table) = FrameTable::decode(&stored, stored.len() as u64) else { return };
    let mut raw = Vec::new();
    for place in 0..table.len() as u32 {
        let frame = table.frame(place).expect("it is in the table");
        let end = frame.at + u64::from(frame.stored_len);
        let stored = &stored[frame.at as usize..end as usize];
        black_box(frame.read(stored, &mut raw).ok());
    }
}

/// Four documents and a section that describes them, every digest fitting.
fn manifest(bytes: &[u8]) {
    black_box(Manifest::decode_whole(bytes, IDENTITY).ok());
    let (mut body, mut section, mut rest) = (Vec::new(), Vec::new(), bytes);
    for _ in 0..4 {
        let (document, after) = split(rest);
        let mut stored = Vec::new();
        frame::append_raw(document, &mut stored);
        section.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        section.extend_from_slice(&(document.len() as u32).to_le_bytes());
        section.extend_from_slice(Sha256::of(&stored).bytes());
        body.extend_from_slice(&stored);
        rest = after;
    }
    let len = bytes.len() as u64;
    black_box(Manifest::decode(&made(Kind::Manifest, &body, Sha256::of(&section), len, &section), IDENTITY).ok());
    black_box(Manifest::decode_whole(&made(Kind::Manifest, &body, Sha256::of(&section), len, &section), IDENTITY).ok());
    // The tables alone: nothing else has to make sense for them to be read.
    let Ok(packs) = tables::PackTable::decode(bytes) else { return };
    black_box(tables::decode_leaves(rest, &packs).ok());
}

fn documents(bytes: &[u8]) {
    let mut fitting = bytes.to_vec();
    fitting.extend_from_slice(format!("\"sha256\": \"{}\"}}\n", Sha256::of(bytes)).as_bytes());
    for bytes in [bytes, &fitting] {
        black_box(document::decode::<RepositoryDocument>(bytes, "repository.json").ok());
        black_box(document::decode::<LaneFacts>(bytes, "lane.json").ok());
        black_box(document::decode::<Owner>(bytes, "owner").ok());
        let Ok(plan) = RecoveryPlan::decode(bytes) else { continue };
        let name = "000000010000000000000007".parse::<SegmentName>().expect("a name");
        black_box((plan.segment(name), plan.passes(TimelineId::FIRST), plan.is_target_of("x")));
    }
}

fn frames(bytes: &[u8]) {
    for raw_len in [0, 1, bytes.len(), 100_000] {
        let decompressed = frame::decompress(bytes, raw_len);
        assert!(decompressed.is_err() || decompressed.is_ok_and(|raw| raw.len() == raw_len));
    }
}

fn varints(bytes: &[u8]) {
    let mut reader = varint::Reader::new(bytes, "numbers");
    while let Ok(number) = reader.number() {
        let mut again = Vec::new();
        varint::put(number, &mut again);
        assert!(again.len() <= 10);
    }
    black_box(varint::Reader::new(bytes, "numbers").counted().ok());
    black_box(varint::Reader::new(bytes, "numbers").signed().ok());
    black_box(varint::Reader::new(bytes, "numbers").small().ok());
}

fn wal_trailer(bytes: &[u8]) {
    black_box(wal::decode_facts(bytes, bytes.len() as u64).ok());
    let stored = made(Kind::Wal, &[], Sha256::of(&[]), 0, bytes);
    let (_, facts) = wal::decode_facts(&stored, stored.len() as u64).expect("its digests fit");
    if let Some(facts) = facts {
        let json = serde_json::to_vec(&facts).expect("it came from JSON");
        assert_eq!(serde_json::from_slice::<WalFacts>(&json).ok(), Some(facts));
    }
    // The last bytes alone, of an object that is longer.
    let last = &stored[stored.len() - TAIL_BYTES..];
    black_box(wal::decode_facts(last, stored.len() as u64).ok());
}

fn index(bytes: &[u8]) {
    black_box(index::decode(bytes, IDENTITY).ok());
    let mut body = Vec::new();
    frame::append_raw(bytes, &mut body);
    let stored = made(Kind::Index, &body, Sha256::of(bytes), bytes.len() as u64, &[]);
    if let Ok(members) = index::decode(&stored, IDENTITY) {
        let again = index::encode(IDENTITY, &members).expect("a short identity");
        assert_eq!(index::decode(&again, IDENTITY).ok(), Some(members));
    }
}

fn gathered_index(bytes: &[u8]) {
    black_box(gathered::decode(bytes, IDENTITY).ok());
    if let Ok(read) = gathered::parse(bytes) {
        read.names().for_each(|name| drop(black_box(read.get(name))));
    }
}

fn wal_page(bytes: &[u8]) {
    black_box(PageHeader::read(bytes).map(|header| (header.overwrites(), header.flags_are_known())));
    let name = "000000010000000000000007".parse::<SegmentName>().expect("a name");
    if let Ok(page) = FirstPage::parse(bytes) {
        black_box(page.belongs_to(name, SegmentSize::DEFAULT, Some(SystemId::new(7))).ok());
    }
}

fn wal_record(bytes: &[u8]) {
    black_box(RecordHeader::read(bytes));
    for magic in [0xD106, 0xD10B, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118, 0xFFFF].map(WalMagic::new) {
        black_box(RecordBody::decode(bytes, magic).ok());
        let Some([resource_manager, info]) = bytes.first_chunk::<2>().copied() else { return };
        let record = Record {
            start: Lsn::new(8),
            end: Lsn::new(8 + bytes.len() as u64),
            magic,
            xid: 7,
            resource_manager: resource_manager % 8,
            info,
            data: &bytes[2..],
        };
        black_box((record.is_switch(), record.kind(), WalEvent::read(&record)));
    }
}

fn wal_walk(bytes: &[u8]) {
    let size = SegmentSize::new(1 << 20).expect("1 MiB");
    let name = "000000010000000000000007".parse::<SegmentName>().expect("a name");
    let mut walker = Walker::new(None, size);
    black_box(walker.segment(name, bytes, &mut |record| drop(black_box(WalEvent::read(record)))));
    // A record that these bytes leave open is gone on with in the next segment's.
    let next = "000000010000000000000008".parse::<SegmentName>().expect("a name");
    black_box(walker.segment(next, bytes, &mut |_| {}));
    black_box(WalFacts::of_segment(name, bytes, size, Some(SystemId::new(7))));
}

fn pg_control(bytes: &[u8]) {
    black_box(ControlFile::parse(bytes).ok());
    // The checksum's place differs between majors; all of them are made to fit, one after the other.
    for at in (256..bytes.len().min(320)).step_by(4) {
        let mut fitting = bytes.to_vec();
        let crc = crc32c::crc32c(&fitting[..at]);
        let Some(room) = fitting.get_mut(at..at + 4) else { break };
        room.copy_from_slice(&crc.to_le_bytes());
        if ControlFile::parse(&fitting).is_ok() {
            let poisoned = ControlFile::poisoned(&fitting).expect("it was read");
            assert!(ControlFile::parse(&poisoned).is_ok_and(|control| control.is_poisoned()));
        }
    }
}

fn backup_manifest(bytes: &[u8]) {
    use walvault::pg::backup_manifest::BackupManifest;
    black_box(BackupManifest::parse(bytes).ok());
    let mut fitting = [bytes, b"\n"].concat();
    let digest = Sha256::of(&fitting);
    fitting.extend_from_slice(format!("\"Manifest-Checksum\": \"{digest}\"}}\n").as_bytes());
    black_box(BackupManifest::parse(&fitting).ok());
}

fn history(bytes: &[u8]) {
    let timeline = TimelineId::new(7).expect("not 0");
    let parsed = text(bytes, |text| History::parse(timeline, text));
    if let Some(Ok(history)) = parsed {
        black_box((history.forks().len(), history.fork_of(TimelineId::FIRST)));
    }
}

/// What reads back from its own spelling is the same.
fn round<T: std::str::FromStr + ToString + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{text:?}");
    }
}

fn names(bytes: &[u8]) {
    black_box(RelationFile::parse(bytes));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    round::<WalFileName>(text);
    round::<SegmentName>(text);
    round::<Lsn>(text);
    round::<SystemId>(text);
    round::<LaneId>(text);
    round::<Key>(text);
    round::<Sha256>(text);
    round::<walvault::pg::PgTime>(text);
    black_box(text.parse::<StoreUrl>().ok());
}

fn conninfo(bytes: &[u8]) {
    let environment = LibpqEnvironment::default();
    if let Some(Ok(settings)) = text(bytes, |text| ConnectionSettings::resolve(Some(text), &environment, None)) {
        black_box(settings.target());
    }
}

fn config(bytes: &[u8]) {
    let place = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(place.path(), bytes).expect("it can be written");
    let given = Given {
        repository: Some("file:///nowhere"),
        cluster: Some("main"),
        file: Some(place.path()),
        environment: BTreeMap::new(),
        clouds: BTreeMap::new(),
    };
    for strict in [true, false] {
        if let Ok(settings) = Settings::gather(&given, strict) {
            black_box((settings.threads(), settings.seconds("push_timeout"), settings.compression_level()));
        }
    }
}
