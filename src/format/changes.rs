//! What a segment's records change, as it is stored: in the segment's own object, in a frame of its own before the trailer,
//! and in one object for all segments of a finished folder.
//!
//! A backup leaves pages unread because of this, so unlike a hint it is believed, and has a digest that is bound to the
//! segment's. What is missing says nothing; all but the frames can be deleted and made again.

use super::FormatError;
use super::digest::Sha256;
use super::frame::{self, Compressor};
use super::object::{Kind, NewObject, Object, Tail};
use super::varint::{self, Reader};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::pg::wal_changes::{ChangesEnd, MOST_BLOCKS, RelationChanges, Run, SegmentChanges};
use crate::pg::wal_page::WalMagic;
use crate::pg::wal_record::{RecordPart, RelationLocator};

/// Version of the changes of one segment. Readers know every version, writers write the last.
/// - 1: first release.
pub const CHANGES_VERSION: u8 = 1;
/// Version of the changes of a folder.
/// - 1: first release.
pub const FOLDER_VERSION: u8 = 1;
/// Most bytes of a folder's contents that a reader takes.
pub const FOLDER_LIMIT: u64 = 256 << 20;

const NAME: &str = "changes of a segment";
const FOLDER_NAME: &str = "changes of a folder";
const FOLDER_MAGIC: &[u8; 3] = b"WVK";
const LEVEL: i32 = 3;
/// Magic of the skippable frame.
const FRAME_MAGIC: u32 = 0x184D_2A59;
const FRAME_HEADER: usize = 8;
/// The end of the frame: a digest, the frame's length, a name, which says whether they are compressed.
const FOOTER_BYTES: usize = 40;
const PLAIN: &[u8; 4] = b"WVCB";
const COMPRESSED: &[u8; 4] = b"WVCZ";
/// Most bytes of a segment's changes: five for each block and gap, fewer than a hundred for each relation.
const LIMIT: u64 = 4 << 20;
const DIGEST_BYTES: usize = 32;

/// Bits of the flags.
const UNKNOWN: u8 = 1;
const MINIMAL: u8 = 2;
const FULL_PAGE_WRITES_OFF: u8 = 4;
const OVERWRITES: u8 = 8;
const LEAD: u8 = 16;

/// What the last bytes of an object say of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The changes, and the digest of the segment.
    Changes(Box<SegmentChanges>, Sha256),
    /// There is no frame of them, or one of a newer version.
    Nothing,
    /// So many last bytes of the object are needed.
    Needs(u64),
}

/// Appends the frame of a segment's changes to the body of its object; `segment` is the segment's digest.
pub fn append(changes: &SegmentChanges, segment: &Sha256, body: &mut Vec<u8>) {
    let (mut plain, mut compressed) = (Vec::new(), Vec::new());
    put(changes, &mut plain);
    Compressor::new(LEVEL).append(&plain, &mut compressed);
    let smaller = compressed.len() < plain.len() && plain.len() as u64 <= LIMIT;
    let (name, payload) = if smaller { (COMPRESSED, &compressed) } else { (PLAIN, &plain) };
    append_frame(name, payload, segment, body);
}

fn append_frame(name: &[u8; 4], payload: &[u8], segment: &Sha256, body: &mut Vec<u8>) {
    let len = (FRAME_HEADER + payload.len() + FOOTER_BYTES) as u32;
    body.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    body.extend_from_slice(&(len - FRAME_HEADER as u32).to_le_bytes());
    body.extend_from_slice(payload);
    body.extend_from_slice(Sha256::of_parts([&segment.bytes()[..], payload]).bytes());
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(name);
}

