//! Makes a synthetic repository of a year of WAL at one segment a minute, with weekly backups and 20 timelines, and prints
//! what it takes to load it: without indexes, with one for each folder, and with those gathered; on a volume and in a
//! bucket of S3 on loopback. Then how fast a hint is made, and what that adds to a push.
//!
//! `cargo bench --bench year -- 525600 /var/tmp` says how many segments, and where there is room: a year takes 2 GB. The
//! hints are as large as a busy server's; the segments behind them are empty, but for the last three of each timeline. Every phase
//! is a process of its own, so that its peak is its own.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use walvault::catalog::{
    LaneCatalog, gathering_wanted, indexes_made, perform_gathering, perform_indexing, plan_indexing,
};
use walvault::format::manifest::{Envelope, Manifest};
use walvault::format::object::{Kind, NewObject};
use walvault::format::tables::Tables;
use walvault::format::{Sha256, frame, sample, wal};
use walvault::pg::timeline::TimelineId;
use walvault::pg::wal_facts::{
    CheckpointFact, FactsEnd, FactsWalk, RemovalFact, SegmentBegin, WAL_FACTS_VERSION, WalFacts,
};
use walvault::pg::wal_name::WalFileName;
use walvault::pg::wal_record::RelationLocator;
use walvault::pg::{Lsn, PgTime, SegmentName, SegmentNo, SegmentSize, SystemId, record_checksum};
use walvault::repo::{LANE_VERSION, Lane, LaneFacts, Repository};
use walvault::restore::{Purpose, Request, Target, chronicle, plan, reach};
use walvault::store::{Access, RetryPolicy, Store, StoreUrl, Verb};

#[path = "../tests/it/support/http_server.rs"]
#[allow(dead_code)]
mod http_server;
#[path = "../tests/it/support/object_server.rs"]
#[allow(dead_code)]
mod object_server;
#[path = "../tests/it/support/signature.rs"]
#[allow(dead_code)]
mod signature;

use object_server::{Dialect, ObjectServer};

type Outcome<T> = Result<T, Box<dyn Error>>;

const TIMELINES: u64 = 20;
const WEEK: u64 = 7 * 24 * 60;
const FIRST: u64 = 256;
const SYSTEM: u64 = 7;
const CLUSTER: &str = "bench";
/// 2026-01-01, in microseconds since 2000.
const BEGAN: i64 = 820_540_800_000_000;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", place, segments] => write(Path::new(place), segments.parse()?),
        ["load", place, what] => load(&volume(Path::new(place))?, what),
        ["index", place] => make_indexes(&volume(Path::new(place))?, Path::new(place)),
        ["gather", place] => gather(&volume(Path::new(place))?, Path::new(place)),
        ["bucket", place, what] => bucket(Path::new(place), what),
        ["hints"] => hints(),
        [segments, room] => run(segments, Path::new(room)),
        [] => run("525600", Path::new("/var/tmp")),
        _ => Err("say how many segments, and where there is room".into()),
    }
}

fn run(segments: &str, room: &Path) -> Outcome<()> {
    let place = tempfile::tempdir_in(room)?;
    let place = place.path().to_str().ok_or("a path of plain text")?;
    let phases: [&[&str]; 9] = [
        &["write", place, segments],
        &["load", place, "without indexes"],
        &["index", place],
        &["load", place, "with an index for each folder"],
        &["bucket", place, "with an index for each folder"],
        &["gather", place],
        &["load", place, "with gathered indexes"],
        &["bucket", place, "with gathered indexes"],
        &["hints"],
    ];
    for phase in phases {
        if !Command::new(std::env::current_exe()?).args(phase).status()?.success() {
            return Err("a phase failed".into());
        }
    }
    Ok(())
}

fn size() -> SegmentSize {
    SegmentSize::DEFAULT
}

fn time(number: u64) -> Option<PgTime> {
    PgTime::from_micros(BEGAN + (number * 60_000_000).cast_signed())
}

