//! What can go wrong with a store, and which [`ErrorKind`] each failure is.
//!
//! A [`Failure`] is one attempt that did not succeed; a [`StoreError`] is a verb that gave up, with the last failure as
//! its cause. That an object is absent or already there is an outcome of a verb and not found here.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Key, Verb};
use crate::error::ErrorKind;

/// A verb that gave up: which one, on what, where, and why.
///
/// A write that failed as [`ErrorKind::Unavailable`] may still have taken place, or take place later.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {} in {store}{}", Subject(.key), Tries(*.attempts))]
pub struct StoreError {
    pub(super) verb: Verb,
    pub(super) key: Option<Key>,
    pub(super) store: Arc<str>,
    pub(super) attempts: u32,
    #[source]
    pub(super) failure: Failure,
}

impl StoreError {
    /// Returns what the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.failure.kind()
    }

    /// Returns the store's name: its URL.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// Returns what was asked of the store.
    pub const fn verb(&self) -> Verb {
        self.verb
    }

    /// Returns the object or folder it was asked for; `None` for the whole store.
    pub const fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// Returns how often it was tried.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns why the last attempt failed.
    pub const fn failure(&self) -> &Failure {
        &self.failure
    }
}

struct Subject<'a>(&'a Option<Key>);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => key.fmt(f),
            None => f.write_str("the root"),
        }
    }
}

struct Tries(u32);

impl fmt::Display for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 | 1 => Ok(()),
            tries => write!(f, " ({tries} attempts)"),
        }
    }
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The backend refused or broke.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No answer, or no further part of one, came in time.
    #[error("no answer within {:.1} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The body ended before the length its own reply had announced.
    #[error("the reply broke off after {got} of {expected} bytes")]
    CutOff {
        /// Bytes announced.
        expected: u64,
        /// Bytes received.
        got: u64,
    },
    /// The object is shorter than what refers to it says.
    #[error("bytes {start} to {end} were asked of an object of {size} bytes")]
    PastEnd {
        /// First byte asked for.
        start: u64,
        /// First byte no longer asked for.
        end: u64,
        /// Bytes the object has.
        size: u64,
    },
    /// The object is larger than its reader expects any such object to be.
    #[error("the object has {size} bytes, and {limit} is the most expected here")]
    TooLarge {
        /// Bytes the object has.
        size: u64,
        /// Bytes the caller allowed.
        limit: u64,
    },
}

impl Failure {
    /// Returns what the caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Backend(error) => error.kind,
            Self::TimedOut(_) | Self::CutOff { .. } => ErrorKind::Unavailable,
            Self::PastEnd { .. } | Self::TooLarge { .. } => ErrorKind::Corrupt,
        }
    }
}

/// A backend's own error and the kind it was found to be.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct BackendError {
    kind: ErrorKind,
    source: Box<dyn Error + Send + Sync>,
}

impl BackendError {
    /// Takes an error whose kind is already known.
    pub(super) fn new(kind: ErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, source: source.into() }
    }

    /// Returns what the caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the error that the backend gave.
    pub(super) fn origin(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.source
    }
}

impl From<object_store::Error> for BackendError {
    /// Finds the kind, and drops the library's wrapping where it only says "generic error".
    fn from(error: object_store::Error) -> Self {
        if let Some((kind, source)) = super::refusal::judged(&error) {
            return match error {
                // Typed by the library from a status that was let pass: an outcome.
                object_store::Error::NotFound { .. } | object_store::Error::AlreadyExists { .. } => {
                    Self { kind: kind_of(&error), source: Box::new(error) }
                }
                _ => Self { kind, source },
            };
        }
        let kind = kind_of(&error);
        let source: Box<dyn Error + Send + Sync> = match error {
            object_store::Error::Generic { source, .. } => source,
            other => Box::new(other),
        };
        Self { kind, source }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        Self::Backend(error.into())
    }
}

