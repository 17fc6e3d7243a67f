//! The vocabulary that journeys are written in: servers, repositories, the program itself, and a ledger of rows.
//!
//! Everything here belongs to one test and is gone when the test ends, however it ends: `Drop` tidies up after a
//! panic, and a janitor process (see [`scratch`]) after a killed test run. No word here judges walvault; that is the
//! journeys' part.

// Each journey uses the words it needs; none uses all of them.
#![allow(dead_code, unused_imports)]

pub mod address;
pub mod browser;
pub mod budget;
pub mod certificates;
pub mod chance;
pub mod disk;
pub mod empty_root;
pub mod http_server;
pub mod ledger;
pub mod major;
pub mod manifest;
pub mod moment;
pub mod moto;
pub mod network;
pub mod object_server;
pub mod pages;
pub mod pg;
pub mod process;
pub mod replication_proxy;
pub mod repo;
pub mod scratch;
pub mod session;
pub mod signature;
pub mod site;
pub mod snapshot;
pub mod sql;
pub mod strace;
pub mod template;
pub mod tool;
pub mod user;
pub mod walvault;

pub use self::budget::{soaking, within};
pub use self::chance::Chance;
pub use self::disk::Disk;
pub use self::ledger::Ledger;
pub use self::major::Major;
pub use self::moment::Moments;
pub use self::pages::Pages;
pub use self::pg::{Stop, TestServer};
pub use self::process::Outcome;
pub use self::repo::TestRepo;
pub use self::scratch::Scratch;
pub use self::site::{Restored, Site};
pub use self::snapshot::Snapshot;
pub use self::walvault::Walvault;
