//! Packs that no manifest names yet, read back whole.
//!
//! Of a pack that a backup left behind when it was cut off nothing is known but its name and its length. What a manifest
//! keeps of a pack is found again by reading all of it; and nothing of it is used before every byte was compared with the
//! digests that it was written with, and every block with its hashes.

use std::sync::Arc;

use super::RepoError;
use super::backups::StoredPack;
use super::lane::Lane;
use crate::format::FormatError;
use crate::format::digest::Sha256Hasher;
use crate::format::object::{FRONT_BYTES, Front, Kind, TAIL_BYTES, Tail};
use crate::format::pack::{BlockHash, FrameEntry, FrameTable};
use crate::format::tables::{PackRef, PackSource};
use crate::store::{Key, Reading};

/// Bytes of a trailer that are read at once.
const PART: u64 = 1 << 20;
/// Bytes at a pack's end that are read first to find its frame table.
const TABLE_GUESS: u64 = 128 << 10;

impl Lane {
    /// Returns the backups, oldest first, that stored packs since the second in which the newest that was committed began,
    /// and were not committed themselves.
    ///
    /// Names begin with the second of their start; so what an expired backup stored, and others share, is not among them.
    pub fn cut_off(&self) -> Result<Vec<String>, RepoError> {
        let folders = self.repository.store.list_children(Some(&self.repository.layout.packs(self.id())?))?.folders;
        if folders.is_empty() {
            return Ok(Vec::new());
        }
        let committed = self.backups()?;
        let second = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
        let newest = committed.last().map(|newest| second(&newest.id));
        let mut names: Vec<String> = folders.iter().map(|folder| folder.name().to_owned()).collect();
        names.retain(|name| newest.as_ref().is_none_or(|newest| second(name) >= *newest));
        names.retain(|name| !committed.iter().any(|backup| backup.id == *name));
        names.sort_unstable();
        Ok(names)
    }

    /// Reads a pack from its first byte to its last and returns what a manifest keeps of it. `found` gets each frame: its
    /// place, its contents, and whether they are blocks with hashes of their own.
    ///
    /// What was handed over before an error is not to be used.
    ///
    /// # Errors
    /// [`RepoError::Missing`] if the pack is gone, [`RepoError::Object`] if anything in it is not what was written.
    pub fn read_back(&self, pack: &StoredPack, found: &mut dyn FnMut(u32, &[u8], bool)) -> Result<PackRef, RepoError> {
        let key = self.repository.layout.pack(self.id(), &pack.backup, pack.number)?;
        let table = self.frame_table(&key, pack.stored_bytes, TABLE_GUESS)?;
        let reading = self.repository.store.reading(&key, 0..pack.stored_bytes);
        let mut whole = Whole { key: &key, reading, hasher: Sha256Hasher::default() };
        let wrong = |source| RepoError::object(&key, source);

        let front = Front::decode(whole.take(FRONT_BYTES)?).map_err(wrong)?;
        front.expect(Kind::Pack, &self.pack_identity(&pack.backup, pack.number)).map_err(wrong)?;
        if !front.is_for(&table.digest) {
            return Err(wrong(FormatError::Damaged { part: "front frame" }));
        }
        let mut at = FRONT_BYTES as u64;
        let mut raw = Vec::new();
        for place in 0..table.len() as u32 {
            let frame = table.frame(place).map_err(wrong)?;
            frame.read(whole.take(frame.stored_len as usize)?, &mut raw).map_err(wrong)?;
            let hashed = expect_hashes(&table, frame, &raw).map_err(wrong)?;
            found(place, &raw, hashed);
            at += u64::from(frame.stored_len);
        }
        // The table was seen to fill everything from here to the tail.
        let tail_at = pack.stored_bytes - TAIL_BYTES as u64;
        while at < tail_at {
            let part = PART.min(tail_at - at);
            whole.take(part as usize)?;
            at += part;
        }
        let before_tail = whole.hasher.clone().finish();
        let tail = Tail::decode(whole.take(TAIL_BYTES)?, pack.stored_bytes).map_err(wrong)?;
        if tail.before_tail != before_tail {
            return Err(wrong(FormatError::Damaged { part: "pack" }));
        }
        Ok(PackRef {
            source: PackSource::Lane { backup: Arc::from(pack.backup.as_str()), number: pack.number },
            stored_bytes: pack.stored_bytes,
            frames: table.len() as u32,
            sha256: whole.hasher.finish(),
            table_sha256: table.digest,
        })
    }
}

/// An object that is read to its end, and what was read of it digested.
struct Whole<'a> {
    key: &'a Key,
    reading: Reading,
    hasher: Sha256Hasher,
}

