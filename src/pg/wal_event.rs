//! What records mean, for those kinds that matter to a backup: ends of transactions, restore points, settings a standby
//! must match, timelines, tablespaces and databases.
//!
//! Ends of transactions are taken apart in `wal_transaction`.
//!
//! Source: `xl_restore_point`, `xl_parameter_change`, `xl_end_of_recovery` and
//! `xl_overwrite_contrecord` in `src/include/access/xlog_internal.h`; `CheckPoint` and the `XLOG_*` kinds in
//! `src/include/catalog/pg_control.h`; `src/include/commands/tablespace.h`; `src/include/commands/dbcommands_xlog.h`.

use serde::{Deserialize, Serialize};

use super::wal_page::{u32_at, u64_at};
use super::wal_transaction::EndRecord;
use super::{Lsn, PgTime, Record, TimelineId};

/// A record's meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// A transaction ended.
    TransactionEnd {
        /// How.
        kind: TransactionEnd,
        /// The transaction that ended: of a prepared one, its own id, not that of the session that ended it.
        xid: u32,
        /// When, by the server's clock; `None` if the clock was outside the years 0 to 9999.
        time: Option<PgTime>,
    },
    /// `pg_create_restore_point` was called.
    RestorePoint {
        /// The point's name; bytes that are not UTF-8 are replaced.
        name: String,
        /// When, by the server's clock; `None` as above.
        time: Option<PgTime>,
    },
    /// Settings that a standby must match changed.
    Parameters(WalParameters),
    /// `full_page_writes` changed.
    FullPageWrites {
        /// Its new value.
        on: bool,
    },
    /// The rest of the segment is padding.
    Switch,
    /// A checkpoint ended.
    Checkpoint {
        /// Whether the server was shut down with it, or ended recovery with it.
        shutdown: bool,
        /// The position from which it would be replayed.
        redo: Lsn,
        /// The timeline from here on.
        timeline: TimelineId,
        /// The timeline before; the same one unless the record begins a timeline.
        previous_timeline: TimelineId,
        /// Whether `full_page_writes` was on.
        full_page_writes: bool,
    },
    /// An online checkpoint's start, in 17 and later.
    CheckpointRedo,
    /// Recovery ended without a checkpoint.
    EndOfRecovery {
        /// When, by the server's clock; `None` as above.
        time: Option<PgTime>,
        /// The timeline from here on.
        timeline: TimelineId,
        /// The timeline before.
        previous_timeline: TimelineId,
    },
    /// A record that a crash cut short is void.
    OverwriteContrecord {
        /// Where that record began.
        lost: Lsn,
    },
    /// A tablespace was created.
    TablespaceCreated {
        /// Its OID.
        oid: u32,
        /// Its directory; empty if it lies inside the data directory. Bytes that are not UTF-8 are replaced.
        path: String,
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// Its OID.
        oid: u32,
    },
    /// A database's directory in one tablespace was created.
    DatabaseCreated {
        /// The database's OID.
        oid: u32,
        /// The tablespace's OID.
        tablespace: u32,
        /// The database whose files were copied without being logged; `None` if each block is logged.
        copied_from: Option<u32>,
    },
    /// A database was dropped.
    DatabaseDropped {
        /// Its OID.
        oid: u32,
    },
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransactionEnd {
    /// By `COMMIT`.
    Commit,
    /// By `ROLLBACK` or an error.
    Abort,
    /// By `COMMIT PREPARED`.
    CommitPrepared,
    /// By `ROLLBACK PREPARED`.
    AbortPrepared,
}

impl TransactionEnd {
    /// Returns whether the transaction's changes stay.
    pub const fn commits(self) -> bool {
        matches!(self, Self::Commit | Self::CommitPrepared)
    }
}

/// The settings that recovery compares with its own before it lets anybody read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalParameters {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
}

