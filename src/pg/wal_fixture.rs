//! WAL for tests: real segments of each major from `fixtures/wal`, and logs written record by record.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::{
    Lsn, PageHeader, PgTime, RecordHeader, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId, record_checksum,
};

/// The majors whose WAL is in `fixtures/wal`.
pub const MAJORS: [u16; 4] = [15, 16, 17, 18];

/// A record as `pg_waldump` lists it: start, resource manager, transaction, total length.
pub type Listed = (Lsn, u8, u32, usize);

/// Segments of 1 MiB, as all fixtures have.
pub fn one_mib() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn file(major: u16, name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/wal/{major}/{name}.zst"));
    let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(&packed[..]).unwrap()
}

/// Returns the segments of one timeline of a fixture, in order.
pub fn segments(major: u16, timeline: u32) -> Vec<(SegmentName, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/wal/{major}"));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter_map(|name| name.strip_suffix(".zst")?.parse::<SegmentName>().ok());
    let mut names: Vec<_> = names.filter(|name| name.timeline().number() == timeline).collect();
    names.sort();
    assert!(!names.is_empty());
    names.into_iter().map(|name| (name, file(major, &name.to_string()))).collect()
}

/// Returns what that major's `pg_waldump` lists for one timeline of a fixture.
pub fn listing(major: u16, timeline: u32) -> Vec<Listed> {
    const MANAGERS: [&str; 22] = [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
    ];
    let text = String::from_utf8(file(major, &format!("timeline{timeline}.txt"))).unwrap();
    let listed = text.lines().map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let manager = MANAGERS.iter().position(|name| *name == fields[1]).unwrap();
        (fields[0].parse().unwrap(), manager as u8, fields[2].parse().unwrap(), fields[3].parse().unwrap())
    });
    listed.collect()
}

/// Bytes of a checkpoint's record that the fixtures' first segment has right behind a backup's start, and where: a
/// `pg_control` of that moment has them, and this position.
fn first_checkpoint(segment: &[u8]) -> (Lsn, Vec<u8>) {
    let at = RecordHeader::LEN + 2;
    (Lsn::new(0x70_0060), segment[0x60 + at..][..super::Checkpoint::LEN].to_vec())
}

