//! What a caller can do about a failure, and how a failure is printed.
//!
//! Each module has its own error type; they meet in [`ErrorKind`], the only thing a caller branches on, and in
//! [`chain`] and [`one_line`], the only ways an error becomes text for a person.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller can do about a failure. A new kind needs a new reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The thing named is not there, and whoever was asked was able to know. Name another, or create it.
    NotFound,
    /// The name is taken by other contents. Keep both, change neither, tell the operator; trying again cannot help.
    Conflict,
    /// We are known and not allowed, or not known. Ends when the operator grants a right or mends a credential.
    Denied,
    /// No room is left: space, quota or a size limit. Ends when the operator makes room.
    Full,
    /// Somebody else holds it, or asks us to slow down. Try again after a pause.
    Busy,
    /// No usable answer came. Nothing is known about the thing named, nor whether a write took place. Try again.
    Unavailable,
    /// The bytes are not the bytes that were stored. Never use them; look for another copy and raise an alarm.
    Corrupt,
    /// The request itself cannot be right: an option, a name, a format this build does not read. Change the request.
    Invalid,
    /// We were told to stop, and stopped. Say nothing more and leave.
    Cancelled,
    /// A bug in this program. Report it; assume nothing about what was done.
    Internal,
}

impl ErrorKind {
    /// Returns the kind in one or two lower-case words, as logs and `--json` show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the error and its causes as `a: b: c`, outermost first.
///
/// A cause whose words already end the text is not said again: libraries often paste their cause into their own text.
pub fn chain(error: &dyn Error) -> impl fmt::Display {
    Chain(error)
}

/// Returns [`chain`] as one line of at most `max` bytes, for a log that holds one line per event.
///
/// Line breaks, tabs and other control characters become single spaces; what does not fit is cut at a character
/// boundary and ends in `…`.
pub fn one_line(error: &dyn Error, max: usize) -> String {
    let text = chain(error).to_string();
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    cut(words.collect::<Vec<_>>().join(" "), max)
}

struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let causes = std::iter::successors(self.0.source(), |&error| error.source());
        for cause in causes.map(|cause| cause.to_string()) {
            if !says(&text, &cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)
    }
}

/// Whether `cause` is the end of `text`, as a whole and not by chance: "timed out" does not say "out".
fn says(text: &str, cause: &str) -> bool {
    cause.is_empty() || text.strip_suffix(cause).is_some_and(|before| before.is_empty() || before.ends_with(": "))
}

/// Returns the text in at most `max` bytes; what is cut off at a character boundary ends in `…`.
pub fn cut(mut text: String, max: usize) -> String {
    const MORE: &str = "…";
    if text.len() > max {
        let room = max.saturating_sub(MORE.len());
        let end = (0..=room).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        if max >= MORE.len() {
            text.push_str(MORE);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct Link(&'static str, Option<Box<Link>>);

    impl fmt::Display for Link {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Link {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|link| link as &(dyn Error + 'static))
        }
    }

    fn links(texts: &[&'static str]) -> Link {
        let (first, rest) = texts.split_first().expect("a test gives at least one text");
        Link(first, (!rest.is_empty()).then(|| Box::new(links(rest))))
    }

    #[test]
    fn a_chain_says_each_cause_once() {
        let table: &[(&[&'static str], &str)] = &[
            (&["store 42"], "store 42"),
            (&["store 42", "connect to bucket", "timed out"], "store 42: connect to bucket: timed out"),
            (&["store 42: timed out", "timed out"], "store 42: timed out"),
            (&["put: write: disk full", "write: disk full", "disk full"], "put: write: disk full"),
            (&["put", "write: disk full", "disk full"], "put: write: disk full"),
            (&["same", "same"], "same"),
            (&["timed out", "out"], "timed out: out"),
            (&["a bout", "out"], "a bout: out"),
            (&["put", "", "disk full"], "put: disk full"),
        ];
        for (texts, expected) in table {
            assert_eq!(chain(&links(texts)).to_string(), *expected);
        }
    }

    #[test]
    fn one_line_has_no_line_breaks_and_fits() {
        let error = links(&["read\r\n\tfile", "server said:\n\x1b[31mnö\n"]);
        assert_eq!(one_line(&error, 500), "read file: server said: [31mnö");
        assert_eq!(one_line(&links(&["abcdef"]), 6), "abcdef");
        assert_eq!(one_line(&links(&["abcdefg"]), 6), "abc…");
        assert_eq!(one_line(&links(&["ööö"]), 5), "ö…", "the cut falls inside a character");
        assert_eq!(one_line(&links(&["abcdefg"]), 2), "");
    }

    proptest! {
        #[test]
        fn one_line_never_exceeds_its_width(text in "\\PC{0,40}", max in 0usize..60) {
            let line = one_line(&std::io::Error::other(text.clone()), max);
            prop_assert!(line.len() <= max);
            prop_assert!(!line.contains('\n'));
        }
    }
}
