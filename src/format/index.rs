//! Index objects: the facts of many segments in one object, so that a long log is searched in few requests.
//!
//! They speed a search and prove nothing: all can be deleted and made again. Each pins its members by name and digest, and
//! is named by the digest of that list, so a better index of the same segments is another object.

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::digest::Sha256;
use super::frame::Compressor;
use super::object::{Kind, NewObject, Object};
use crate::pg::segment::SegmentName;
use crate::pg::wal_facts::WalFacts;

/// Version of the contents. Readers know every version, writers write the last.
/// - 1: first release.
pub const INDEX_VERSION: u32 = 1;

/// Most bytes of contents that a reader takes.
pub const INDEX_LIMIT: u64 = 256 << 20;

const NAME: &str = "index";
const LEVEL: i32 = 3;

/// What an index says of one segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexedSegment {
    /// The segment.
    pub segment: SegmentName,
    /// Bytes of the object that it is stored in.
    pub stored_bytes: u64,
    /// SHA-256 of the segment itself.
    pub sha256: Sha256,
    /// The segment that was walked before this one: then the facts hold a record that began there, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_after: Option<SegmentName>,
    /// What the walk found.
    pub facts: WalFacts,
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
}

/// Returns the digest that names an index of these segments.
pub fn members_digest(members: &[IndexedSegment]) -> Sha256 {
    let line = |one: &IndexedSegment| {
        let after = one.joined_after.map_or_else(|| "-".to_owned(), |name| name.to_string());
        format!("{} {} {} {after}\n", one.segment, one.sha256, one.facts.indexer)
    };
    let text: String = members.iter().map(line).collect();
    Sha256::of(text.as_bytes())
}

/// Encodes an index for `identity`; `members` in the order of their names.
///
/// # Errors
/// [`FormatError::Identity`].
pub fn encode(identity: &str, members: &[IndexedSegment]) -> Result<Vec<u8>, FormatError> {
    let mut contents = serde_json::to_vec(&Head { version: INDEX_VERSION }).expect("plain values");
    for one in members {
        contents.push(b'\n');
        contents.extend(serde_json::to_vec(one).expect("plain values"));
    }
    contents.push(b'\n');
    let mut object = NewObject::new(Kind::Index, identity)?;
    Compressor::new(LEVEL).append(&contents, object.body());
    Ok(object.finish(Sha256::of(&contents), contents.len() as u64, &[]).0)
}

/// Reads an index that was stored for `identity`; every byte is verified.
///
/// # Errors
/// Whatever [`Object::open`] and [`Object::contents`] find, [`FormatError::Version`], [`FormatError::Nonsense`].
pub fn decode(stored: &[u8], identity: &str) -> Result<Vec<IndexedSegment>, FormatError> {
    let contents = Object::open(stored, Kind::Index, identity)?.contents(INDEX_LIMIT)?;
    let nonsense = |problem: String| FormatError::Nonsense { document: NAME, problem };
    let mut lines = contents.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let head: Head = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(|e| nonsense(e.to_string()))?;
    if head.version > INDEX_VERSION {
        let short = |version| u16::try_from(version).unwrap_or(u16::MAX);
        return Err(FormatError::Version { found: short(head.version), known: short(INDEX_VERSION) });
    }
    let members: Result<Vec<IndexedSegment>, _> = lines.map(serde_json::from_slice).collect();
    let members = members.map_err(|error| nonsense(error.to_string()))?;
    if members.windows(2).any(|pair| pair[0].segment >= pair[1].segment) {
        return Err(nonsense("segments out of order".to_owned()));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::wal_fixture::{one_mib, segments};

    fn members() -> Vec<IndexedSegment> {
        let all = segments(18, 1);
        let mut members: Vec<IndexedSegment> = all
            .iter()
            .map(|(segment, raw)| IndexedSegment {
                segment: *segment,
                stored_bytes: 77,
                sha256: Sha256::of(raw),
                joined_after: None,
                facts: WalFacts::of_segment(*segment, raw, one_mib(), None),
            })
            .collect();
        members[1].joined_after = Some(members[0].segment);
        members
    }

    #[test]
    fn members_come_back() {
        let members = members();
        let stored = encode("7-1/index/x", &members).unwrap();
        assert_eq!(decode(&stored, "7-1/index/x"), Ok(members.clone()));
        assert!(decode(&stored, "7-1/index/y").is_err());
        for at in (0..stored.len()).step_by(97) {
            let mut flipped = stored.clone();
            flipped[at] ^= 1;
            assert!(decode(&flipped, "7-1/index/x").is_err(), "byte {at}");
        }
    }

    #[test]
    fn whatever_makes_another_index_gives_another_name() {
        let members = members();
        let name = members_digest(&members);
        let mut names = vec![name];
        let mut other = members.clone();
        other[0].sha256 = Sha256::of(b"other bytes");
        names.push(members_digest(&other));
        let mut other = members.clone();
        other[2].facts.indexer += 1;
        names.push(members_digest(&other));
        let mut other = members.clone();
        other[1].joined_after = None;
        names.push(members_digest(&other));
        names.push(members_digest(&members[1..]));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5);
    }

    #[test]
    fn segments_out_of_order_are_refused() {
        let mut members = members();
        members.swap(0, 1);
        let refused = decode(&encode("7-1/index/x", &members).unwrap(), "7-1/index/x");
        assert!(matches!(refused, Err(FormatError::Nonsense { .. })), "{refused:?}");
    }
}
