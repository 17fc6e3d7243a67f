//! Gathered indexes: what the indexes of many folders say, in one object, so that a log of years is searched in few
//! requests and little memory.
//!
//! They add nothing to the indexes that they gather, which they pin by digest: one whose folders have other indexes now is
//! stale there. Each segment is a row of some eighty bytes that is decoded when it is asked for; whatever is rare in a
//! segment's facts, or unknown to this version, is kept in the row as JSON, so that nothing is lost.

use super::FormatError;
use super::digest::Sha256;
use super::frame::Compressor;
use super::index::{INDEX_LIMIT, IndexedSegment};
use super::object::{Kind, NewObject, Object};
use super::varint::{self, Reader};
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_facts::{FactsEnd, SegmentBegin, WalFacts};

/// Version of the contents. Readers know every version, writers write the last.
/// - 1: first release.
pub const GATHERED_VERSION: u8 = 1;

const NAME: &str = "gathered index";
const MAGIC: &[u8; 3] = b"WVG";
const LEVEL: i32 = 3;
const DIGEST_BYTES: usize = 32;

/// A folder, and the digest that names its index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatheredFolder {
    /// Digits 9 to 16 of the names of its segments.
    pub middle: String,
    /// The index's digest.
    pub index: Sha256,
}

/// A gathered index, read.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// The folders, in order.
    pub folders: Vec<GatheredFolder>,
    timeline: TimelineId,
    size: SegmentSize,
    base: i64,
    rows: Vec<u8>,
    /// Number of each segment, and where its row begins.
    places: Vec<(u64, u32)>,
}

/// Returns the digest that names an index gathered of these folders' indexes.
pub fn folders_digest(folders: &[GatheredFolder]) -> Sha256 {
    let text: String = folders.iter().map(|folder| format!("{} {}\n", folder.middle, folder.index)).collect();
    Sha256::of(text.as_bytes())
}

/// Encodes an index for `identity`; `members` in the order of their names, all of one timeline.
///
/// # Errors
/// [`FormatError::Identity`], [`FormatError::Nonsense`] for members that do not come back as they are.
pub fn encode(
    identity: &str,
    timeline: TimelineId,
    size: SegmentSize,
    folders: &[GatheredFolder],
    members: &[IndexedSegment],
) -> Result<Vec<u8>, FormatError> {
    let base = members.iter().find_map(|one| one.facts.min_time).map_or(0, PgTime::micros);
    let mut contents = [&MAGIC[..], &[GATHERED_VERSION]].concat();
    varint::put(u64::from(timeline.number()), &mut contents);
    varint::put(size.bytes(), &mut contents);
    contents.extend(base.to_le_bytes());
    varint::put(folders.len() as u64, &mut contents);
    for folder in folders {
        contents.extend(folder.middle.as_bytes());
        contents.extend(folder.index.bytes());
    }
    varint::put(members.len() as u64, &mut contents);
    let mut row = Vec::new();
    for one in members {
        row.clear();
        let nonsense =
            |problem: &str| FormatError::Nonsense { document: NAME, problem: format!("{}: {problem}", one.segment) };
        let number = one.segment.number(size).map_err(|_| nonsense("a name of another size"))?;
        put_row(one, number, size, base, &mut row);
        varint::put(row.len() as u64, &mut contents);
        contents.extend(&row);
    }
    let read = Gathered::of(contents.clone())?;
    if read.folders != folders
        || read.len() != members.len()
        || members.iter().any(|one| read.get(one.segment).as_ref() != Some(one))
    {
        return Err(FormatError::Nonsense { document: NAME, problem: "it does not come back as it is".to_owned() });
    }
    let mut object = NewObject::new(Kind::Index, identity)?;
    Compressor::new(LEVEL).append(&contents, object.body());
    Ok(object.finish(Sha256::of(&contents), contents.len() as u64, &[]).0)
}

