//! The log between two backups, looked through in archives in memory and in a `pg_wal` on the disk.

#![allow(clippy::unwrap_used)]

use super::*;