/// Returns the kind of a backend's error.
///
/// [`ErrorKind::NotFound`] comes of the library's own variant and nothing else, so an error of the operating system
/// deeper inside can never be taken for an object that is not there.
fn kind_of(error: &object_store::Error) -> ErrorKind {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => ErrorKind::Conflict,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::Denied,
        E::InvalidPath { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
        E::JoinError { source } if source.is_panic() => ErrorKind::Internal,
        E::JoinError { .. } => ErrorKind::Cancelled,
        other => match io_error_in(other).map_or(ErrorKind::Unavailable, kind_of_io) {
            ErrorKind::NotFound => ErrorKind::Unavailable,
            kind => kind,
        },
    }
}

/// Returns the kind of an error of the operating system.
///
/// What is not known to be permanent is [`ErrorKind::Unavailable`]: a medium error, a stale NFS handle and a lost
/// connection all leave the object's state unknown.
pub(super) fn kind_of_io(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::AlreadyExists => ErrorKind::Conflict,
        K::PermissionDenied | K::ReadOnlyFilesystem => ErrorKind::Denied,
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::Full,
        K::ResourceBusy | K::WouldBlock => ErrorKind::Busy,
        K::NotADirectory | K::IsADirectory | K::InvalidInput | K::InvalidFilename | K::Unsupported => {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Unavailable,
    }
}

fn io_error_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use rustix::io::Errno;

    fn generic(source: impl Into<Box<dyn Error + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic { store: "test", source: source.into() }
    }

    #[test]
    fn every_error_number_has_a_reaction() {
        let table = [
            (Errno::NOSPC, ErrorKind::Full),
            (Errno::DQUOT, ErrorKind::Full),
            (Errno::FBIG, ErrorKind::Full),
            (Errno::ACCESS, ErrorKind::Denied),
            (Errno::PERM, ErrorKind::Denied),
            (Errno::ROFS, ErrorKind::Denied),
            (Errno::NOENT, ErrorKind::NotFound),
            (Errno::EXIST, ErrorKind::Conflict),
            (Errno::BUSY, ErrorKind::Busy),
            (Errno::AGAIN, ErrorKind::Busy),
            (Errno::NOTDIR, ErrorKind::Invalid),
            (Errno::ISDIR, ErrorKind::Invalid),
            (Errno::NAMETOOLONG, ErrorKind::Invalid),
            (Errno::IO, ErrorKind::Unavailable),
            (Errno::STALE, ErrorKind::Unavailable),
            (Errno::TIMEDOUT, ErrorKind::Unavailable),
            (Errno::CONNRESET, ErrorKind::Unavailable),
            (Errno::HOSTUNREACH, ErrorKind::Unavailable),
            (Errno::MFILE, ErrorKind::Unavailable),
            (Errno::NOMEM, ErrorKind::Unavailable),
            (Errno::NODEV, ErrorKind::Unavailable),
            (Errno::LOOP, ErrorKind::Unavailable),
        ];
        for (errno, kind) in table {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(kind_of_io(&error), kind, "{error}");
        }
    }

    #[test]
    fn only_a_typed_not_found_is_not_found() {
        let enoent = || io::Error::from_raw_os_error(Errno::NOENT.raw_os_error());
        assert_eq!(kind_of(&generic(enoent())), ErrorKind::Unavailable);
        let typed = object_store::Error::NotFound { path: "a".into(), source: enoent().into() };
        assert_eq!(kind_of(&typed), ErrorKind::NotFound);
        assert_eq!(kind_of(&generic("404 Not Found")), ErrorKind::Unavailable);
    }

    #[test]
    fn an_error_number_is_found_however_deep() {
        #[derive(Debug, thiserror::Error)]
        #[error("write a file")]
        struct Deep(#[source] io::Error);
        let full = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        assert_eq!(kind_of(&generic(Deep(full))), ErrorKind::Full);
    }

    #[test]
    fn the_text_names_verb_key_store_and_cause_once() {
        let error = StoreError {
            verb: Verb::Create,
            key: "main/a".parse().ok(),
            store: "file:///mnt/x".into(),
            attempts: 3,
            failure: generic(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error())).into(),
        };
        assert_eq!(
            chain(&error).to_string(),
            "create main/a in file:///mnt/x (3 attempts): No space left on device (os error 28)"
        );
        let error = StoreError { key: None, verb: Verb::List, attempts: 1, ..error };
        assert!(error.to_string().starts_with("list the root in file:///mnt/x"));
        assert_eq!(error.kind(), ErrorKind::Full);
    }
}