/// Reads an index that was stored for `identity`; every byte is verified.
///
/// # Errors
/// Whatever [`Object::open`] and [`Object::contents`] find, [`FormatError::Version`], [`FormatError::Nonsense`].
pub fn decode(stored: &[u8], identity: &str) -> Result<Gathered, FormatError> {
    Gathered::of(Object::open(stored, Kind::Index, identity)?.contents(INDEX_LIMIT)?)
}

/// Returns the folders that an object says it gathers, without looking at its rows; for tests and bytes that nobody trusts.
///
/// # Errors
/// As [`decode`].
pub fn parse(contents: &[u8]) -> Result<Gathered, FormatError> {
    Gathered::of(contents.to_vec())
}

impl Gathered {
    fn of(rows: Vec<u8>) -> Result<Self, FormatError> {
        let mut reader = Reader::new(&rows, NAME);
        if reader.bytes(3)? != MAGIC {
            return Err(reader.nonsense("it does not begin like one"));
        }
        let version = reader.byte()?;
        if version != GATHERED_VERSION {
            return Err(FormatError::Version { found: version.into(), known: GATHERED_VERSION.into() });
        }
        let timeline = TimelineId::new(reader.small()?).ok_or_else(|| reader.nonsense("timeline 0"))?;
        let size = SegmentSize::new(reader.small()?).map_err(|error| reader.nonsense(error.to_string()))?;
        let base = reader.bytes(8)?.try_into().map(i64::from_le_bytes).map_err(|_| reader.nonsense("no base"))?;
        let mut folders: Vec<GatheredFolder> = Vec::new();
        for _ in 0..reader.number()? {
            let middle = String::from_utf8_lossy(reader.bytes(8)?).into_owned();
            let index = digest(&mut reader)?;
            if folders.last().is_some_and(|last| last.middle >= middle) {
                return Err(reader.nonsense("folders out of order"));
            }
            folders.push(GatheredFolder { middle, index });
        }
        let count = reader.number()?;
        let mut places: Vec<(u64, u32)> = Vec::new();
        for _ in 0..count {
            let len = reader.small()? as usize;
            let at = u32::try_from(rows.len() - reader.remaining()).map_err(|_| reader.nonsense("too long"))?;
            let row = reader.bytes(len)?;
            let number = Reader::new(row, NAME).number()?;
            let in_order = places.last().is_none_or(|(last, _)| *last < number);
            // Counted in segments, the log ends where positions do.
            if !in_order || number > u64::MAX / size.bytes() {
                return Err(reader.nonsense("segments out of order"));
            }
            places.push((number, at));
        }
        if !reader.is_empty() {
            return Err(reader.nonsense("more than its rows"));
        }
        places.shrink_to_fit();
        Ok(Self { folders, timeline, size, base, rows, places })
    }

    /// How many segments it has.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The timeline of its segments.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Bytes of each of its segments.
    pub fn size(&self) -> SegmentSize {
        self.size
    }

    /// The names of its segments, in order.
    pub fn names(&self) -> impl Iterator<Item = SegmentName> {
        self.places.iter().map(|(number, _)| SegmentName::from_number(self.timeline, SegmentNo(*number), self.size))
    }

    /// Returns what it says of a segment; `None` also for a row that makes no sense.
    pub fn get(&self, segment: SegmentName) -> Option<IndexedSegment> {
        let (number, mut reader) = self.row(segment)?;
        read_row(&mut reader, segment, number, self.size, self.base).ok()
    }

    fn row(&self, segment: SegmentName) -> Option<(SegmentNo, Reader<'_>)> {
        let number = segment.number(self.size).ok().filter(|_| segment.timeline() == self.timeline)?;
        let place = self.places.binary_search_by_key(&number.0, |(number, _)| *number).ok()?;
        let mut reader = Reader::new(&self.rows[self.places[place].1 as usize..], NAME);
        reader.number().ok()?;
        Some((number, reader))
    }
}

/// Bits of a row's first byte after the digest.
const JOINED: u8 = 1;
const JOINED_ELSEWHERE: u8 = 2;
const STOPPED: u8 = 4;
const MORE: u8 = 8;
/// How the segment begins, in bits 4 and 5.
const BEGINS: u8 = 4;

