//! The contents of a checkpoint's record, of which `pg_control` keeps a copy.
//!
//! Source: `CheckPoint` in `src/include/catalog/pg_control.h`, whose fields lie where they do in 13 to 18; `CreateCheckPoint`
//! and `xlog_redo` in `src/backend/access/transam/xlog.c`.

use super::wal_page::u64_at;
use super::{Lsn, Record};

/// What a checkpoint's record says, but for what a later one changes in the copy.
///
/// 88 bytes, little-endian: redo u64, timeline u32, timeline before u32, full page writes u8, three bytes of padding, since 17
/// `wal_level` i32, next transaction u64, next OID u32, next multixact u32, its offset u32, oldest transaction u32, its database
/// u32, oldest multixact u32, its database u32, four bytes of padding, time i64, oldest and newest transaction with a commit
/// time u32 each, oldest running transaction u32, padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint([u8; Self::LEN]);

impl Checkpoint {
    /// Bytes in it.
    pub const LEN: usize = 88;
    /// What is not compared: padding, `wal_level`, which is padding before 17, and the next transaction, which a standby that
    /// replays a later checkpoint puts into its copy at once.
    const LEFT_OUT: [std::ops::Range<usize>; 3] = [17..32, 60..64, 84..Self::LEN];

    /// Reads what a record, or `pg_control`, holds.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut copy: [u8; Self::LEN] = *bytes.first_chunk()?;
        Self::LEFT_OUT.into_iter().for_each(|part| copy[part].fill(0));
        Some(Self(copy))
    }

    /// Returns what a record says, if it is a checkpoint's.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        const SHUTDOWN: u8 = 0x00;
        const ONLINE: u8 = 0x10;
        let is_one = record.resource_manager == 0 && matches!(record.kind(), SHUTDOWN | ONLINE);
        Self::read(is_one.then(|| record.body().ok())??.main)
    }

    /// Returns where replay from it begins.
    pub fn redo(&self) -> Lsn {
        Lsn::new(u64_at(&self.0, 0))
    }
}

/// Returns the start of the backup of which a record marks the end, if it is such a record.
///
/// Source: `do_pg_backup_stop` (`do_pg_stop_backup` in 13 and 14) in `xlog.c` writes the start, and gives the position after the
/// record for the backup's end; `XLOG_BACKUP_END` in `pg_control.h`.
pub fn backup_ended(record: &Record<'_>) -> Option<Lsn> {
    const BACKUP_END: u8 = 0x50;
    let is_one = record.resource_manager == 0 && record.kind() == BACKUP_END;
    let body = is_one.then(|| record.body().ok())??;
    (body.main.len() >= 8).then(|| Lsn::new(u64_at(body.main, 0)))
}
