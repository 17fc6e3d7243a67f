//! `global/pg_control`: what a cluster is, how it was last shut down, and where its recovery would begin.
//!
//! [`ControlFile::parse`] reads the files of PostgreSQL 13 to 18; 13 to 16 share one control version and are told apart
//! by their catalog version. Numbers are little-endian. Reading the file again after a torn read, and writing it last,
//! is the caller's part.
//!
//! Source: `ControlFileData`, `CheckPoint` and `DBState` in `src/include/catalog/pg_control.h`, `CATALOG_VERSION_NO` in
//! `src/include/catalog/catversion.h`.

use std::fmt;

use chrono::{DateTime, Utc};

use super::checkpoint::Checkpoint;
use super::lsn::Lsn;
use super::page::BlockSize;
use super::segment::SegmentSize;
use super::system_id::SystemId;
use super::timeline::TimelineId;

/// Bytes of the longest known `ControlFileData`; the file is padded with zeros to 8192.
pub const CONTROL_DATA_BYTES: usize = 296;

/// The checkpoint of a [poisoned](ControlFile::poisoned) file.
///
/// It passes `XRecOffIsValid` for every WAL block size, so PostgreSQL reads `backup_label` before it looks for the
/// record; and it lies in segment 0 for every segment size, which no cluster ever writes, so it is never found.
pub const POISONED_CHECKPOINT: Lsn = Lsn::new(0xD_EAD0);

const CHECKPOINT_AT: usize = 32;

/// A released layout of the file.
struct Layout {
    control_version: u32,
    catalog_version: u32,
    major: u16,
    crc_at: usize,
}

const LAYOUTS: [Layout; 6] = [
    Layout { control_version: 1300, catalog_version: 202007201, major: 13, crc_at: 288 },
    Layout { control_version: 1300, catalog_version: 202107181, major: 14, crc_at: 288 },
    Layout { control_version: 1300, catalog_version: 202209061, major: 15, crc_at: 288 },
    Layout { control_version: 1300, catalog_version: 202307071, major: 16, crc_at: 288 },
    Layout { control_version: 1700, catalog_version: 202406281, major: 17, crc_at: 288 },
    Layout { control_version: 1800, catalog_version: 202506291, major: 18, crc_at: 292 },
];

/// The contents of `pg_control`, as far as backup and recovery need them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity.
    pub system_id: SystemId,
    /// `pg_control_version`: the layout of this file.
    pub control_version: u32,
    /// `catalog_version_no`: the layout of the system catalogs; part of every tablespace's directory name.
    pub catalog_version: u32,
    /// PostgreSQL's major version, 13 to 18.
    pub major: u16,
    /// What the cluster was doing when the file was written.
    pub state: DbState,
    /// Start of the latest checkpoint record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// What the record of that checkpoint says.
    pub checkpoint_copy: Checkpoint,
    /// Timeline of that checkpoint.
    pub timeline: TimelineId,
    /// When that checkpoint was made, UTC, whole seconds.
    pub checkpoint_time: DateTime<Utc>,
    /// Whether full pages were logged at that checkpoint.
    pub full_page_writes: bool,
    /// How far replay must get before the data files agree with each other; `None` outside archive recovery.
    pub min_recovery_point: Option<RecoveryPoint>,
    /// Redo position of the base backup being recovered, until its end is reached.
    pub backup_start_point: Option<Lsn>,
    /// End of the base backup being recovered, if it was taken from a standby.
    pub backup_end_point: Option<Lsn>,
    /// Whether recovery waits for a backup-end record.
    pub backup_end_required: bool,
    /// The setting `wal_level`.
    pub wal_level: WalLevel,
    /// The setting `wal_log_hints`.
    pub wal_log_hints: bool,
    /// The setting `max_connections`; a server that recovers this cluster's WAL must not have less, here and below.
    pub max_connections: u32,
    /// The setting `max_worker_processes`.
    pub max_worker_processes: u32,
    /// The setting `max_wal_senders`.
    pub max_wal_senders: u32,
    /// The setting `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// The setting `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// The setting `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// Bytes in a data page.
    pub block_size: BlockSize,
    /// Blocks in one file of a relation before the next is begun; 131072 unless PostgreSQL was built otherwise.
    pub relation_segment_blocks: u32,
    /// Bytes in a WAL page; a power of two from 1 to 64 KiB.
    pub wal_block_size: u32,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
}

/// A position recovery must reach, and the timeline it lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryPoint {
    /// The position; never 0.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
}

