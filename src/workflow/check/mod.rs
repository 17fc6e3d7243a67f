//! Whether everything that archiving, backups and restores depend on is as it should be.
//!
//! Gathering and judging are apart: [`gather`] looks and never judges, and fails for nothing; [`decide`] judges and never
//! looks. What could not be looked at is said, with the reason, and the rest goes on.

mod decide;
mod facts;
mod finding;
mod gather;
mod mend;

pub use decide::decide;
pub use facts::{
    AgentFacts, Binary, CalledVerb, CommandFacts, ConfigFacts, DataFacts, Destination, Facts, Holdings, Joined, Known,
    LaneState, Reach, RepositoryFacts, RoundTrip, RoundTripEnd, Understood, Unknown, UserFacts, WalvaultCall,
};
pub use finding::{Area, Code, Finding, Level, worst};
pub use gather::{Inputs, Understand, gather};

/// Stands for `%p` while a command is taken apart.
pub const EXAMPLE_PATH: &str = "pg_wal/000000010000000000000001";
/// Stands for `%f` while a command is taken apart.
pub const EXAMPLE_FILE: &str = "000000010000000000000001";