/// Looks for the changes in the last bytes of a segment's object of `object_len` bytes.
///
/// # Errors
/// [`FormatError::Damaged`] if they are not as they were made; whatever [`Tail::decode`] finds.
pub fn find(last: &[u8], object_len: u64) -> Result<Found, FormatError> {
    let tail = Tail::decode(last, object_len)?;
    let from_end = object_len - tail.trailer_at;
    let damaged = FormatError::Damaged { part: NAME };
    let needs = |bytes: u64| if bytes <= object_len { Ok(Found::Needs(bytes)) } else { Err(damaged.clone()) };
    let Some(before) = (last.len() as u64).checked_sub(from_end).map(|at| &last[..at as usize]) else {
        return needs(from_end + FOOTER_BYTES as u64);
    };
    let Some(rest) = before.len().checked_sub(FOOTER_BYTES) else { return needs(from_end + FOOTER_BYTES as u64) };
    let footer = &before[rest..];
    let name = &footer[DIGEST_BYTES + 4..];
    if name != PLAIN && name != COMPRESSED {
        return Ok(Found::Nothing);
    }
    let len = u32::from_le_bytes(footer[DIGEST_BYTES..DIGEST_BYTES + 4].try_into().expect("4 bytes")) as usize;
    let Some(frame) = before.len().checked_sub(len).map(|at| &before[at..]) else {
        return needs(from_end + len as u64);
    };
    let header = [FRAME_MAGIC.to_le_bytes(), (len as u32).wrapping_sub(FRAME_HEADER as u32).to_le_bytes()].concat();
    let payload = frame.strip_prefix(&header[..]).and_then(|frame| frame.get(..frame.len().checked_sub(FOOTER_BYTES)?));
    let payload = payload.ok_or(damaged.clone())?;
    if Sha256::of_parts([&tail.raw.bytes()[..], payload]).bytes()[..] != footer[..DIGEST_BYTES] {
        return Err(damaged);
    }
    let read = if name == COMPRESSED { read(&decompressed(payload)?) } else { read(payload) };
    Ok(read?.map_or(Found::Nothing, |changes| Found::Changes(Box::new(changes), tail.raw)))
}

fn decompressed(payload: &[u8]) -> Result<Vec<u8>, FormatError> {
    let (frame, len) = frame::first(payload, LIMIT)?;
    if frame.len() != payload.len() {
        return Err(FormatError::Damaged { part: NAME });
    }
    frame::decompress(frame, len)
}

/// Appends a segment's changes.
pub fn put(changes: &SegmentChanges, out: &mut Vec<u8>) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(CHANGES_VERSION);
    out.push(
        flag(changes.unknown, UNKNOWN)
            | flag(changes.minimal, MINIMAL)
            | flag(changes.full_page_writes_off, FULL_PAGE_WRITES_OFF)
            | flag(changes.overwrites, OVERWRITES)
            | flag(changes.lead.is_some(), LEAD),
    );
    varint::put(changes.magic.number().into(), out);
    put_option(changes.previous.map(Lsn::bytes), out);
    put_option(changes.last.map(Lsn::bytes), out);
    changes.lead.iter().for_each(|lead| put_part(lead, out));
    match &changes.end {
        ChangesEnd::Whole => out.push(0),
        ChangesEnd::Open { start, total_len, part } => {
            out.push(1);
            varint::put(start.bytes(), out);
            varint::put((*total_len).into(), out);
            put_part(part, out);
        }
        ChangesEnd::Inside => out.push(2),
        ChangesEnd::Stopped { at } => {
            out.push(3);
            varint::put(at.bytes(), out);
        }
    }
    varint::put(changes.relations.len() as u64, out);
    for one in &changes.relations {
        let RelationLocator { tablespace, database, relation } = one.relation;
        [tablespace, database, relation].iter().for_each(|oid| varint::put((*oid).into(), out));
        put_option(one.limit.map(u64::from), out);
        varint::put(one.runs.len() as u64, out);
        let mut at = 0;
        for run in &one.runs {
            // Most blocks are alone.
            varint::put(u64::from(run.first - at) << 1 | u64::from(run.len > 1), out);
            if run.len > 1 {
                varint::put(u64::from(run.len - 2), out);
            }
            at = run.first.saturating_add(run.len);
        }
    }
}