fn lane(store: Store) -> Outcome<Lane> {
    let (repository, _) = Repository::init(store, CLUSTER)?;
    let facts = LaneFacts {
        version: LANE_VERSION,
        system_id: SystemId::new(SYSTEM),
        epoch: 1,
        major: 17,
        catalog_version: 202_406_281,
        segment_size: size().bytes() as u32,
        block_size: 8192,
        wal_block_size: 8192,
        parent: None,
    };
    Ok(repository.lane_for(&facts)?)
}

fn volume(place: &Path) -> Outcome<Lane> {
    let url: StoreUrl = format!("file://{}", place.display()).parse()?;
    lane(Store::open(&url, &Access::default(), RetryPolicy::default())?)
}

/// The timeline that a segment was written on, and whether it is that timeline's last.
fn timeline_of(number: u64, segments: u64) -> (TimelineId, bool) {
    let each = segments.div_ceil(TIMELINES);
    let (place, within) = ((number - FIRST) / each, (number - FIRST) % each);
    let last = within + 1 == each || number + 1 == FIRST + segments;
    (TimelineId::new(place as u32 + 1).unwrap_or(TimelineId::FIRST), last)
}

fn write(place: &Path, segments: u64) -> Outcome<()> {
    let started = Instant::now();
    let lane = volume(place)?;
    let suffix = ".zst";
    let root = place.join(CLUSTER).join(lane.id().to_string()).join("wal");
    let mut history = String::new();
    for number in FIRST..FIRST + segments {
        let (timeline, last) = timeline_of(number, segments);
        let name = SegmentName::from_number(timeline, SegmentNo(number), size());
        let folder = root.join(timeline.hex().to_string()).join(name.middle());
        if !folder.exists() {
            fs::create_dir_all(&folder)?;
        }
        // Whoever reads the last one, and what lies before it, begins in the one before that, where a record could have
        // begun.
        let real_one = (0..3).any(|ahead| timeline_of(number + ahead, segments).1);
        let object = if real_one { real(&lane, name, number)? } else { synthetic(&lane, name, number)? };
        fs::write(folder.join(format!("{name}{suffix}")), object)?;
        // The next one forks off at the start of the segment that comes next.
        if last && number + 1 < FIRST + segments {
            let fork = SegmentNo(number + 1).start(size());
            history.push_str(&format!("{timeline}\t{fork}\tno recovery target specified\n"));
            let child = TimelineId::new(timeline.number() + 1).ok_or("a timeline")?;
            let encoded = encode(&lane, &WalFileName::History(child), history.as_bytes())?;
            lane.create_wal(&WalFileName::History(child), &encoded)?;
        }
    }
    for week in 0..segments.div_ceil(WEEK) {
        let number = FIRST + week * WEEK;
        lane.commit(&manifest(&lane, number, timeline_of(number, segments).0)?, &Tables::default())?;
    }
    report("write", started, None, &format!("{segments} segments"))
}

fn encode(lane: &Lane, name: &WalFileName, raw: &[u8]) -> Outcome<wal::EncodedWal> {
    let walk = match name {
        WalFileName::Segment(name) => Some(FactsWalk::new(*name, size(), Some(lane.facts().system_id))),
        _ => None,
    };
    Ok(wal::encode(&lane.wal_identity(name), &raw, raw.len() as u64, 1, 1, walk)?)
}