fn put_row(one: &IndexedSegment, number: SegmentNo, size: SegmentSize, base: i64, row: &mut Vec<u8>) {
    let IndexedSegment { stored_bytes, sha256, joined_after, facts, segment } = one;
    let start = number.start(size);
    let more = rest(facts);
    let before =
        number.0.checked_sub(1).map(|number| SegmentName::from_number(segment.timeline(), SegmentNo(number), size));
    let joined = match joined_after {
        None => 0,
        some if *some == before => JOINED,
        Some(_) => JOINED_ELSEWHERE,
    };
    let stopped = if matches!(facts.end, FactsEnd::Stopped { .. }) { STOPPED } else { 0 };
    let (begins, remaining) = match facts.begins {
        SegmentBegin::Unknown => (0, None),
        SegmentBegin::Record => (1, None),
        SegmentBegin::Continuation { remaining } => (2, Some(remaining)),
        SegmentBegin::Overwrite => (3, None),
    };
    varint::put(number.0, row);
    varint::put(*stored_bytes, row);
    row.extend(sha256.bytes());
    row.push(joined | stopped | if more.is_empty() { 0 } else { MORE } | begins << BEGINS);
    if let Some(after) = joined_after.filter(|_| joined == JOINED_ELSEWHERE) {
        row.extend(after.to_string().as_bytes());
    }
    remaining.iter().for_each(|remaining| varint::put(u64::from(*remaining), row));
    varint::put(facts.indexer.into(), row);
    for at in [facts.first_record, facts.last_complete_start, facts.last_complete_end] {
        put_option(at.map(|at| offset(at, start)), row);
    }
    [facts.records, facts.commits, facts.aborts].iter().for_each(|count| varint::put(*count, row));
    for time in [facts.min_time, facts.max_time] {
        put_option(time.map(|time| time.micros().wrapping_sub(base)), row);
    }
    for xid in [facts.min_xid, facts.max_xid] {
        put_option(xid.map(i64::from), row);
    }
    match &facts.end {
        FactsEnd::Clean => row.push(1),
        FactsEnd::Open { start: at, resource_manager, info } => {
            row.push(2);
            varint::put_signed(offset(*at, start), row);
            put_option(resource_manager.map(i64::from), row);
            put_option(info.map(i64::from), row);
        }
        FactsEnd::Inside => row.push(3),
        FactsEnd::Switched { at } => {
            row.push(4);
            varint::put_signed(offset(*at, start), row);
        }
        // With its words, it is among the rest.
        FactsEnd::Unknown | FactsEnd::Stopped { .. } => row.push(0),
    }
    row.extend(more);
}