/// What a cluster was doing when its `pg_control` was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbState {
    /// `DB_STARTUP`.
    Startup,
    /// `DB_SHUTDOWNED`: a clean shutdown of a primary.
    ShutDown,
    /// `DB_SHUTDOWNED_IN_RECOVERY`: a clean shutdown of a standby.
    ShutDownInRecovery,
    /// `DB_SHUTDOWNING`.
    ShuttingDown,
    /// `DB_IN_CRASH_RECOVERY`.
    InCrashRecovery,
    /// `DB_IN_ARCHIVE_RECOVERY`: a running standby, or a restore under way.
    InArchiveRecovery,
    /// `DB_IN_PRODUCTION`.
    InProduction,
}

/// How much a cluster writes to its WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Enough for crash recovery only; WAL of this level cannot be archived.
    Minimal,
    /// Enough for archiving and standbys.
    Replica,
    /// Also enough for logical decoding.
    Logical,
}

/// Bytes that are not a `pg_control` of PostgreSQL 13 to 18.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The file was cut.
    #[error("pg_control is {length} bytes long, at least {CONTROL_DATA_BYTES} are needed")]
    TooShort {
        /// Bytes given.
        length: usize,
    },
    /// Another major, a development version, a fork, or not a `pg_control` at all.
    #[error(
        "pg_control has control version {control_version} and catalog version {catalog_version}, no release of PostgreSQL 13 to 18"
    )]
    UnknownVersion {
        /// `pg_control_version` found.
        control_version: u32,
        /// `catalog_version_no` found.
        catalog_version: u32,
    },
    /// A torn read, worth another one, or damage.
    #[error("pg_control has checksum {stored:08x}, its contents have {computed:08x}")]
    Checksum {
        /// CRC-32C in the file.
        stored: u32,
        /// CRC-32C of the bytes before it.
        computed: u32,
    },
    /// A value PostgreSQL does not write.
    #[error("pg_control holds {value} as {field}")]
    Field {
        /// PostgreSQL's name of the field.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
}

impl ControlFile {
    /// Reads a `pg_control`, whole or cut to no less than [`CONTROL_DATA_BYTES`].
    ///
    /// # Errors
    /// [`ControlError::Checksum`] also after a torn read: the server may be writing the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let (data, layout) = checked(bytes)?;
        Ok(Self {
            system_id: SystemId::new(data.u64(0)),
            control_version: layout.control_version,
            catalog_version: layout.catalog_version,
            major: layout.major,
            state: DbState::from_number(data.u32(16))?,
            checkpoint: data.lsn(CHECKPOINT_AT),
            redo: data.lsn(40),
            checkpoint_copy: Checkpoint::read(&data.0[40..]).expect("it lies inside the struct"),
            timeline: data.timeline("checkPointCopy.ThisTimeLineID", 48)?,
            checkpoint_time: data.time("checkPointCopy.time", 104)?,
            full_page_writes: data.bool(56),
            min_recovery_point: data.recovery_point("minRecoveryPointTLI", 136)?,
            backup_start_point: data.valid_lsn(152),
            backup_end_point: data.valid_lsn(160),
            backup_end_required: data.bool(168),
            wal_level: WalLevel::from_number(data.u32(172))?,
            wal_log_hints: data.bool(176),
            max_connections: data.count("MaxConnections", 180)?,
            max_worker_processes: data.count("max_worker_processes", 184)?,
            max_wal_senders: data.count("max_wal_senders", 188)?,
            max_prepared_transactions: data.count("max_prepared_xacts", 192)?,
            max_locks_per_transaction: data.count("max_locks_per_xact", 196)?,
            track_commit_timestamp: data.bool(200),
            block_size: data.block_size("blcksz", 216)?,
            relation_segment_blocks: data.relation_segment_blocks("relseg_size", 220)?,
            wal_block_size: data.wal_block_size("xlog_blcksz", 224)?,
            segment_size: data.segment_size("xlog_seg_size", 228)?,
            data_checksums: data.data_checksums("data_checksum_version", 252)?,
        })
    }

    /// Returns the same file with only its checkpoint made one that no log holds, and the checksum to match.
    ///
    /// PostgreSQL refuses to start from it unless `backup_label` names the checkpoint to recover from; so a restored
    /// directory that lost its label stays down instead of starting from a later checkpoint with pages missing.
    /// Poisoning twice changes nothing more.
    ///
    /// # Errors
    /// As [`ControlFile::parse`].
    pub fn poisoned(bytes: &[u8]) -> Result<Vec<u8>, ControlError> {
        Self::parse(bytes)?;
        let (_, layout) = checked(bytes)?;
        let mut poisoned = bytes.to_vec();
        poisoned[CHECKPOINT_AT..][..8].copy_from_slice(&POISONED_CHECKPOINT.bytes().to_le_bytes());
        let crc = crc32c::crc32c(&poisoned[..layout.crc_at]);
        poisoned[layout.crc_at..][..4].copy_from_slice(&crc.to_le_bytes());
        Ok(poisoned)
    }

    /// Returns whether the server can only start from it with a `backup_label`.
    pub fn is_poisoned(&self) -> bool {
        self.checkpoint == POISONED_CHECKPOINT
    }
}