/// A segment of one commit and a switch, as a server writes them.
fn real(lane: &Lane, name: SegmentName, number: u64) -> Outcome<Vec<u8>> {
    let start = SegmentNo(number).start(size());
    let mut raw = Vec::new();
    raw.extend(0xD116_u16.to_le_bytes());
    raw.extend(2_u16.to_le_bytes());
    raw.extend(name.timeline().number().to_le_bytes());
    raw.extend(start.bytes().to_le_bytes());
    raw.extend([0; 8]);
    raw.extend(SYSTEM.to_le_bytes());
    raw.extend((size().bytes() as u32).to_le_bytes());
    raw.extend(8192_u32.to_le_bytes());
    let micros = time(number).ok_or("a time")?.micros().to_le_bytes();
    // The switch that ends the segment before, if that is such a one too: behind its header and a commit.
    let mut previous = SegmentNo(number - 1).start(size()) + 80;
    for (manager, info, body) in [(1, 0, [&[255, 8], &micros[..]].concat()), (0, 0x40, Vec::new())] {
        raw.resize(raw.len().next_multiple_of(8), 0);
        let at = start + raw.len() as u64;
        let mut record = Vec::new();
        record.extend((24 + body.len() as u32).to_le_bytes());
        record.extend((number as u32).to_le_bytes());
        record.extend(previous.bytes().to_le_bytes());
        record.extend([info, manager, 0, 0, 0, 0, 0, 0]);
        record.extend(body);
        let checksum = record_checksum(&record).ok_or("a record")?;
        record[20..24].copy_from_slice(&checksum.to_le_bytes());
        raw.extend(record);
        previous = at;
    }
    raw.resize(size().bytes() as usize, 0);
    let encoded = encode(lane, &WalFileName::Segment(name), &raw)?;
    let facts = encoded.facts.ok_or("no facts")?;
    if !matches!(facts.end, FactsEnd::Switched { .. }) || facts.commits != 1 {
        return Err(format!("the segment was not understood: {facts:?}").into());
    }
    Ok(encoded.object.to_vec())
}

/// An object with the hint of a busy segment, and nothing behind it.
fn synthetic(lane: &Lane, name: SegmentName, number: u64) -> Outcome<Vec<u8>> {
    let start = SegmentNo(number).start(size());
    let at = |offset: u64| Some(Lsn::new(start.bytes() + offset));
    let xid = (number * 900) as u32;
    let mut facts = WalFacts {
        indexer: WAL_FACTS_VERSION,
        begins: SegmentBegin::Continuation { remaining: (number * 37 % 8000) as u32 },
        first_record: at(40 + number * 8 % 8000),
        last_complete_start: at(16_777_000),
        last_complete_end: at(16_777_100),
        records: 110_000 + number % 9000,
        commits: 900,
        aborts: number % 7,
        min_time: time(number),
        max_time: PgTime::from_micros(BEGAN + (number * 60_000_000 + 59_900_000).cast_signed()),
        min_xid: Some(xid),
        max_xid: Some(xid + 900),
        end: FactsEnd::Open { start: at(16_777_104).unwrap_or_default(), resource_manager: Some(10), info: Some(0) },
        ..WalFacts::default()
    };
    if number.is_multiple_of(5) {
        facts
            .checkpoints
            .push(CheckpointFact { at: at(5_000_000).unwrap_or_default(), redo: at(1_000_000).unwrap_or_default() });
    }
    if number.is_multiple_of(50) {
        let file = |n: u64| RelationLocator { tablespace: 1663, database: 16_384, relation: (number + n) as u32 };
        facts.removals.push(RemovalFact {
            at: at(6_000_000).unwrap_or_default(),
            end: at(6_000_200).unwrap_or_default(),
            xid,
            time: time(number),
            relations: Vec::new(),
            files: (0..3).map(file).collect(),
        });
    }
    let raw = number.to_le_bytes();
    let mut object = NewObject::new(Kind::Wal, lane.wal_identity(&WalFileName::Segment(name)))?;
    frame::append_raw(&raw, object.body());
    Ok(object.finish(Sha256::of(&raw), raw.len() as u64, &serde_json::to_vec(&facts)?).0)
}

fn manifest(lane: &Lane, number: u64, timeline: TimelineId) -> Outcome<Manifest> {
    let at = time(number).ok_or("a time")?.to_utc();
    let start = SegmentNo(number).start(size()) + 0x28;
    let id = format!("{}-{number:06x}", at.format("%Y%m%dT%H%M%SZ"));
    let Manifest { envelope, root } = sample::manifest(&lane.id().to_string(), lane.id().system_id(), &id);
    let envelope = Envelope {
        timeline,
        start_lsn: start,
        stop_lsn: start + 0x1000,
        started_at: at,
        stopped_at: at,
        segment_size: size().bytes() as u32,
        bytes: 1 << 40,
        stored_bytes: 1 << 38,
        files: 10_000,
        ..envelope
    };
    Ok(Manifest { envelope, root })
}

