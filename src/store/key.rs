//! Names of objects.
//!
//! A key means the same in every backend: one path on a volume, one object name in a bucket, with nothing to encode in
//! either. Which keys exist and what they mean is not known here.

use std::fmt;
use std::str::FromStr;

/// The name of one object, or of a folder of objects, relative to the store's root.
///
/// One or more parts joined by `/`, at most [`Key::MAX_BYTES`] in all. A part is 1 to [`Key::MAX_PART_BYTES`] of the
/// characters `A–Z a–z 0–9 . _ - + = @` and does not begin with a dot: so no part climbs, and what file systems leave
/// lying about (`.nfs0001`, `.snapshot`) and our own unfinished files (`name#…`) can never be taken for an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A text that names no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text has no characters, or two slashes meet, or one stands at an end.
    #[error("{text:?} is not an object key: a part is empty")]
    EmptyPart {
        /// The text as given.
        text: String,
    },
    /// A part begins with a dot.
    #[error("{text:?} is not an object key: a part begins with a dot")]
    LeadingDot {
        /// The text as given.
        text: String,
    },
    /// A character outside the set every backend takes unchanged.
    #[error("{text:?} is not an object key: {found:?} is not allowed")]
    Character {
        /// The text as given.
        text: String,
        /// The first character refused.
        found: char,
    },
    /// The key or one of its parts is too long for some backend.
    #[error("an object key of {bytes} bytes is too long: {max} is the most")]
    TooLong {
        /// Length found, in bytes.
        bytes: usize,
        /// Length allowed, in bytes.
        max: usize,
    },
}

impl Key {
    /// Longest key in bytes: S3's own limit.
    pub const MAX_BYTES: usize = 1024;
    /// Longest part in bytes: a file name holds 255 and an unfinished file adds a suffix to its part.
    pub const MAX_PART_BYTES: usize = 200;

    /// Returns the key as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key with `rest`, one or several parts, below it.
    ///
    /// # Errors
    /// [`KeyError`] if the result is not a key.
    pub fn join(&self, rest: &str) -> Result<Key, KeyError> {
        let key = format!("{}/{rest}", self.0);
        // What was a key before is not looked at again: a listing joins half a million names to a few folders.
        check_length(&key)?;
        rest.split('/').try_for_each(|part| check_part(part, &key))?;
        Ok(Key(key))
    }

    /// Returns the parts, outermost first; there is at least one.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns the last part.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// Returns the key without its last part; `None` when it has only one.
    pub fn parent(&self) -> Option<Key> {
        self.0.rsplit_once('/').map(|(parent, _)| Key(parent.to_owned()))
    }

    /// Returns the parts below `folder`; `None` when the key is not below it.
    pub fn below(&self, folder: &Key) -> Option<&str> {
        self.0.strip_prefix(&folder.0)?.strip_prefix('/')
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        check_length(text)?;
        text.split('/').try_for_each(|part| check_part(part, text))?;
        Ok(Self(text.to_owned()))
    }
}

fn check_length(text: &str) -> Result<(), KeyError> {
    match text.len() {
        bytes if bytes > Key::MAX_BYTES => Err(KeyError::TooLong { bytes, max: Key::MAX_BYTES }),
        _ => Ok(()),
    }
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'=' | b'@')
}

fn check_part(part: &str, text: &str) -> Result<(), KeyError> {
    let owned = || text.to_owned();
    if part.is_empty() {
        return Err(KeyError::EmptyPart { text: owned() });
    }
    if part.starts_with('.') {
        return Err(KeyError::LeadingDot { text: owned() });
    }
    if !part.bytes().all(is_allowed) {
        let found = part.chars().find(|found| !u8::try_from(*found).is_ok_and(is_allowed));
        return Err(KeyError::Character { text: owned(), found: found.unwrap_or_default() });
    }
    if part.len() > Key::MAX_PART_BYTES {
        return Err(KeyError::TooLong { bytes: part.len(), max: Key::MAX_PART_BYTES });
    }
    Ok(())
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use object_store::path::Path;
    use proptest::prelude::*;

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    #[test]
    fn names_of_the_repository_are_keys() {
        for text in
            ["a", "main/repository.json", "m/7-1/wal/00000001/00000000/000000010000000000000001", "x/a_b-c+d=e@f.g"]
        {
            assert_eq!(key(text).to_string(), text);
        }
    }

    #[test]
    fn what_a_backend_would_change_or_climb_with_is_refused() {
        let table = [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            ".nfs0001",
            "a/.snapshot",
            "a b",
            "a#1",
            "a%2e",
            "a\\b",
            "ä",
            "a\n",
            "a\0b",
            "a:b",
            "a*",
            "~a",
            "\u{feff}a",
        ];
        for text in table {
            assert!(text.parse::<Key>().is_err(), "{text:?} was taken for a key");
        }
        assert!("x".repeat(Key::MAX_PART_BYTES).parse::<Key>().is_ok());
        assert!("x".repeat(Key::MAX_PART_BYTES + 1).parse::<Key>().is_err());
        assert!("x/".repeat(Key::MAX_BYTES / 2).trim_end_matches('/').parse::<Key>().is_ok());
        assert!(("x/".repeat(Key::MAX_BYTES / 2) + "x").parse::<Key>().is_err());
    }

    #[test]
    fn a_folder_does_not_hold_its_longer_namesake() {
        assert_eq!(key("a/b/c").below(&key("a")), Some("b/c"));
        assert_eq!(key("ab/c").below(&key("a")), None);
        assert_eq!(key("a").below(&key("a")), None);
    }

    #[test]
    fn parts_take_a_key_apart() {
        let deep = key("a").join("b/c").unwrap();
        assert_eq!((deep.name(), deep.parent(), key("a").parent()), ("c", Some(key("a/b")), None));
        assert_eq!(deep.parts().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(key("a").join("../b").is_err());
        assert!(key("a").join("").is_err());
    }

    proptest! {
        #[test]
        fn a_key_is_the_same_name_in_every_backend(text in "[ -~]{0,12}(/[ -~]{0,6}){0,3}") {
            if let Ok(key) = text.parse::<Key>() {
                let (parsed, made) = (Path::parse(key.as_str()).unwrap(), Path::from(key.as_str()));
                prop_assert_eq!(parsed.as_ref(), key.as_str());
                prop_assert_eq!(made.as_ref(), key.as_str());
            }
        }
    }
}
