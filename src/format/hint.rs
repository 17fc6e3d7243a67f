//! What a walk over a segment found, as it is stored: in the trailer of the segment's object, and in the rows of gathered
//! indexes ([`super::gathered`]).
//!
//! What every segment has stands in a few bytes each, numbers from where the segment begins and its first commit; whatever is
//! rare, or unknown to this version, is kept as JSON, so that nothing is lost. In the trailer that costs fifty bytes where
//! JSON alone, which readers still know, costs three hundred: a tenth of a segment that is nearly empty.

use super::FormatError;
use super::varint::{self, Reader};
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::wal_facts::{FactsEnd, SegmentBegin, WalFacts};

/// Version of the hint in a trailer, which is its first byte. JSON, as it was before, begins with a brace.
const HINT_VERSION: u8 = 1;
const NAME: &str = "hint";

/// Bits of the byte before the fields; the lowest two are the row's own.
const STOPPED: u8 = 4;
const MORE: u8 = 8;
/// How the segment begins, in bits 4 and 5.
const BEGINS: u8 = 4;

/// Encodes a segment's facts for the trailer of its object.
pub(super) fn encode(facts: &WalFacts) -> Vec<u8> {
    let fields = Fields::of(facts);
    let (start, base) = (facts.first_record.unwrap_or(Lsn::new(0)), facts.min_time.map_or(0, PgTime::micros));
    let mut out = vec![HINT_VERSION];
    varint::put(start.bytes(), &mut out);
    varint::put_signed(base, &mut out);
    out.push(fields.bits);
    fields.put(start, base, &mut out);
    match decode(&out) {
        Some(same) if same == *facts => out,
        // A number that has no place in the short form.
        _ => serde_json::to_vec(&telling(facts)).expect("plain values"),
    }
}

/// Reads a hint. One that cannot be read is none: the segment itself can still be walked.
pub(super) fn decode(section: &[u8]) -> Option<WalFacts> {
    match section.first()? {
        &HINT_VERSION => short(&section[1..]).ok(),
        _ => serde_json::from_slice(section).ok(),
    }
}

fn short(bytes: &[u8]) -> Result<WalFacts, FormatError> {
    let mut reader = Reader::new(bytes, NAME);
    let (start, base) = (Lsn::new(reader.number()?), reader.signed()?);
    let bits = reader.byte()?;
    let facts = read(&mut reader, bits, start, base)?;
    if reader.is_empty() { Ok(facts) } else { Err(reader.nonsense("more than its fields")) }
}

/// Returns those members of facts that are not as they are by default.
fn telling(facts: &WalFacts) -> serde_json::Value {
    let value = |facts: &WalFacts| serde_json::to_value(facts).expect("plain values");
    let (mut telling, plain) = (value(facts), value(&WalFacts::default()));
    if let Some(members) = telling.as_object_mut() {
        members.retain(|name, value| plain.get(name) != Some(value));
    }
    telling
}

/// A segment's facts, about to be put.
pub(super) struct Fields<'a> {
    facts: &'a WalFacts,
    rest: Vec<u8>,
    /// What the byte before the fields says of them.
    pub bits: u8,
}

impl<'a> Fields<'a> {
    pub fn of(facts: &'a WalFacts) -> Self {
        let rest = rest(facts);
        let begins = match facts.begins {
            SegmentBegin::Unknown => 0,
            SegmentBegin::Record => 1,
            SegmentBegin::Continuation { .. } => 2,
            SegmentBegin::Overwrite => 3,
        };
        let stopped = if matches!(facts.end, FactsEnd::Stopped { .. }) { STOPPED } else { 0 };
        let more = if rest.is_empty() { 0 } else { MORE };
        Self { facts, rest, bits: stopped | more | begins << BEGINS }
    }

    /// Appends them: positions counted from `start`, times from `base`.
    pub fn put(&self, start: Lsn, base: i64, out: &mut Vec<u8>) {
        let facts = self.facts;
        if let SegmentBegin::Continuation { remaining } = facts.begins {
            varint::put(u64::from(remaining), out);
        }
        varint::put(facts.indexer.into(), out);
        for at in [facts.first_record, facts.last_complete_start, facts.last_complete_end] {
            put_option(at.map(|at| offset(at, start)), out);
        }
        [facts.records, facts.commits, facts.aborts].iter().for_each(|count| varint::put(*count, out));
        for time in [facts.min_time, facts.max_time] {
            put_option(time.map(|time| time.micros().wrapping_sub(base)), out);
        }
        for xid in [facts.min_xid, facts.max_xid] {
            put_option(xid.map(i64::from), out);
        }
        match &facts.end {
            FactsEnd::Clean => out.push(1),
            FactsEnd::Open { start: at, resource_manager, info } => {
                out.push(2);
                varint::put_signed(offset(*at, start), out);
                put_option(resource_manager.map(i64::from), out);
                put_option(info.map(i64::from), out);
            }
            FactsEnd::Inside => out.push(3),
            FactsEnd::Switched { at } => {
                out.push(4);
                varint::put_signed(offset(*at, start), out);
            }
            // With its words, it is among the rest.
            FactsEnd::Unknown | FactsEnd::Stopped { .. } => out.push(0),
        }
        out.extend(&self.rest);
    }
}

/// Reads what [`Fields::put`] has put.
///
/// # Errors
/// [`FormatError::Truncated`], [`FormatError::Nonsense`].
pub(super) fn read(reader: &mut Reader<'_>, bits: u8, start: Lsn, base: i64) -> Result<WalFacts, FormatError> {
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
    Ok(WalFacts {
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
    })
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
    let text = serde_json::to_vec(&telling(&rest)).expect("plain values");
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

#[cfg(test)]
mod tests;