/// Loads the catalogue, and asks what `timelines`, `plan` and `report` ask.
fn load(lane: &Lane, what: &str) -> Outcome<()> {
    let mut before = lane.repository().store().requests();
    let mut said = |name: &str, started: Instant| -> Outcome<()> {
        let now = lane.repository().store().requests();
        let of = |verb| now.of(verb) - before.of(verb);
        let (list, get, range) = (of(Verb::List), of(Verb::Get), of(Verb::GetRange));
        before = now;
        report(name, started, Some(what), &format!("{list} lists, {get} reads, {range} ranges"))
    };
    let started = Instant::now();
    let catalog = LaneCatalog::load(lane)?;
    said("catalogue", started)?;
    let started = Instant::now();
    let reached = reach(lane, &catalog)?;
    let restorable: usize = reached.iter().map(|one| one.restorable.len()).sum();
    if reached.len() as u64 != TIMELINES || restorable < reached.len() {
        return Err(format!("{} timelines, {restorable} stretches", reached.len()).into());
    }
    said("timelines", started)?;
    let started = Instant::now();
    let last = catalog.timelines.last().ok_or("no timelines")?;
    let moment = reached.last().and_then(|one| one.restorable.last()?.to_time).ok_or("no time")?.to_utc();
    let request = Request {
        target: Target::Time(moment - Duration::from_secs(30)),
        purpose: Purpose::Clone,
        exclusive: false,
        timeline: Some(last.timeline),
        backup: None,
    };
    // Before the last commit of all, which is in a real segment: what a hint says is confirmed in the segment itself.
    let planned = plan(lane, &catalog, &request).map_or_else(|error| error.to_string(), |_| String::new());
    if !planned.is_empty() && !planned.contains("no transaction ended after that moment") {
        return Err(planned.into());
    }
    said("plan to a time", started)?;
    // The branch is not named, and half of them lead there.
    let started = Instant::now();
    let middle = reached.get(reached.len() / 2).and_then(|one| one.restorable.last()?.to_time).ok_or("no time")?;
    let target = Target::Time(middle.to_utc() - Duration::from_secs(30));
    let request = Request { target, timeline: None, ..request };
    plan(lane, &catalog, &request)?;
    said("plan, any branch", started)?;
    // Nothing is of that name: every branch is searched from its oldest backup on.
    let started = Instant::now();
    let request = Request { target: Target::Name("nowhere".to_owned()), ..request };
    match plan(lane, &catalog, &request) {
        Err(walvault::restore::PlanError::Unreachable { refusals }) if refusals.len() as u64 == TIMELINES => {}
        other => return Err(format!("a point that nobody made was found: {other:?}").into()),
    }
    said("plan to a name", started)?;
    let started = Instant::now();
    let told = chronicle(lane, &catalog)?;
    if told.iter().any(|one| one.clock.is_empty()) {
        return Err("a timeline without a time".into());
    }
    said("events", started)
}

fn make_indexes(lane: &Lane, place: &Path) -> Outcome<()> {
    let started = Instant::now();
    let catalog = LaneCatalog::load(lane)?;
    let jobs = plan_indexing(&catalog, &indexes_made(lane, &catalog)?);
    let mut segments = 0;
    for job in &jobs {
        perform_indexing(lane, &catalog, job)?;
        segments += job.segments.len() as u64;
    }
    let bytes = bytes_below(&index_folder(lane, place), false)?;
    report("index", started, None, &format!("{} indexes, {} bytes a segment", jobs.len(), bytes / segments.max(1)))
}

