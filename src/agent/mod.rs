//! The resident process behind `wal push` and `wal fetch`, and how they reach it.
//!
//! A command that finds no agent, or one that is not its own (another repository, another version, another user, a stale
//! socket, no sign of life), does the work itself, with the same answer. So an agent can be killed at any moment: what it
//! had not answered was not acknowledged, and nothing that it keeps is needed by anyone. Of what it says a command
//! believes: *durable*, *here*, *proven absent*, and that trying again at once is useless. Every other failure the command
//! looks at itself.
//!
//! Descriptors travel with the request, so the agent needs no path of the server's: it may run in another container and
//! as another user. What it keeps (results of files archived ahead, segments fetched ahead) is in memory or has no name.

mod ahead;
mod breaker;
mod client;
mod door;
mod greeting;
mod helper;
mod house;
mod http;
mod kept;
mod nameless;
mod past;
mod peer;
mod prefetch;
mod serve;
mod signs;
mod use_made;
mod wire;

pub use client::{Asked, Brought, Client, Note, Offered, Wanted};
pub use door::{Door, DoorError};
pub use helper::{archiving_lags, is_reaped_by_a_server, recovery_is_under_way};
pub use house::{House, Limits, OpenRepository, Stay};
pub use http::listen as listen_http;
pub use past::OwnServer;
pub use serve::{Running, serve};

use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::format::Sha256;

/// Returns what tells repositories apart without naming them.
pub fn repository_digest(url: &str, cluster: &str) -> String {
    Sha256::of_parts([url.as_bytes(), b"\0", cluster.as_bytes()]).to_string()
}

/// Why trying again at once is of no use to anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Final {
    /// Other bytes have the name; both are kept.
    Conflict,
    /// Another server writes the timeline; the bytes are kept.
    NotOwner,
    /// A standby's own, and the primary has not archived it yet.
    NotYet,
    /// The file must exist and did not come in the time that was given.
    Hole,
    /// Another branch's segment must come first.
    LeftBranch,
    /// The store counts as gone, and is tried again after a while.
    StoreGone,
}

impl Final {
    /// Whether it is the file that cannot be archived; see [`crate::archive::PushError::is_the_files`].
    pub fn is_the_files(self) -> bool {
        matches!(self, Final::Conflict | Final::NotOwner | Final::NotYet)
    }
}

/// A failure that the agent tells.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct AgentFailure {
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// What it was, in one line.
    pub text: String,
    /// Why it stays so.
    pub settled: Option<Final>,
}

#[cfg(test)]
mod tests;