impl WalParameters {
    /// Returns the larger of each setting: what satisfies both.
    pub fn max(self, other: Self) -> Self {
        Self {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self.max_prepared_transactions.max(other.max_prepared_transactions),
            max_locks_per_transaction: self.max_locks_per_transaction.max(other.max_locks_per_transaction),
            wal_level: self.wal_level.max(other.wal_level),
        }
    }
}

/// Numbers of resource managers, the same in 13 to 19.
///
/// Source: `src/include/access/rmgrlist.h`.
mod manager {
    pub const XLOG: u8 = 0;
    pub const TRANSACTION: u8 = 1;
    pub const DATABASE: u8 = 4;
    pub const TABLESPACE: u8 = 5;
}

impl WalEvent {
    /// Reads a record's meaning; `None` for a kind that is not in this list, or whose data is too short for it.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        // Most records are of other resource managers: they are not taken apart.
        if record.resource_manager > manager::TABLESPACE {
            return None;
        }
        let main = || record.body().ok().map(|body| body.main);
        match record.resource_manager {
            manager::XLOG => Self::of_log(record, main()?),
            manager::TRANSACTION => Self::of_transaction(record, main()?),
            manager::DATABASE => Self::of_database(record, main()?),
            manager::TABLESPACE => Self::of_tablespace(record, main()?),
            _ => None,
        }
    }

    fn of_log(record: &Record<'_>, main: &[u8]) -> Option<Self> {
        Some(match record.kind() {
            0x00 | 0x10 => Self::Checkpoint {
                shutdown: record.kind() == 0x00,
                redo: Lsn::new(u64_in(main, 0)?),
                timeline: TimelineId::new(u32_in(main, 8)?)?,
                previous_timeline: TimelineId::new(u32_in(main, 12)?)?,
                full_page_writes: *main.get(16)? != 0,
            },
            0x40 => Self::Switch,
            0x60 => Self::Parameters(WalParameters {
                max_connections: i32_in(main, 0)?,
                max_worker_processes: i32_in(main, 4)?,
                max_wal_senders: i32_in(main, 8)?,
                max_prepared_transactions: i32_in(main, 12)?,
                max_locks_per_transaction: i32_in(main, 16)?,
                wal_level: i32_in(main, 20)?,
            }),
            0x70 => Self::RestorePoint { name: text(main.get(8..)?), time: time_in(main, 0)? },
            0x80 => Self::FullPageWrites { on: *main.first()? != 0 },
            0x90 => Self::EndOfRecovery {
                time: time_in(main, 0)?,
                timeline: TimelineId::new(u32_in(main, 8)?)?,
                previous_timeline: TimelineId::new(u32_in(main, 12)?)?,
            },
            0xD0 => Self::OverwriteContrecord { lost: Lsn::new(u64_in(main, 0)?) },
            0xE0 if record.magic.major() >= Some(17) => Self::CheckpointRedo,
            _ => return None,
        })
    }

    fn of_transaction(record: &Record<'_>, main: &[u8]) -> Option<Self> {
        let EndRecord { kind, xid, time, .. } = EndRecord::decode(record.info, record.xid, record.magic, main)?;
        Some(Self::TransactionEnd { kind, xid, time })
    }

    fn of_database(record: &Record<'_>, main: &[u8]) -> Option<Self> {
        let oid = u32_in(main, 0)?;
        // 15 put a second way to create a database before the drop.
        let (logged, drop) = if record.magic.major() < Some(15) { (None, 0x10) } else { (Some(0x10), 0x20) };
        let kind = record.kind();
        if kind == 0x00 {
            Some(Self::DatabaseCreated { oid, tablespace: u32_in(main, 4)?, copied_from: Some(u32_in(main, 8)?) })
        } else if Some(kind) == logged {
            Some(Self::DatabaseCreated { oid, tablespace: u32_in(main, 4)?, copied_from: None })
        } else {
            (kind == drop).then_some(Self::DatabaseDropped { oid })
        }
    }

    fn of_tablespace(record: &Record<'_>, main: &[u8]) -> Option<Self> {
        let oid = u32_in(main, 0)?;
        match record.kind() {
            0x00 => Some(Self::TablespaceCreated { oid, path: text(&main[4..]) }),
            0x10 => Some(Self::TablespaceDropped { oid }),
            _ => None,
        }
    }
}