fn gather(lane: &Lane, place: &Path) -> Outcome<()> {
    let started = Instant::now();
    let catalog = LaneCatalog::load(lane)?;
    let segments: usize = catalog.timelines.iter().map(|timeline| timeline.segments.len()).sum();
    let jobs = gathering_wanted(lane, &catalog)?;
    for job in &jobs {
        perform_gathering(lane, job)?;
    }
    let bytes = bytes_below(&index_folder(lane, place), true)?;
    report("gather", started, None, &format!("{} indexes, {} bytes a segment", jobs.len(), bytes / segments as u64))
}

fn index_folder(lane: &Lane, place: &Path) -> PathBuf {
    place.join(CLUSTER).join(lane.id().to_string()).join("index")
}

/// Bytes of the files below a folder: of gathered indexes, or of the others.
fn bytes_below(folder: &Path, gathered: bool) -> Outcome<u64> {
    let is_gathered = folder.file_name().is_some_and(|name| name.to_string_lossy().contains('-'));
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => bytes_below(&entry.path(), gathered)?,
            false if is_gathered == gathered => entry.metadata()?.len(),
            false => 0,
        };
    }
    Ok(bytes)
}

/// Loads the same repository out of a bucket on loopback, whose server is this process too.
fn bucket(place: &Path, what: &str) -> Outcome<()> {
    let server = ObjectServer::start(Dialect::S3).paging(1000);
    let mut waiting = vec![place.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let key = path.strip_prefix(place)?.to_str().ok_or("a path of plain text")?;
                server.put(key, &fs::read(&path)?);
            }
        }
    }
    let mut access = Access::default();
    access.s3.endpoint = Some(server.url());
    access.environment.insert("AWS_ACCESS_KEY_ID".to_owned(), "bench".to_owned());
    access.environment.insert("AWS_SECRET_ACCESS_KEY".to_owned(), "the secret".to_owned());
    let store = Store::open(&"s3://bucket".parse()?, &access, RetryPolicy::default())?;
    let lane = lane(store)?;
    server.take_noted();
    load(&lane, &format!("{what}, S3"))?;
    println!("{:<16}{} requests that the server answered", "", server.take_noted().len());
    Ok(())
}

/// How fast the records of real segments are walked, and what that adds to a push.
fn hints() -> Outcome<()> {
    for major in ["15", "18"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wal").join(major);
        let mut segments: Vec<(SegmentName, Vec<u8>)> = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".zst")?.parse().ok());
            if let Some(name) = name {
                segments.push((name, zstd::decode_all(&fs::read(&path)?[..])?));
            }
        }
        let size = SegmentSize::new(1 << 20)?;
        let (mut bytes, mut records, started) = (0, 0, Instant::now());
        while started.elapsed() < Duration::from_secs(3) {
            for (name, raw) in &segments {
                records += WalFacts::of_segment(*name, raw, size, None).records;
                bytes += raw.len();
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let speed = bytes as f64 / seconds / 1e6;
        let every = records as f64 / seconds / 1e6;
        let pushed = |walk: bool| -> Outcome<Duration> {
            let started = Instant::now();
            let mut rounds = 0;
            while started.elapsed() < Duration::from_secs(3) {
                for (name, raw) in &segments {
                    let walk = walk.then(|| FactsWalk::new(*name, size, None));
                    wal::encode("7-1/x", &&raw[..], raw.len() as u64, 3, 1, walk)?;
                    rounds += 1;
                }
            }
            Ok(started.elapsed() / rounds)
        };
        let (without, with) = (pushed(false)?, pushed(true)?);
        println!(
            "hints of PostgreSQL {major}: {speed:.0} MB/s, {every:.1} million records a second; encoding 1 MiB {:.2} ms, with \
             its hint {:.2} ms",
            without.as_secs_f64() * 1e3,
            with.as_secs_f64() * 1e3
        );
    }
    Ok(())
}

fn report(phase: &str, started: Instant, what: Option<&str>, more: &str) -> Outcome<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    let what = what.map_or_else(String::new, |what| format!(" ({what})"));
    let seconds = started.elapsed().as_secs_f64();
    println!("{phase:<14}  {seconds:>7.2} s  peak {:>4} MB  {more}{what}", kib / 1000);
    Ok(())
}
