//! SHA-256, the one digest that stored bytes are trusted by.

use std::fmt;
use std::str::FromStr;

pub use contents::{ContentsHasher, PIECE_BYTES, of_contents, of_pieces, pieces_of};

use sha2::Digest as _;

use crate::pg::as_text::as_text;

mod contents;
#[cfg(all(target_arch = "x86_64", any(test, not(debug_assertions))))]
mod side_by_side;

/// A SHA-256; which bytes it covers is said where it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256([u8; 32]);

/// A text that is not 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a SHA-256 in 64 hex digits")]
pub struct Sha256Error {
    text: String,
}

impl Sha256 {
    /// Bytes of a digest as stored.
    pub const LEN: usize = 32;

    /// Takes a digest that was read from somewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the digest as stored.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(sha2::Sha256::digest(data).into())
    }

    /// Returns the digest of each stretch, in order: faster than one [`of`](Self::of) after another where the processor has
    /// instructions for SHA-256 and the stretches are about equally long.
    pub fn of_each(stretches: &[&[u8]]) -> Vec<Self> {
        // Built without optimisation, each instruction is a call, and the crate a hundred times as fast.
        #[cfg(all(target_arch = "x86_64", not(debug_assertions)))]
        if let Some(instructions) = side_by_side::ShaInstructions::here() {
            return instructions.of_each(stretches);
        }
        one_after_another(stretches)
    }

    /// Returns the digest of the parts, one after another.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Sha256Hasher::default();
        parts.into_iter().for_each(|part| hasher.update(part));
        hasher.finish()
    }
}

fn one_after_another(stretches: &[&[u8]]) -> Vec<Sha256> {
    stretches.iter().map(|stretch| Sha256::of(stretch)).collect()
}

/// A digest in the making.
#[derive(Default, Clone)]
pub struct Sha256Hasher(sha2::Sha256);

impl Sha256Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// Returns the digest of all that was added.
    pub fn finish(self) -> Sha256 {
        Sha256(self.0.finalize().into())
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = Sha256Error;

    fn from_str(text: &str) -> Result<Self, Sha256Error> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(Sha256Error { text: text.chars().take(80).collect() }),
        }
    }
}

as_text!(Sha256);

#[cfg(test)]
mod tests;