fn read_row(
    reader: &mut Reader<'_>,
    segment: SegmentName,
    number: SegmentNo,
    size: SegmentSize,
    base: i64,
) -> Result<IndexedSegment, FormatError> {
    let start = number.start(size);
    let stored_bytes = reader.number()?;
    let sha256 = digest(reader)?;
    let bits = reader.byte()?;
    let joined_after = if bits & JOINED_ELSEWHERE != 0 {
        let text = String::from_utf8_lossy(reader.bytes(24)?).into_owned();
        Some(text.parse().map_err(|_| reader.nonsense("no name of a segment"))?)
    } else if bits & JOINED != 0 {
        let before = number.0.checked_sub(1).ok_or_else(|| reader.nonsense("a segment before the first"))?;
        Some(SegmentName::from_number(segment.timeline(), SegmentNo(before), size))
    } else {
        None
    };
    let begins = match bits >> BEGINS & 3 {
        0 => SegmentBegin::Unknown,
        1 => SegmentBegin::Record,
        2 => SegmentBegin::Continuation { remaining: reader.small()? },
        _ => SegmentBegin::Overwrite,
    };
    let indexer = reader.small()?;
    let mut at = || Ok::<_, FormatError>(option(reader)?.map(|offset| position(offset, start)));
    let (first_record, last_complete_start, last_complete_end) = (at()?, at()?, at()?);
    let (records, commits, aborts) = (reader.number()?, reader.number()?, reader.number()?);
    let mut time =
        || Ok::<_, FormatError>(option(reader)?.and_then(|micros| PgTime::from_micros(base.wrapping_add(micros))));
    let (min_time, max_time) = (time()?, time()?);
    let mut xid = || Ok::<_, FormatError>(option(reader)?.and_then(|xid| u32::try_from(xid).ok()));
    let (min_xid, max_xid) = (xid()?, xid()?);
    let small =
        |reader: &mut Reader<'_>| Ok::<_, FormatError>(option(reader)?.and_then(|byte| u8::try_from(byte).ok()));
    let end = match reader.byte()? {
        1 => Some(FactsEnd::Clean),
        2 => {
            let start = position(reader.signed()?, start);
            Some(FactsEnd::Open { start, resource_manager: small(reader)?, info: small(reader)? })
        }
        3 => Some(FactsEnd::Inside),
        4 => Some(FactsEnd::Switched { at: position(reader.signed()?, start) }),
        _ => None,
    };
    let facts = match bits & MORE {
        0 => WalFacts::default(),
        _ => {
            let len = reader.small()? as usize;
            serde_json::from_slice(reader.bytes(len)?).map_err(|error| reader.nonsense(error.to_string()))?
        }
    };
    let end = end.unwrap_or(facts.end.clone());
    let facts = WalFacts {
        indexer,
        begins,
        first_record,
        last_complete_start,
        last_complete_end,
        records,
        commits,
        aborts,
        min_time,
        max_time,
        min_xid,
        max_xid,
        end,
        ..facts
    };
    Ok(IndexedSegment { segment, stored_bytes, sha256, joined_after, facts })
}

/// What of a segment's facts has no place of its own in a row: those members that are not as they are by default.
fn rest(facts: &WalFacts) -> Vec<u8> {
    let plain = WalFacts::default();
    let end = if matches!(facts.end, FactsEnd::Stopped { .. }) { facts.end.clone() } else { FactsEnd::default() };
    let rest = WalFacts {
        indexer: plain.indexer,
        begins: plain.begins,
        first_record: None,
        last_complete_start: None,
        last_complete_end: None,
        records: 0,
        commits: 0,
        aborts: 0,
        min_time: None,
        max_time: None,
        min_xid: None,
        max_xid: None,
        end,
        ..facts.clone()
    };
    if rest == plain {
        return Vec::new();
    }
    let value = |facts: &WalFacts| serde_json::to_value(facts).expect("plain values");
    let (mut rest, plain) = (value(&rest), value(&plain));
    if let Some(members) = rest.as_object_mut() {
        members.retain(|name, value| plain.get(name) != Some(value));
    }
    let text = serde_json::to_vec(&rest).expect("plain values");
    let mut out = Vec::with_capacity(text.len() + 2);
    varint::put(text.len() as u64, &mut out);
    out.extend(text);
    out
}

/// A record may begin before its segment.
fn offset(at: Lsn, start: Lsn) -> i64 {
    at.bytes().wrapping_sub(start.bytes()).cast_signed()
}

fn position(offset: i64, start: Lsn) -> Lsn {
    Lsn::new(start.bytes().wrapping_add_signed(offset))
}

/// Nothing is 0; a number is one more than its signed form.
fn put_option(value: Option<i64>, row: &mut Vec<u8>) {
    match value.map(|value| (value << 1 ^ value >> 63).cast_unsigned()) {
        None => row.push(0),
        Some(number) => varint::put(number.saturating_add(1), row),
    }
}

fn option(reader: &mut Reader<'_>) -> Result<Option<i64>, FormatError> {
    let number = reader.number()?;
    Ok(number.checked_sub(1).map(|number| (number >> 1).cast_signed() ^ -(number & 1).cast_signed()))
}

fn digest(reader: &mut Reader<'_>) -> Result<Sha256, FormatError> {
    let bytes: [u8; DIGEST_BYTES] = reader.bytes(DIGEST_BYTES)?.try_into().expect("as many as were asked for");
    Ok(Sha256::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
