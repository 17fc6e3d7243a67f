//! Where servers may be, and which of several is wanted.
//!
//! Source: `host`, `hostaddr`, `port` and `target_session_attrs` in the manual's chapter on libpq.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Which of several servers is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // libpq's own names
pub enum SessionAttrs {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl SessionAttrs {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => return None,
        })
    }

    /// Returns libpq's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }

    /// Returns whether a server will do that is, or is not, a standby and takes no writes.
    pub fn accepts(self, standby: bool, read_only: bool) -> bool {
        match self {
            Self::Any => true,
            Self::ReadWrite => !standby && !read_only,
            Self::ReadOnly => standby || read_only,
            Self::Primary => !standby,
            Self::Standby | Self::PreferStandby => standby,
        }
    }

    /// Returns what to look for among the hosts, one after the other.
    pub fn passes(self) -> &'static [SessionAttrs] {
        match self {
            Self::PreferStandby => &[Self::Standby, Self::Any],
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
        }
    }
}

/// One place where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A host's name, an address, or the directory of a socket.
    pub host: String,
    /// Where the host is, if that is not to be asked.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

impl Endpoint {
    /// Returns the socket's path, if it is one.
    pub fn socket(&self) -> Option<PathBuf> {
        self.host.starts_with('/').then(|| Path::new(&self.host).join(format!(".s.PGSQL.{}", self.port)))
    }

    /// Whether it leads elsewhere on another host.
    fn is_of_this_host(&self) -> bool {
        let address = self.address.or_else(|| self.host.parse().ok());
        self.host.starts_with('/') || self.host == "localhost" || address.is_some_and(|address| address.is_loopback())
    }

    /// Returns where it is, for messages.
    pub fn target(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl super::ConnectionSettings {
    /// Returns all places where the server may be, and whether any of them is one only on this very host.
    pub fn places(&self) -> (String, bool) {
        let shown: Vec<String> = self.endpoints.iter().map(Endpoint::target).collect();
        (shown.join(","), self.endpoints.iter().any(Endpoint::is_of_this_host))
    }
}