/// A `pg_control` of 15 with another system identifier and segments of 1 MiB.
pub fn control_of(system_id: SystemId) -> Vec<u8> {
    let path = format!("{}/fixtures/pgdata/15/pg_control", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = std::fs::read(path).unwrap();
    bytes[0..8].copy_from_slice(&system_id.number().to_le_bytes());
    // In production, with the checkpoint with which the backup begins: `state`, `checkPoint` and `checkPointCopy`.
    bytes[16..20].copy_from_slice(&6u32.to_le_bytes());
    let (checkpoint, copy) = first_checkpoint(&segments(15, 1)[0].1);
    bytes[32..40].copy_from_slice(&checkpoint.bytes().to_le_bytes());
    bytes[40..128].copy_from_slice(&copy);
    bytes[228..232].copy_from_slice(&(1u32 << 20).to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes.resize(8192, 0);
    bytes
}

/// The fixture's first segment of 15, cut off right behind its first checkpoint, with the record of the end of a backup that
/// began with it: from 0/700028 to 0/700100.
pub fn with_backup_end(segment: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RecordHeader::LEN];
    record[..4].copy_from_slice(&34u32.to_le_bytes());
    record[8..16].copy_from_slice(&0x70_0060u64.to_le_bytes());
    record[16] = 0x50;
    record.extend([255, 8]);
    record.extend(0x70_0028u64.to_le_bytes());
    let checksum = record_checksum(&record).unwrap();
    record[20..24].copy_from_slice(&checksum.to_le_bytes());
    let mut segment = segment.to_vec();
    segment[0xD8..].fill(0);
    segment[0xD8..][..record.len()].copy_from_slice(&record);
    segment
}

/// A log of segments of 1 MiB, written from the start of segment 1.
#[derive(Clone, Debug)]
pub struct Log {
    bytes: Vec<u8>,
    /// The start that the next record gives for the one before it.
    pub previous: Lsn,
    /// Start and total length of each record written.
    pub records: Vec<(Lsn, usize)>,
}

impl Log {
    /// Bytes in a page.
    pub const PAGE: usize = 8192;
    /// The cluster the log belongs to.
    pub const SYSTEM: SystemId = SystemId::new(77);
    const MAGIC: u16 = 0xD118;

    pub fn new() -> Self {
        let mut log = Self { bytes: Vec::new(), previous: Lsn::new(0x28), records: Vec::new() };
        log.page(0, 0);
        log
    }

    /// The position of the next byte.
    pub fn position(&self) -> Lsn {
        SegmentNo(1).start(one_mib()) + self.bytes.len() as u64
    }

    /// Writes the header of the page that begins at the position.
    fn page(&mut self, flags: u16, remaining: u32) {
        let position = self.position();
        let long = one_mib().offset_of(position) == 0;
        let flags = flags | if long { 2 } else { 0 } | if remaining > 0 { 1 } else { 0 };
        self.bytes.extend(Self::MAGIC.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(position.bytes().to_le_bytes());
        self.bytes.extend(u64::from(remaining).to_le_bytes());
        if long {
            self.bytes.extend(Self::SYSTEM.number().to_le_bytes());
            self.bytes.extend((1u32 << 20).to_le_bytes());
            self.bytes.extend((Self::PAGE as u32).to_le_bytes());
        }
        let length = if long { PageHeader::LONG } else { PageHeader::SHORT };
        debug_assert_eq!(self.bytes.len() % Self::PAGE, length);
    }

    /// Writes a record with this body, over as many pages as it takes.
    pub fn record(&mut self, manager: u8, info: u8, body: &[u8]) {
        self.record_of(0, manager, info, body);
    }

    /// Writes a plain commit.
    pub fn commit(&mut self, xid: u32, time: PgTime) {
        self.record_of(xid, 1, 0, &[&[255, 8], &time.micros().to_le_bytes()[..]].concat());
    }

    /// Fills the segment with a switch and zeros; the log goes on at the start of the next one.
    pub fn switch(&mut self) {
        self.record(0, 0x40, &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(one_mib().bytes() as usize), 0);
    }

    /// Forgets everything from a position on, at which a record ends or a segment begins.
    pub fn cut(&mut self, at: Lsn) {
        self.bytes.truncate((at - SegmentNo(1).start(one_mib())) as usize);
        self.records.retain(|(start, _)| *start < at);
        self.previous = self.records.last().map_or(Lsn::new(0x28), |(start, _)| *start);
    }

    /// As [`Log::record`], by a transaction.
    fn record_of(&mut self, xid: u32, manager: u8, info: u8, body: &[u8]) {
        let mut data = vec![0; RecordHeader::LEN];
        data[..4].copy_from_slice(&((RecordHeader::LEN + body.len()) as u32).to_le_bytes());
        data[4..8].copy_from_slice(&xid.to_le_bytes());
        data[8..16].copy_from_slice(&self.previous.bytes().to_le_bytes());
        data[16] = info;
        data[17] = manager;
        data.extend(body);
        let checksum = record_checksum(&data).unwrap();
        data[20..24].copy_from_slice(&checksum.to_le_bytes());
        if self.bytes.len().is_multiple_of(Self::PAGE) {
            self.page(0, 0);
        }
        let start = self.position();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let room = Self::PAGE - self.bytes.len() % Self::PAGE;
            if room == Self::PAGE {
                self.page(0, rest.len() as u32);
                continue;
            }
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = start;
        self.records.push((start, data.len()));
    }

    /// Cuts the log in the middle of its last record, at the end of the page in which that one begins, and goes on
    /// with a page that declares a record void: the one that begins at `lost`.
    pub fn overwrite(&mut self, lost: Lsn) {
        let (start, _) = self.records.pop().unwrap();
        let page = (start - SegmentNo(1).start(one_mib())) as usize / Self::PAGE;
        self.bytes.truncate((page + 1) * Self::PAGE);
        self.previous = self.records.last().unwrap().0;
        self.page(8, 0);
        let mut body = vec![255, 16];
        body.extend(lost.bytes().to_le_bytes());
        body.extend([0; 8]);
        self.record(0, 0xD0, &body);
    }

    /// Returns the segments, the last one filled with zeros.
    pub fn segments(&self) -> Vec<(SegmentName, Vec<u8>)> {
        let size = one_mib().bytes() as usize;
        let segments = self.bytes.chunks(size).zip(1..).map(|(bytes, number)| {
            let mut bytes = bytes.to_vec();
            bytes.resize(size, 0);
            (SegmentName::from_number(TimelineId::FIRST, SegmentNo(number), one_mib()), bytes)
        });
        segments.collect()
    }
}
