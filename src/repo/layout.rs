//! The only place where ids become keys and keys become ids.
//!
//! ```text
//! <cluster>/repository.json
//! <cluster>/probe/<random>/<n>                    only while `init` or `check` tries a store
//! <cluster>/<lane>/lane.json
//! <cluster>/<lane>/owners/<TLI>/<n>
//! <cluster>/<lane>/wal/<TLI>/<TLI>.history
//! <cluster>/<lane>/wal/<TLI>/<middle 8 digits>/<segment>
//! <cluster>/<lane>/wal/<TLI>/<middle 8 digits>/<segment>.partial/<sha256>
//! <cluster>/<lane>/wal/other/<name>
//! <cluster>/<lane>/index/<TLI>/<middle 8 digits>/<sha256>
//! <cluster>/<lane>/index/<TLI>/<middle>-<middle>/<sha256>
//! <cluster>/<lane>/contested/<writer>/<name>/<sha256>
//! <cluster>/<lane>/resolutions/<writer>/<name>/<sha256>
//! <cluster>/<lane>/holes/<segment>-<segment>
//! <cluster>/<lane>/packs/<backup>/<n>
//! <cluster>/<lane>/backups/<backup>/<generation>
//! ```
//!
//! Keys of objects that are zstd files end in the repository's suffix.

use super::lane_id::LaneId;
use crate::format::Sha256;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_name::WalFileName;
use crate::store::{Key, KeyError};

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
    /// for whatever is not ours.
    pub fn wal_name(&self, key: &Key) -> Option<WalFileName> {
        let name: WalFileName = key.name().strip_suffix(self.suffix.as_str())?.parse().ok()?;
        (!matches!(name, WalFileName::Partial(_) | WalFileName::Other(_))).then_some(name)
    }

    pub fn index_timeline(&self, lane: LaneId, timeline: TimelineId) -> Result<Key, KeyError> {
        self.cluster.join(&format!("{lane}/index/{}", timeline.hex()))
    }

    pub fn index(&self, lane: LaneId, timeline: TimelineId, middle: &str, members: &Sha256) -> Result<Key, KeyError> {
        self.index_timeline(lane, timeline)?.join(&format!("{middle}/{members}{}", self.suffix))
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

    /// Returns the backup and the generation that a manifest's key stands for.
    pub fn manifest_name(&self, key: &Key) -> Option<(String, u32)> {
        let generation = key.name().strip_suffix(self.suffix.as_str())?.parse().ok()?;
        Some((key.parent()?.name().to_owned(), generation))
    }
}

/// What is written in an archived file's front frame: it survives a copy to another repository.
pub(super) fn wal_identity(lane: LaneId, name: &WalFileName) -> String {
    format!("{lane}/{name}")
}

/// What is written in an index's front frame.
pub(super) fn index_identity(lane: LaneId, timeline: TimelineId, middle: &str, members: &Sha256) -> String {
    format!("{lane}/index/{}/{middle}/{members}", timeline.hex())
}

/// What is written in a pack's front frame.
pub(super) fn pack_identity(lane: LaneId, backup: &str, number: u32) -> String {
    format!("{lane}/packs/{backup}/{number}")
}

/// What is written in a manifest's front frame.
pub(super) fn manifest_identity(lane: LaneId, backup: &str, generation: u32) -> String {
    format!("{lane}/backups/{backup}/{generation}")
}
