//! PostgreSQL's facts, pure: positions, names, log records, control data, pages. Nothing here reads a file.

pub(crate) mod as_text;
pub mod backup_label;
pub mod backup_manifest;
pub mod checkpoint;
pub mod configuration_file;
pub mod control;
pub mod data_directory;
pub mod lsn;
pub mod page;
pub mod pg_time;
pub mod relation_file;
pub mod segment;
pub mod shell_command;
pub mod system_id;
pub mod tablespace_map;
pub mod timeline;
pub mod wal_chain;
pub mod wal_changes;
pub mod wal_event;
pub mod wal_facts;
#[cfg(test)]
pub(crate) mod wal_fixture;
pub mod wal_name;
pub mod wal_page;
pub mod wal_parting;
pub mod wal_record;
pub mod wal_summary;
pub mod wal_transaction;
pub mod wal_walk;

pub use backup_label::BackupLabel;
pub use checkpoint::Checkpoint;
pub use control::ControlFile;
pub use lsn::Lsn;
pub use pg_time::{PgTime, PgTimeError};
pub use segment::{SegmentName, SegmentNo, SegmentSize, SegmentSizeError};
pub use system_id::{SystemId, SystemIdError};
pub use timeline::{Fork, History, HistoryError, Stretch, TimelineHex, TimelineId};
pub use wal_chain::{ChainBreak, ChangesChain};
pub use wal_changes::{ChangesEnd, ChangesWalk, RelationChanges, Run, SegmentChanges};
pub use wal_event::{TransactionEnd, WalEvent, WalParameters};
pub use wal_facts::{FactsWalk, WalFacts};
pub use wal_name::{NameError, OtherName, WalFileName};
pub use wal_page::{FirstPage, PageError, PageHeader, WalMagic};
pub use wal_parting::Parting;
pub use wal_record::{
    BlockReference, BodyError, Record, RecordBody, RecordHeader, RecordPart, RelationFork, RelationLocator,
    record_checksum,
};
pub use wal_transaction::{DroppedRelation, EndRecord, created_file};
pub use wal_walk::{OpenRecord, SegmentEnd, SegmentWalk, StopReason, Walker};
