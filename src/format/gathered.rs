//! Gathered indexes: what the indexes of many folders say, in one object, so that a log of years is searched in few
//! requests and little memory.
//!
//! They add nothing to the indexes that they gather, which they pin by digest: one whose folders have other indexes now is
//! stale there. Each segment is a row of some eighty bytes that is decoded when it is asked for; whatever is rare in a
//! segment's facts, or unknown to this version, is kept in the row as JSON, so that nothing is lost.

use super::FormatError;
use super::digest::Sha256;
use super::frame::Compressor;
use super::hint::{self, Fields};
use super::index::{INDEX_LIMIT, IndexedSegment};
use super::object::{Kind, NewObject, Object};
use super::varint::{self, Reader};
use crate::pg::pg_time::PgTime;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::timeline::TimelineId;

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

/// Bits of a row's first byte after the digest; the others are those of the hint.
const JOINED: u8 = 1;
const JOINED_ELSEWHERE: u8 = 2;

fn put_row(one: &IndexedSegment, number: SegmentNo, size: SegmentSize, base: i64, row: &mut Vec<u8>) {
    let IndexedSegment { stored_bytes, sha256, joined_after, facts, segment } = one;
    let start = number.start(size);
    let fields = Fields::of(facts);
    let before =
        number.0.checked_sub(1).map(|number| SegmentName::from_number(segment.timeline(), SegmentNo(number), size));
    let joined = match joined_after {
        None => 0,
        some if *some == before => JOINED,
        Some(_) => JOINED_ELSEWHERE,
    };
    varint::put(number.0, row);
    varint::put(*stored_bytes, row);
    row.extend(sha256.bytes());
    row.push(joined | fields.bits);
    if let Some(after) = joined_after.filter(|_| joined == JOINED_ELSEWHERE) {
        row.extend(after.to_string().as_bytes());
    }
    fields.put(start, base, row);
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
    let facts = hint::read(reader, bits, start, base)?;
    Ok(IndexedSegment { segment, stored_bytes, sha256, joined_after, facts })
}

fn digest(reader: &mut Reader<'_>) -> Result<Sha256, FormatError> {
    let bytes: [u8; DIGEST_BYTES] = reader.bytes(DIGEST_BYTES)?.try_into().expect("as many as were asked for");
    Ok(Sha256::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
