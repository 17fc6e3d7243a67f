//! The only place where ids become keys and keys become ids.
//!
//! ```text
//! <cluster>/repository.json
//! <cluster>/probe/<random>/<n>                    only while `init` or `check` tries a store
//! <cluster>/<lane>/lane.json
//! <cluster>/<lane>/owners/<TLI>/<n>
//! <cluster>/<lane>/signs/<TLI>/<writer>/<n>
//! <cluster>/<lane>/wal/<TLI>/<TLI>.history
//! <cluster>/<lane>/wal/<TLI>/<middle 8 digits>/<segment>
//! <cluster>/<lane>/wal/<TLI>/<middle 8 digits>/<segment>.partial/<sha256>
//! <cluster>/<lane>/wal/other/<name>
//! <cluster>/<lane>/index/<TLI>/<middle 8 digits>/<sha256>
//! <cluster>/<lane>/index/<TLI>/<middle>-<middle>/<sha256>
//! <cluster>/<lane>/changes/<TLI>/<middle 8 digits>/<sha256>
//! <cluster>/<lane>/contested/<writer>/<name>/<sha256>
//! <cluster>/<lane>/resolutions/<writer>/<name>/<sha256>
//! <cluster>/<lane>/holes/<segment>-<segment>
//! <cluster>/<lane>/packs/<backup>/<n>
//! <cluster>/<lane>/backups/<backup>/<generation>
//! <cluster>/<lane>/backups/<backup>/void
//! <cluster>/<lane>/leases/<purpose>/<n>
//! <cluster>/<lane>/leases/read/<holder>/<n>
//! <cluster>/<lane>/tombstones/<n>
//! <cluster>/<lane>/pins/<backup>/<n>
//! ```
//!
//! Keys of objects that are zstd files end in the repository's suffix.

use super::lane_id::LaneId;
use super::lease::Purpose;
use super::object::ObjectName;
use crate::format::Sha256;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::store::{Key, KeyError};

/// Last part of the key that says that a backup is void.
const VOID: &str = "void";
/// Folder of those who read, beside the leases of those who work.
const READ: &str = "read";

/// Keys of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    cluster: Key,
    suffix: String,
}

impl Layout {
    pub fn new(cluster: Key, suffix: &str) -> Self {
        Self { cluster, suffix: suffix.to_owned() }
    }

    pub fn cluster(&self) -> &Key {
        &self.cluster
    }

    pub fn repository(&self) -> Result<Key, KeyError> {
        self.cluster.join("repository.json")
    }

    /// Where a store is tried out; empty again afterwards.
    pub fn probe(&self, name: &str) -> Result<Key, KeyError> {
        self.cluster.join(&format!("probe/{name}"))
    }

    pub fn lane(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/lane.json"))
    }

    pub fn owners(&self, lane: LaneId, timeline: TimelineId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/owners/{}", timeline.hex()))
    }

    pub fn owner(&self, lane: LaneId, timeline: TimelineId, number: u32) -> Result<Key, KeyError> {
        self.owners(lane, timeline)?.join(&number.to_string())
    }

