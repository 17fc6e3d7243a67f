//! What can go wrong between here and a server, in words for whoever reads them at night.

use std::fmt;
use std::io;

use crate::error::ErrorKind;
use crate::pg::system_id::SystemId;

/// What a server said when it refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE, five characters.
    pub code: String,
    /// The message.
    pub message: String,
    /// Its detail, if there was one.
    pub detail: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// Why the server did not do what was asked over the replication protocol.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// Nobody answers there.
    #[error("connect to {target}")]
    Connect {
        /// Host and port.
        target: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server does not let us in.
    #[error("connect to {target}")]
    Login {
        /// Host and port.
        target: String,
        /// Its words.
        source: Refusal,
    },
    /// The server asks for something that cannot be given.
    #[error("connect to {target}: {problem}")]
    Authentication {
        /// Host and port.
        target: String,
        /// What is missing or refused.
        problem: String,
    },
    /// Encryption could not be agreed on.
    #[error("connect to {target}: encrypt the connection")]
    Tls {
        /// Host and port.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// The host is there, and is not what was asked for.
    #[error("{target} is {found}, and target_session_attrs={wanted} was asked for")]
    OtherRole {
        /// Host and port.
        target: String,
        /// What it is.
        found: &'static str,
        /// What was wanted.
        wanted: &'static str,
    },
    /// A second connection came to a server of another cluster.
    #[error("{target} leads to system {found} now, and led to {expected}")]
    OtherSystem {
        /// Host and port.
        target: String,
        /// The system that answers now.
        found: SystemId,
        /// The one that is backed up.
        expected: SystemId,
    },
    /// None of several hosts would do.
    #[error("none of the hosts can be used: {problems}")]
    NoHost {
        /// What each of them said.
        problems: String,
        /// What can be done about the last of them.
        kind: ErrorKind,
    },
    /// Something answers that does not speak the replication protocol.
    #[error("{target} does not speak the replication protocol: {problem}")]
    NotAServer {
        /// Host and port.
        target: String,
        /// What it said instead.
        problem: String,
    },
    /// A release that this build does not know.
    #[error("the server is PostgreSQL {found}; majors 13 to 18 are known here")]
    Major {
        /// What it calls itself.
        found: String,
    },
    /// A slot that is not there.
    #[error("the server has no replication slot {name}")]
    NoSlot {
        /// Its name.
        name: String,
    },
    /// A command failed.
    #[error("{action}")]
    Refused {
        /// What it was for.
        action: &'static str,
        /// The server's words.
        source: Refusal,
    },
    /// The connection ended before the answer did.
    #[error("{action}: the connection to the server was lost")]
    Lost {
        /// What was going on.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// An answer that makes no sense.
    #[error("{action}: the server sent {what}")]
    Answer {
        /// What was going on.
        action: &'static str,
        /// What came.
        what: String,
    },
}

impl ReplicationError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. } | Self::Lost { .. } => ErrorKind::Unavailable,
            Self::Login { source, .. } | Self::Refused { source, .. } => kind_of(&source.code),
            Self::Authentication { .. } => ErrorKind::Denied,
            Self::Tls { .. } => ErrorKind::Unavailable,
            Self::OtherRole { .. } | Self::OtherSystem { .. } => ErrorKind::Unavailable,
            Self::NoHost { kind, .. } => *kind,
            Self::NotAServer { .. } | Self::Major { .. } | Self::NoSlot { .. } => ErrorKind::Invalid,
            Self::Answer { .. } => ErrorKind::Corrupt,
        }
    }

    /// Whether the server understood and said no; the session goes on.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether what was asked for needs something that the server does not have, or not yet.
    pub fn lacks_prerequisite(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.code == "55000")
    }

    /// The one next thing to do, where there is one.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Login { source, .. } | Self::Refused { source, .. } => hint_of(source),
            Self::NotAServer { .. } => {
                Some("connect to the server itself: a pooler in between does not pass the replication protocol on")
            }
            Self::Major { .. } => Some("use the walvault that is made for this server's major"),
            Self::NoSlot { .. } => Some(NO_SLOT),
            Self::OtherSystem { .. } => Some("name the server itself: what stands there leads to several clusters"),
            Self::Tls { .. } => Some("compare sslmode and sslrootcert with the server's ssl and ssl_cert_file"),
            _ => None,
        }
    }
}

/// Source: `src/backend/utils/errcodes.txt`.
fn kind_of(code: &str) -> ErrorKind {
    match code {
        "42501" => ErrorKind::Denied,
        // A protocol that whoever answers does not speak: a pooler.
        "08P01" | "42704" => ErrorKind::Invalid,
        "53300" | "53400" | "55000" | "55006" => ErrorKind::Busy,
        "57014" => ErrorKind::Cancelled,
        code if code.starts_with("28") => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    }
}

const NO_SLOT: &str = "create it on the server: select pg_create_physical_replication_slot('NAME', true)";

fn hint_of(refusal: &Refusal) -> Option<&'static str> {
    let says = |words: &str| refusal.message.contains(words);
    match refusal.code.as_str() {
        "28P01" => Some("check the user and PGPASSWORD, PGPASSFILE or ~/.pgpass"),
        "28000" if says("pg_hba.conf") => {
            Some("add a line for database replication, this user and this host to pg_hba.conf, and reload the server")
        }
        "42501" => Some("give the user the right: alter role … replication"),
        "53300" if says("max_wal_senders") => {
            Some("raise max_wal_senders, or end a walsender that pg_stat_replication shows and nobody needs")
        }
        "53300" => Some("raise max_connections, or end sessions that nobody needs"),
        "53400" => Some("raise max_replication_slots, drop a slot that nobody needs, or name one of your own: --slot"),
        "42704" if says("replication slot") => Some(NO_SLOT),
        "55006" if says("replication slot") => Some("one slot serves one reader: end the other, or name another slot"),
        "58P01" if says("has already been removed") => {
            Some("the slot held too little: see max_slot_wal_keep_size and wal_keep_size on the server")
        }
        "08P01" if says("unsupported startup parameter") => {
            Some("connect to the server itself: a pooler in between does not pass the replication protocol on")
        }
        _ => None,
    }
}
