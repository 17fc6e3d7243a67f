//! Positions in the write-ahead log.
//!
//! Source: `XLogRecPtr` in `src/include/access/xlogdefs.h`; the text form in `pg_lsn_in`, `src/backend/utils/adt/pg_lsn.c`.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use super::as_text::as_text;

/// A byte position in the write-ahead log; position 0 is never a valid record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

/// A text that is not a log position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a log position; one looks like 1A/3F00028")]
pub struct LsnError {
    text: String,
}

impl Lsn {
    /// The position PostgreSQL calls `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);

    /// Makes a position from its byte offset in the log.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the byte offset from the start of the log.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns whether PostgreSQL would treat it as a position at all.
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;

    /// Reads `X/X`, each half one to eight hex digits of either case, zero padding allowed (PostgreSQL 19 prints it).
    fn from_str(text: &str) -> Result<Self, LsnError> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        let parsed = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let (high, low) = parsed.ok_or_else(|| LsnError { text: text.to_owned() })?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }
}

impl Sub for Lsn {
    type Output = u64;
    /// Returns the bytes from `earlier` to `self`; 0 if `earlier` is later.
    fn sub(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

as_text!(Lsn);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips(bytes: u64) {
            let lsn = Lsn::new(bytes);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
        }
    }

    #[test]
    fn zero_padding_is_read() {
        assert_eq!("0/00000028".parse::<Lsn>(), Ok(Lsn::new(0x28)));
        assert_eq!("0000001A/03F00028".parse::<Lsn>(), Ok(Lsn::new(0x1A_03F0_0028)));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "/", "1", "1/", "/1", "1/2/3", "123456789/0", "0/123456789", "-1/0", "+1/0", " 1/0", "g/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was read as a position");
        }
    }
}
