//! The number that tells one PostgreSQL cluster from every other.

use std::fmt;
use std::str::FromStr;

use super::as_text::as_text;

/// A cluster's system identifier: made by `initdb`, kept by physical copies, written in `pg_control` and in the first
/// page of every WAL segment.
///
/// Printed as the unsigned decimal that `pg_controldata` prints.
///
/// Source: `ControlFileData.system_identifier` in `src/include/catalog/pg_control.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(u64);

/// A text that is not a system identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a system identifier; pg_controldata prints one as a decimal number")]
pub struct SystemIdError {
    text: String,
}

impl SystemId {
    /// Makes an identifier from the number in `pg_control`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number as `pg_control` holds it.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = SystemIdError;

    fn from_str(text: &str) -> Result<Self, SystemIdError> {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = plain.then(|| text.parse().ok()).flatten();
        number.map(Self).ok_or_else(|| SystemIdError { text: text.to_owned() })
    }
}

// JSON readers keep only 53 bits of a number.
as_text!(SystemId);