/// Reads a segment's changes; `None` for those of a newer version.
///
/// # Errors
/// [`FormatError::Truncated`], [`FormatError::Nonsense`].
pub fn read(bytes: &[u8]) -> Result<Option<SegmentChanges>, FormatError> {
    let mut reader = Reader::new(bytes, NAME);
    if reader.byte()? > CHANGES_VERSION {
        return Ok(None);
    }
    let flags = reader.byte()?;
    let magic = u16::try_from(reader.number()?).map_err(|_| reader.nonsense("a magic of more than 16 bits"))?;
    let (previous, last) = (read_option(&mut reader)?.map(Lsn::new), read_option(&mut reader)?.map(Lsn::new));
    let lead = if flags & LEAD != 0 { Some(read_part(&mut reader)?) } else { None };
    let end = match reader.byte()? {
        0 => ChangesEnd::Whole,
        1 => {
            let (start, total_len) = (Lsn::new(reader.number()?), reader.small()?);
            ChangesEnd::Open { start, total_len, part: read_part(&mut reader)? }
        }
        2 => ChangesEnd::Inside,
        3 => ChangesEnd::Stopped { at: Lsn::new(reader.number()?) },
        _ => return Err(reader.nonsense("an end that there is not")),
    };
    let mut relations: Vec<RelationChanges> = Vec::new();
    let mut blocks = 0;
    for _ in 0..reader.number()? {
        let one = read_relation(&mut reader)?;
        blocks += one.runs.iter().map(|run| run.len as usize).sum::<usize>();
        let in_order = relations.last().is_none_or(|last| last.relation < one.relation);
        if !in_order || blocks > MOST_BLOCKS {
            return Err(reader.nonsense("relations out of order, or too many blocks"));
        }
        relations.push(one);
    }
    if !reader.is_empty() {
        return Err(reader.nonsense("more than its relations"));
    }
    let is = |flag: u8| flags & flag != 0;
    Ok(Some(SegmentChanges {
        magic: WalMagic::new(magic),
        relations,
        previous,
        lead,
        overwrites: is(OVERWRITES),
        last,
        end,
        unknown: is(UNKNOWN),
        minimal: is(MINIMAL),
        full_page_writes_off: is(FULL_PAGE_WRITES_OFF),
    }))
}

fn read_relation(reader: &mut Reader<'_>) -> Result<RelationChanges, FormatError> {
    let relation =
        RelationLocator { tablespace: reader.small()?, database: reader.small()?, relation: reader.small()? };
    let block = |reader: &Reader<'_>, number: u64| {
        u32::try_from(number).map_err(|_| reader.nonsense("a block of more than 32 bits"))
    };
    let limit = read_option(reader)?.map(|limit| block(reader, limit)).transpose()?;
    let (mut runs, mut at) = (Vec::new(), 0u64);
    for _ in 0..reader.number()? {
        let gap = reader.number()?;
        let len = if gap & 1 != 0 { u64::from(reader.small()?) + 2 } else { 1 };
        let first = at + (gap >> 1);
        at = first.saturating_add(len);
        block(reader, at - 1)?;
        if len > MOST_BLOCKS as u64 {
            return Err(reader.nonsense("too many blocks"));
        }
        runs.push(Run { first: first as u32, len: len as u32 });
    }
    Ok(RelationChanges { relation, limit, runs })
}

fn put_option(number: Option<u64>, out: &mut Vec<u8>) {
    varint::put(number.map_or(0, |number| number.saturating_add(1)), out);
}

fn read_option(reader: &mut Reader<'_>) -> Result<Option<u64>, FormatError> {
    Ok(reader.number()?.checked_sub(1))
}

fn put_part(part: &RecordPart, out: &mut Vec<u8>) {
    varint::put(part.len, out);
    out.extend_from_slice(&part.checksum.to_le_bytes());
    varint::put(part.beginning.len() as u64, out);
    out.extend_from_slice(&part.beginning);
}

fn read_part(reader: &mut Reader<'_>) -> Result<RecordPart, FormatError> {
    let len = reader.number()?;
    let checksum = u32::from_le_bytes(reader.bytes(4)?.try_into().expect("4 bytes"));
    let beginning = reader.counted()?.to_vec();
    if beginning.len() as u64 > len || beginning.len() > RecordPart::KEPT {
        return Err(reader.nonsense("a part of a record that is longer than it says"));
    }
    Ok(RecordPart { len, checksum, beginning })
}

/// What is stored of a segment in the changes of its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderMember {
    /// The segment.
    pub segment: SegmentName,
    /// Bytes of the object that it is stored in.
    pub stored_bytes: u64,
    /// SHA-256 of the segment itself.
    pub sha256: Sha256,
    /// What it changes.
    pub changes: SegmentChanges,
}