    /// Where a writer says that it is there.
    pub fn signs(&self, lane: LaneId, timeline: TimelineId, writer: &str) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/signs/{}/{writer}", timeline.hex()))
    }

    pub fn sign(&self, lane: LaneId, timeline: TimelineId, writer: &str, number: u32) -> Result<Key, KeyError> {
        self.signs(lane, timeline, writer)?.join(&number.to_string())
    }

    pub fn wal_root(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/wal"))
    }

    pub fn wal_timeline(&self, lane: LaneId, timeline: TimelineId) -> Result<Key, KeyError> {
        self.wal_root(lane)?.join(&timeline.hex().to_string())
    }

    /// Key of an archived file. A `.partial` has its digest in the key: two promotions within one segment give two files
    /// of one name, and neither may block the other.
    pub fn wal(&self, lane: LaneId, name: &WalFileName, digest: &Sha256) -> Result<Key, KeyError> {
        let root = self.wal_root(lane)?;
        let suffix = &self.suffix;
        match name {
            WalFileName::Segment(segment) => {
                root.join(&format!("{}/{}/{name}{suffix}", segment.timeline().hex(), segment.middle()))
            }
            WalFileName::Partial(segment) => {
                root.join(&format!("{}/{}/{name}/{digest}{suffix}", segment.timeline().hex(), segment.middle()))
            }
            WalFileName::BackupHistory { start, .. } => {
                root.join(&format!("{}/{}/{name}{suffix}", start.timeline().hex(), start.middle()))
            }
            WalFileName::History(timeline) => root.join(&format!("{}/{name}{suffix}", timeline.hex())),
            WalFileName::Other(_) => root.join(&format!("other/{name}{suffix}")),
        }
    }

    /// Returns the archived file's name that a key stands for; `None` for a `.partial`, whose name is the folder's, and
    /// for whatever is not ours: also for a file that lies where nobody would look for it.
    pub fn wal_name(&self, key: &Key) -> Option<WalFileName> {
        let mut parts = key.as_str().rsplit('/');
        let file = parts.next()?.strip_suffix(self.suffix.as_str())?;
        let name: WalFileName = file.parse().ok()?;
        is_in_place(&name, file, parts).then_some(name)
    }

    pub fn index_timeline(&self, lane: LaneId, timeline: TimelineId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/index/{}", timeline.hex()))
    }

    pub fn index(&self, lane: LaneId, timeline: TimelineId, middle: &str, members: &Sha256) -> Result<Key, KeyError> {
        self.index_timeline(lane, timeline)?.join(&format!("{middle}/{members}{}", self.suffix))
    }

    pub fn changes_folder(&self, lane: LaneId, timeline: TimelineId, middle: &str) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/changes/{}/{middle}", timeline.hex()))
    }

    pub fn changes(&self, lane: LaneId, timeline: TimelineId, middle: &str, members: &Sha256) -> Result<Key, KeyError> {
        self.changes_folder(lane, timeline, middle)?.join(&format!("{members}{}", self.suffix))
    }

    /// Returns the folder, or the first and last one of several, and the digest that an index's key stands for.
    pub fn index_name(&self, key: &Key) -> Option<(String, Sha256)> {
        let digest = key.name().strip_suffix(self.suffix.as_str())?.parse().ok()?;
        Some((key.parent()?.name().to_owned(), digest))
    }

    pub fn contested(&self, lane: LaneId, writer: &str, name: &WalFileName, digest: &Sha256) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/contested/{writer}/{name}/{digest}{}", self.suffix))
    }

    pub fn contested_root(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/contested"))
    }

    /// Returns the writer, the name and the digest that a contested file's key stands for.
    pub fn contested_name(&self, key: &Key) -> Option<(String, WalFileName, String)> {
        let digest = key.name().strip_suffix(self.suffix.as_str())?.to_owned();
        let folder = key.parent()?;
        Some((folder.parent()?.name().to_owned(), folder.name().parse().ok()?, digest))
    }

    pub fn resolutions(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/resolutions"))
    }

    /// Key of what was decided about a contested file.
    pub fn resolution(&self, lane: LaneId, writer: &str, name: &WalFileName, digest: &str) -> Result<Key, KeyError> {
        self.resolutions(lane)?.join(&format!("{writer}/{name}/{digest}"))
    }

    pub fn holes(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/holes"))
    }

    pub fn hole(&self, lane: LaneId, from: SegmentName, through: SegmentName) -> Result<Key, KeyError> {
        self.holes(lane)?.join(&format!("{from}-{through}"))
    }

    pub fn packs(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/packs"))
    }

    /// Returns the backup and the number that a pack's key stands for.
    pub fn pack_name(&self, key: &Key) -> Option<(String, u32)> {
        self.manifest_name(key)
    }

    pub fn pack(&self, lane: LaneId, backup: &str, number: u32) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/packs/{backup}/{number:06}{}", self.suffix))
    }

    pub fn backups(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/backups"))
    }

    pub fn manifest(&self, lane: LaneId, backup: &str, generation: u32) -> Result<Key, KeyError> {
        self.backups(lane)?.join(&format!("{backup}/{generation:06}{}", self.suffix))
    }

    /// Key of what says that a backup's name is useless.
    pub fn void(&self, lane: LaneId, backup: &str) -> Result<Key, KeyError> {
        self.backups(lane)?.join(&format!("{backup}/{VOID}"))
    }

    /// Returns the backup that a key says is void.
    pub fn void_name(&self, key: &Key) -> Option<String> {
        (key.name() == VOID).then(|| key.parent())?.map(|folder| folder.name().to_owned())
    }

    pub fn leases(&self, lane: LaneId, purpose: Purpose) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/leases/{}", purpose.as_str()))
    }

    pub fn lease(&self, lane: LaneId, purpose: Purpose, number: u32) -> Result<Key, KeyError> {
        self.leases(lane, purpose)?.join(&number.to_string())
    }

    pub fn readings(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/leases/{READ}"))
    }

    pub fn reading(&self, lane: LaneId, holder: &str, number: u32) -> Result<Key, KeyError> {
        self.readings(lane)?.join(&format!("{holder}/{number}"))
    }

    pub fn tombstones(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/tombstones"))
    }

    pub fn tombstone(&self, lane: LaneId, number: u32) -> Result<Key, KeyError> {
        self.tombstones(lane)?.join(&number.to_string())
    }

    pub fn pins(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/pins"))
    }

    pub fn pin(&self, lane: LaneId, backup: &str, number: u32) -> Result<Key, KeyError> {
        self.pins(lane)?.join(&format!("{backup}/{number}"))
    }

    /// Everything of a lane.
    pub fn lane_folder(&self, lane: LaneId) -> Result<Key, KeyError> {
        self.cluster.join(&lane.to_string())
    }

    /// Returns what a lane's object is, by its key.
    pub fn object(&self, lane: LaneId, key: &Key) -> ObjectName {
        let below = self.lane_folder(lane).ok().and_then(|folder| key.below(&folder));
        let parts: Vec<&str> = below.map_or_else(Vec::new, |below| below.split('/').collect());
        self.object_of(&parts).unwrap_or(ObjectName::Unknown)
    }

    fn object_of(&self, parts: &[&str]) -> Option<ObjectName> {
        let plain = |name: &str| name.strip_suffix(self.suffix.as_str()).map(str::to_owned);
        let number = |name: &str| name.parse::<u32>().ok();
        Some(match parts {
            ["lane.json"] => ObjectName::Lane,
            ["owners", _, _] => ObjectName::Owner,
            ["signs", timeline, writer, name] => {
                let timeline = TimelineId::new(u32::from_str_radix(timeline, 16).ok()?)?;
                ObjectName::Sign { timeline, writer: (*writer).to_owned(), number: number(name)? }
            }
            ["resolutions", _, _, _] => ObjectName::Resolution,
            ["holes", _] => ObjectName::Hole,
            ["wal", _, _, folder, name] if plain(name).is_some() => match folder.parse().ok()? {
                WalFileName::Partial(segment) => ObjectName::Partial(segment),
                _ => return None,
            },
            ["wal", timeline, rest @ ..] if *timeline != "other" && rest.len() < 3 => {
                let file = plain(rest.last()?)?;
                let name: WalFileName = file.parse().ok()?;
                let above = parts.iter().rev().skip(1).copied();
                is_in_place(&name, &file, above).then_some(ObjectName::Wal(name))?
            }
            ["index" | "changes", timeline, middle, name] if plain(name).is_some() => {
                let timeline = TimelineId::new(u32::from_str_radix(timeline, 16).ok()?)?;
                ObjectName::Index { timeline, middle: (*middle).to_owned() }
            }
            ["contested", writer, name, digest] => {
                ObjectName::Contested { writer: (*writer).to_owned(), name: name.parse().ok()?, digest: plain(digest)? }
            }
            ["packs", backup, name] => ObjectName::Pack { backup: (*backup).into(), number: number(&plain(name)?)? },
            ["backups", backup, VOID] => ObjectName::Void { backup: (*backup).to_owned() },
            ["backups", backup, name] => {
                ObjectName::Manifest { backup: (*backup).to_owned(), generation: number(&plain(name)?)? }
            }
            ["leases", purpose, name] => {
                let known = [Purpose::Backup, Purpose::Expire].into_iter().find(|known| known.as_str() == *purpose)?;
                ObjectName::Lease { purpose: known, number: number(name)? }
            }
            ["leases", READ, holder, name] => {
                ObjectName::Reading { holder: (*holder).to_owned(), number: number(name)? }
            }
            ["tombstones", name] => ObjectName::Tombstone { number: number(name)? },
            ["pins", backup, name] => ObjectName::Pin { backup: (*backup).to_owned(), number: number(name)? },
            _ => return None,
        })
    }

    /// Returns the backup and the generation that a manifest's key stands for.
    pub fn manifest_name(&self, key: &Key) -> Option<(String, u32)> {
        let generation = key.name().strip_suffix(self.suffix.as_str())?.parse().ok()?;
        Some((key.parent()?.name().to_owned(), generation))
    }
}