/// The bytes with the layout they claim, once their checksum agrees.
fn checked(bytes: &[u8]) -> Result<(Data<'_>, &'static Layout), ControlError> {
    let data = bytes.first_chunk().map(Data).ok_or(ControlError::TooShort { length: bytes.len() })?;
    let (control_version, catalog_version) = (data.u32(8), data.u32(12));
    let layout = LAYOUTS
        .iter()
        .find(|layout| (layout.control_version, layout.catalog_version) == (control_version, catalog_version))
        .ok_or(ControlError::UnknownVersion { control_version, catalog_version })?;
    let (stored, computed) = (data.u32(layout.crc_at), crc32c::crc32c(&data.0[..layout.crc_at]));
    if stored != computed {
        return Err(ControlError::Checksum { stored, computed });
    }
    Ok((data, layout))
}

/// `ControlFileData` by offset; offsets are constants inside the struct.
#[derive(Clone, Copy)]
struct Data<'a>(&'a [u8; CONTROL_DATA_BYTES]);

impl Data<'_> {
    fn bytes<const N: usize>(self, at: usize) -> [u8; N] {
        self.0[at..].first_chunk().copied().expect("offsets lie inside the struct")
    }

    fn bool(self, at: usize) -> bool {
        self.0[at] != 0
    }

    fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn lsn(self, at: usize) -> Lsn {
        Lsn::new(self.u64(at))
    }

    fn valid_lsn(self, at: usize) -> Option<Lsn> {
        Some(self.lsn(at)).filter(|lsn| lsn.is_valid())
    }

    fn timeline(self, field: &'static str, at: usize) -> Result<TimelineId, ControlError> {
        let number = self.u32(at);
        TimelineId::new(number).ok_or(ControlError::Field { field, value: number.into() })
    }

    /// A position with its timeline right behind it.
    fn recovery_point(self, field: &'static str, at: usize) -> Result<Option<RecoveryPoint>, ControlError> {
        let lsn = self.valid_lsn(at);
        lsn.map(|lsn| Ok(RecoveryPoint { lsn, timeline: self.timeline(field, at + 8)? })).transpose()
    }

    fn time(self, field: &'static str, at: usize) -> Result<DateTime<Utc>, ControlError> {
        let value = i64::from_le_bytes(self.bytes(at));
        DateTime::from_timestamp(value, 0).ok_or(ControlError::Field { field, value })
    }

    fn count(self, field: &'static str, at: usize) -> Result<u32, ControlError> {
        let value = i32::from_le_bytes(self.bytes(at));
        u32::try_from(value).map_err(|_| ControlError::Field { field, value: value.into() })
    }

    fn block_size(self, field: &'static str, at: usize) -> Result<BlockSize, ControlError> {
        let value = self.u32(at);
        BlockSize::new(value).ok_or(ControlError::Field { field, value: value.into() })
    }

    fn relation_segment_blocks(self, field: &'static str, at: usize) -> Result<u32, ControlError> {
        let value = self.u32(at);
        (value != 0).then_some(value).ok_or(ControlError::Field { field, value: value.into() })
    }

    fn wal_block_size(self, field: &'static str, at: usize) -> Result<u32, ControlError> {
        let value = self.u32(at);
        let valid = value.is_power_of_two() && (1 << 10..=1 << 16).contains(&value);
        valid.then_some(value).ok_or(ControlError::Field { field, value: value.into() })
    }

    fn segment_size(self, field: &'static str, at: usize) -> Result<SegmentSize, ControlError> {
        let value = self.u32(at);
        SegmentSize::new(value).map_err(|_| ControlError::Field { field, value: value.into() })
    }

    fn data_checksums(self, field: &'static str, at: usize) -> Result<bool, ControlError> {
        match self.u32(at) {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(ControlError::Field { field, value: value.into() }),
        }
    }
}

impl DbState {
    fn from_number(number: u32) -> Result<Self, ControlError> {
        Ok(match number {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return Err(ControlError::Field { field: "state", value: number.into() }),
        })
    }
}

impl fmt::Display for DbState {
    /// Prints the words of `pg_controldata`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

impl WalLevel {
    fn from_number(number: u32) -> Result<Self, ControlError> {
        Ok(match number {
            0 => Self::Minimal,
            1 => Self::Replica,
            2 => Self::Logical,
            _ => return Err(ControlError::Field { field: "wal_level", value: number.into() }),
        })
    }
}

impl fmt::Display for WalLevel {
    /// Prints the value of the setting `wal_level`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        })
    }
}

#[cfg(test)]
mod tests;