/// Returns the digest that names the changes of these segments.
pub fn folder_digest(members: &[FolderMember]) -> Sha256 {
    let line = |one: &FolderMember| format!("{} {} {CHANGES_VERSION}\n", one.segment, one.sha256);
    Sha256::of(members.iter().map(line).collect::<String>().as_bytes())
}

/// Encodes the changes of a folder for `identity`; `members` in the order of their names, all of one timeline.
///
/// # Errors
/// [`FormatError::Identity`], [`FormatError::Nonsense`] for members that do not come back as they are.
pub fn encode_folder(
    identity: &str,
    timeline: TimelineId,
    size: SegmentSize,
    members: &[FolderMember],
) -> Result<Vec<u8>, FormatError> {
    let nonsense = |problem: &str| FormatError::Nonsense { document: FOLDER_NAME, problem: problem.to_owned() };
    let mut contents = [&FOLDER_MAGIC[..], &[FOLDER_VERSION]].concat();
    varint::put(timeline.number().into(), &mut contents);
    varint::put(size.bytes(), &mut contents);
    varint::put(members.len() as u64, &mut contents);
    let mut payload = Vec::new();
    for one in members {
        let number = one.segment.number(size).map_err(|_| nonsense("a name of another size"))?;
        varint::put(number.0, &mut contents);
        varint::put(one.stored_bytes, &mut contents);
        contents.extend_from_slice(one.sha256.bytes());
        payload.clear();
        put(&one.changes, &mut payload);
        varint::put(payload.len() as u64, &mut contents);
        contents.extend_from_slice(&payload);
    }
    if parse_folder(&contents)?.2 != members {
        return Err(nonsense("it does not come back as it is"));
    }
    let mut object = NewObject::new(Kind::Index, identity)?;
    Compressor::new(LEVEL).append(&contents, object.body());
    Ok(object.finish(Sha256::of(&contents), contents.len() as u64, &[]).0)
}

/// Reads the changes of a folder that were stored for `identity`; every byte is verified.
///
/// # Errors
/// Whatever [`Object::open`] and [`Object::contents`] find, [`FormatError::Version`], [`FormatError::Nonsense`].
pub fn decode_folder(
    stored: &[u8],
    identity: &str,
) -> Result<(TimelineId, SegmentSize, Vec<FolderMember>), FormatError> {
    parse_folder(&Object::open(stored, Kind::Index, identity)?.contents(FOLDER_LIMIT)?)
}

/// As [`decode_folder`], of contents that nobody vouches for.
///
/// # Errors
/// As [`decode_folder`].
pub fn parse_folder(contents: &[u8]) -> Result<(TimelineId, SegmentSize, Vec<FolderMember>), FormatError> {
    let mut reader = Reader::new(contents, FOLDER_NAME);
    if reader.bytes(3)? != FOLDER_MAGIC {
        return Err(reader.nonsense("it does not begin like one"));
    }
    let version = reader.byte()?;
    if version != FOLDER_VERSION {
        return Err(FormatError::Version { found: version.into(), known: FOLDER_VERSION.into() });
    }
    let timeline = TimelineId::new(reader.small()?).ok_or_else(|| reader.nonsense("timeline 0"))?;
    let size = SegmentSize::new(reader.small()?).map_err(|error| reader.nonsense(error.to_string()))?;
    let mut members: Vec<FolderMember> = Vec::new();
    for _ in 0..reader.number()? {
        let number = reader.number()?;
        if number > u64::MAX / size.bytes() {
            return Err(reader.nonsense("a segment past the end of every log"));
        }
        let segment = SegmentName::from_number(timeline, SegmentNo(number), size);
        let stored_bytes = reader.number()?;
        let sha256 = Sha256::from_bytes(reader.bytes(DIGEST_BYTES)?.try_into().expect("32 bytes"));
        let changes = read(reader.counted()?)?.ok_or_else(|| reader.nonsense("a segment of a newer version"))?;
        if members.last().is_some_and(|last| last.segment >= segment) {
            return Err(reader.nonsense("segments out of order"));
        }
        members.push(FolderMember { segment, stored_bytes, sha256, changes });
    }
    if !reader.is_empty() {
        return Err(reader.nonsense("more than its segments"));
    }
    Ok((timeline, size, members))
}

#[cfg(test)]
mod tests;
