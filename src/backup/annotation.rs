//! What an operator notes about a backup: words of theirs, which mean nothing to walvault.

use std::collections::BTreeMap;

/// Longest key.
const KEY_BYTES: usize = 64;
/// Longest value.
const VALUE_BYTES: usize = 1024;
/// Most notes on one backup.
const NOTES: usize = 32;

/// Why a note is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// No `=`.
    #[error("annotation {text:?}: write KEY=VALUE")]
    Form {
        /// What was given.
        text: String,
    },
    /// The key.
    #[error("annotation {key:?}: a key has 1 to {KEY_BYTES} letters, digits and ._- and begins with a letter or digit")]
    Key {
        /// What was given.
        key: String,
    },
    /// The value.
    #[error("annotation {key}: a value has 1 to {VALUE_BYTES} bytes and no control characters")]
    Value {
        /// Of which key.
        key: String,
    },
    /// The same key again.
    #[error("annotation {key} is given twice")]
    Twice {
        /// Which.
        key: String,
    },
    /// Too many.
    #[error("a backup has at most {NOTES} annotations")]
    TooMany,
}

/// Reads notes written as `KEY=VALUE`.
pub fn annotations<'a>(
    texts: impl IntoIterator<Item = &'a String>,
) -> Result<BTreeMap<String, String>, AnnotationError> {
    let mut notes = BTreeMap::new();
    for text in texts {
        let (key, value) = text.split_once('=').ok_or_else(|| AnnotationError::Form { text: text.clone() })?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if key.len() > KEY_BYTES || !key.starts_with(|c: char| c.is_ascii_alphanumeric()) || !key.chars().all(plain) {
            return Err(AnnotationError::Key { key: key.to_owned() });
        }
        // It is shown on terminals, where a control character could pretend to be something else.
        if value.is_empty() || value.len() > VALUE_BYTES || value.chars().any(char::is_control) {
            return Err(AnnotationError::Value { key: key.to_owned() });
        }
        if notes.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(AnnotationError::Twice { key: key.to_owned() });
        }
    }
    if notes.len() > NOTES { Err(AnnotationError::TooMany) } else { Ok(notes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<BTreeMap<String, String>, AnnotationError> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        annotations(&texts)
    }

    #[test]
    fn notes_are_words_with_limits() {
        let notes = read(&["ticket=OPS-17", "why=before the move = really", "a.b-c_1=ü"]).expect("notes");
        assert_eq!(notes["why"], "before the move = really");
        assert_eq!(notes.len(), 3);
        assert!(read(&[&format!("{}={}", "k".repeat(64), "v".repeat(1024))]).is_ok());
        assert!(matches!(read(&["alone"]), Err(AnnotationError::Form { .. })));
        for key in ["", "-a", "a b", "ä", "a/b", &"k".repeat(65)] {
            assert!(matches!(read(&[&format!("{key}=x")]), Err(AnnotationError::Key { .. })), "{key:?}");
        }
        for value in ["", "a\nb", "\u{1b}[2J", "\u{9b}", &"v".repeat(1025)] {
            assert!(matches!(read(&[&format!("k={value}")]), Err(AnnotationError::Value { .. })), "{value:?}");
        }
        assert!(matches!(read(&["a=1", "a=1"]), Err(AnnotationError::Twice { .. })));
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=x")).collect();
        assert_eq!(annotations(&many), Err(AnnotationError::TooMany));
        assert!(annotations(&many[..32]).is_ok());
    }
}