fn u32_in(main: &[u8], at: usize) -> Option<u32> {
    (main.len() >= at.checked_add(4)?).then(|| u32_at(main, at))
}

fn i32_in(main: &[u8], at: usize) -> Option<i32> {
    u32_in(main, at).map(u32::cast_signed)
}

fn u64_in(main: &[u8], at: usize) -> Option<u64> {
    (main.len() >= at.checked_add(8)?).then(|| u64_at(main, at))
}

/// The outer `None`: too short. The inner: no moment that can be written down.
fn time_in(main: &[u8], at: usize) -> Option<Option<PgTime>> {
    u64_in(main, at).map(|micros| PgTime::from_micros(micros.cast_signed()))
}

/// Text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::WalMagic;
    use proptest::prelude::*;

    fn event(major_magic: u16, resource_manager: u8, info: u8, main: &[u8]) -> Option<WalEvent> {
        let mut data = vec![0; 24];
        data.push(254);
        data.extend((main.len() as u32).to_le_bytes());
        data.extend(main);
        let magic = WalMagic::new(major_magic);
        WalEvent::read(&Record {
            start: Lsn::new(0x28),
            end: Lsn::new(0x100),
            magic,
            xid: 700,
            resource_manager,
            info,
            data: &data,
        })
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_prepared_transaction_is_named_by_its_own_id_behind_every_list() {
        // Time, flags, database, one subtransaction, one relation, one statistics entry, one invalidation, id.
        let flags = 0b1_0001_1111;
        let mut main = words(&[5, 0, flags, 1, 2, 1, 31, 1, 1, 2, 3, 1, 1, 2, 3]);
        let mut eighteen = main.clone();
        eighteen.extend(words(&[4, 1, 1, 2, 3, 4, 4242]));
        main.extend(words(&[1, 1, 2, 3, 4, 4242]));
        for (magic, main) in [(0xD116, main), (0xD118, eighteen)] {
            let Some(WalEvent::TransactionEnd { kind, xid, time }) = event(magic, 1, 0x80 | 0x30, &main) else {
                panic!("not read");
            };
            assert_eq!((kind, xid, time.unwrap().micros()), (TransactionEnd::CommitPrepared, 4242, 5));
        }
    }

    #[test]
    fn a_drop_of_a_database_has_another_kind_since_fifteen() {
        let main = words(&[7, 1663, 1, 1663]);
        let copied = |oid| Some(WalEvent::DatabaseCreated { oid, tablespace: 1663, copied_from: Some(1) });
        assert_eq!(event(0xD10D, 4, 0x00, &main), copied(7));
        assert_eq!(event(0xD110, 4, 0x00, &main), copied(7));
        assert_eq!(event(0xD10D, 4, 0x10, &main), Some(WalEvent::DatabaseDropped { oid: 7 }));
        assert_eq!(event(0xD110, 4, 0x20, &main), Some(WalEvent::DatabaseDropped { oid: 7 }));
        let logged = WalEvent::DatabaseCreated { oid: 7, tablespace: 1663, copied_from: None };
        assert_eq!(event(0xD110, 4, 0x10, &main), Some(logged));
    }

    #[test]
    fn a_commit_at_an_impossible_time_is_still_a_commit() {
        let main = i64::MAX.to_le_bytes();
        let end = WalEvent::TransactionEnd { kind: TransactionEnd::Commit, xid: 700, time: None };
        assert_eq!(event(0xD110, 1, 0x00, &main), Some(end));
    }

    proptest! {
        #[test]
        fn any_main_data_is_read_or_refused(manager in 0u8..6, info: u8, main in prop::collection::vec(any::<u8>(), 0..120)) {
            for magic in [0xD10D, 0xD118] {
                let _ = event(magic, manager, info, &main);
            }
        }
    }
}