/// Whether an archived file lies in its folders, which are given from the nearest one up. A `.partial` does not.
fn is_in_place<'a>(name: &WalFileName, file: &str, mut above: impl Iterator<Item = &'a str>) -> bool {
    let own = match name {
        WalFileName::Segment(_) | WalFileName::BackupHistory { .. } => {
            above.next() == file.get(8..16) && above.next() == file.get(..8)
        }
        WalFileName::History(_) => above.next() == file.get(..8),
        WalFileName::Partial(_) | WalFileName::Other(_) => false,
    };
    own && above.next() == Some("wal")
}

/// What is written in an archived file's front frame: it survives a copy to another repository.
pub(super) fn wal_identity(lane: LaneId, name: &WalFileName) -> String {
    format!("{lane}/{name}")
}

/// What is written in an index's front frame.
pub(super) fn index_identity(lane: LaneId, timeline: TimelineId, middle: &str, members: &Sha256) -> String {
    format!("{lane}/index/{}/{middle}/{members}", timeline.hex())
}

/// What is written in the front frame of the changes of a folder.
pub(super) fn changes_identity(lane: LaneId, timeline: TimelineId, middle: &str, members: &Sha256) -> String {
    format!("{lane}/changes/{}/{middle}/{members}", timeline.hex())
}