impl Whole<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], RepoError> {
        let missing = || RepoError::Missing { key: self.key.to_string() };
        let bytes = self.reading.take(len)?.ok_or_else(missing)?;
        self.hasher.update(bytes);
        Ok(bytes)
    }
}

/// Returns whether the contents of a frame are blocks with hashes.
///
/// # Errors
/// [`FormatError::Damaged`] if these are not theirs: a later backup would compare its blocks with them.
fn expect_hashes(table: &FrameTable, frame: &FrameEntry, raw: &[u8]) -> Result<bool, FormatError> {
    let hashes = table.blocks(frame);
    if hashes.len() == 0 {
        return Ok(false);
    }
    let blocks = raw.chunks((table.block_size as usize).max(1));
    let same = hashes.len() == blocks.len() && hashes.zip(blocks).all(|(hash, block)| hash == BlockHash::of(block));
    if same { Ok(true) } else { Err(FormatError::Damaged { part: "block hashes" }) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::format::frame::Compressor;
    use crate::format::pack::PackWriter;
    use crate::repo::lane_fixture::empty_lane;

    fn packed(identity: &str, lie: bool) -> crate::format::pack::FinishedPack {
        let mut pack = PackWriter::new(identity, 1000).expect("a short identity");
        let (blocks, files) = ((0..2500u32).map(|n| n as u8).collect::<Vec<u8>>(), b"small files".repeat(9));
        let mut hashes: Vec<BlockHash> = blocks.chunks(1000).map(BlockHash::of).collect();
        hashes[1].xxh3 ^= u64::from(lie);
        let mut compressor = Compressor::new(3);
        pack.append(&blocks, &hashes, &mut compressor).expect("a small frame");
        pack.append(&files, &[], &mut compressor).expect("a small frame");
        pack.finish()
    }

    fn listed(lane: &Lane) -> StoredPack {
        lane.list_packs().expect("a listing").remove(0)
    }

    #[test]
    fn what_a_manifest_would_keep_of_a_pack_is_found_again() {
        let lane = empty_lane();
        let stored =
            lane.create_pack(&"b".into(), 7, packed(&lane.pack_identity("b", 7), false)).expect("a free name").0;
        let mut frames = Vec::new();
        let found = lane.read_back(&listed(&lane), &mut |place, raw, hashed| frames.push((place, raw.len(), hashed)));
        assert_eq!(found.expect("what was stored"), stored);
        assert_eq!(frames, [(0, 2500, true), (1, 99, false)]);
    }

    #[test]
    fn no_bit_of_a_pack_can_be_another() {
        let lane = empty_lane();
        let object = packed(&lane.pack_identity("b", 7), false).object;
        let key = lane.repository.layout.pack(lane.id(), "b", 7).expect("a key");
        for bit in (0..object.len() * 8).step_by(3) {
            let mut flipped = object.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            lane.repository.store.delete(&key).expect("a store in memory");
            lane.repository.store.create(&key, vec![Bytes::from(flipped)]).expect("a store in memory");
            assert!(lane.read_back(&listed(&lane), &mut |_, _, _| ()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_pack_of_another_name_or_with_hashes_of_other_blocks_is_refused() {
        for (identity, lie) in [(("b", 8), false), (("c", 7), false), (("b", 7), true)] {
            let lane = empty_lane();
            let pack = packed(&lane.pack_identity(identity.0, identity.1), lie);
            lane.create_pack(&"b".into(), 7, pack).expect("a free name");
            let refused = lane.read_back(&listed(&lane), &mut |_, _, _| ());
            assert!(matches!(refused, Err(RepoError::Object { .. })), "{identity:?} {lie}: {refused:?}");
        }
    }

    #[test]
    fn only_what_began_since_the_second_of_the_newest_backup_was_cut_off() {
        let lane = empty_lane();
        assert_eq!(lane.cut_off().expect("a listing"), Vec::<String>::new());
        let [before, beside, newest, after] =
            ["20260101T000001Z-7", "20260101T000002Z-1", "20260101T000002Z-5", "20260101T000003Z-0"];
        for name in [before, beside, newest, after] {
            lane.create_pack(&name.into(), 1, packed(&lane.pack_identity(name, 1), false)).expect("a free name");
        }
        assert_eq!(lane.cut_off().expect("a listing"), [before, beside, newest, after]);
        let key = lane.repository.layout.manifest(lane.id(), newest, 1).expect("a key");
        lane.repository.store.create(&key, vec![Bytes::from_static(b"a manifest")]).expect("a store in memory");
        // What follows the second in a name is chance.
        assert_eq!(lane.cut_off().expect("a listing"), [beside, after]);
    }
}
