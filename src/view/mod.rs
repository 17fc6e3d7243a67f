//! One rendering per verb: words for people, a stable JSON for programs. No formatting of results happens below here.

pub mod backups;
pub mod check;
pub mod demo;
pub mod events;
pub mod expire;
pub mod human;
pub mod owners;
pub mod plan;
pub mod report;
pub mod requests;
pub mod restore;
pub mod status;
pub mod timelines;
pub mod verify;
pub mod wal;

mod table;