/// What is written in a pack's front frame.
pub(super) fn pack_identity(lane: LaneId, backup: &str, number: u32) -> String {
    format!("{lane}/packs/{backup}/{number}")
}

/// What is written in a manifest's front frame.
pub(super) fn manifest_identity(lane: LaneId, backup: &str, generation: u32) -> String {
    format!("{lane}/backups/{backup}/{generation}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_of_the_log_is_one_in_its_own_folder_only() {
        let layout = Layout::new("main".parse().unwrap(), ".zst");
        let lane: LaneId = "7-1".parse().unwrap();
        let digest = Sha256::from_bytes([1; 32]);
        let names = ["0000000A00000002000000FF", "0000000A.history", "0000000A00000002000000FF.00000028.backup"];
        for name in names {
            let name: WalFileName = name.parse().unwrap();
            let key = layout.wal(lane, &name, &digest).unwrap();
            assert_eq!(layout.wal_name(&key), Some(name.clone()));
            assert_eq!(layout.object(lane, &key), ObjectName::Wal(name));
        }
        for key in [
            "main/7-1/wal/0000000A/00000003/0000000A00000002000000FF.zst",
            "main/7-1/wal/0000000B/00000002/0000000A00000002000000FF.zst",
            "main/7-1/wal/0000000A/0000000A00000002000000FF.zst",
            "main/7-1/wal/0000000A/0000000A/00000002/0000000A00000002000000FF.zst",
            "main/7-1/wal/0000000B/0000000A.history.zst",
            "main/7-1/wal/0000000A/00000002/0000000A.history.zst",
            "main/7-1/wal/0000000A/00000002/0000000A00000002000000FF",
            "main/7-1/wal/0000000A/00000002/0000000A00000002000000FF.partial.zst",
        ] {
            let key: Key = key.parse().unwrap();
            assert_eq!(layout.wal_name(&key), None, "{key}");
            assert_eq!(layout.object(lane, &key), ObjectName::Unknown, "{key}");
        }
        let kept = layout.wal(lane, &"0000000A00000002000000FF.partial".parse().unwrap(), &digest).unwrap();
        assert_eq!(layout.wal_name(&kept), None, "its name is the folder's");
    }
}
