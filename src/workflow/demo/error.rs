//! Why the story ended early.

use std::path::PathBuf;
use std::time::Duration;

use super::scene::Step;
use crate::error::ErrorKind;
use crate::instance::NoServerPrograms;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// There is no PostgreSQL.
    #[error(transparent)]
    Programs(#[from] NoServerPrograms),
    /// PostgreSQL does not run as root, and there is nobody else.
    #[error("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")]
    NoUser,
    /// No directory for scratch files will do.
    #[error(
        "no directory for scratch files: each of {} is missing, forbidden to the server's user, not to run programs in, \
         or too long for a socket's name", listed(.tried)
    )]
    NoPlace {
        /// Where was looked.
        tried: Vec<PathBuf>,
    },
    /// A file could not be written or read.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program did not start.
    #[error("run {}{}", program.display(), user.as_ref().map_or_else(String::new, |user| format!(" as {user}")))]
    Run {
        /// The program.
        program: PathBuf,
        /// As whom, where that is another than the caller.
        user: Option<String>,
        /// What the system said.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("`{line}` ended with {status}: {said}")]
    Command {
        /// The command, as it is typed.
        line: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        said: String,
    },
    /// A command's answer makes no sense.
    #[error("`{line}` answered {said:?}")]
    Answer {
        /// The command, as it is typed.
        line: String,
        /// What it said.
        said: String,
    },
    /// The server did not do what was asked.
    #[error("{action}")]
    Sql {
        /// What was asked.
        action: &'static str,
        /// What the driver says.
        source: tokio_postgres::Error,
    },
    /// Something did not happen.
    #[error("waited {} s, and still not: {what}", waited.as_secs())]
    TooLong {
        /// What should have happened.
        what: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A proof did not hold.
    #[error("{what}: expected {expected}, found {found}")]
    Disproved {
        /// What was compared.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Somebody wants it to end.
    #[error("interrupted")]
    Interrupted,
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Where the story ended early, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}", step.map_or_else(|| "set the stage".to_owned(), |step| format!("step {}", step.number())))]
pub struct DemoFailure {
    /// The chapter.
    pub step: Option<Step>,
    /// What went wrong.
    pub source: DemoError,
    /// The last lines of the servers' logs, under the name of each.
    pub logs: Vec<(String, String)>,
}

impl DemoFailure {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match &self.source {
            DemoError::Programs(_) | DemoError::NoUser => ErrorKind::NotFound,
            DemoError::NoPlace { .. } => ErrorKind::Denied,
            DemoError::Interrupted => ErrorKind::Cancelled,
            DemoError::Disproved { .. } => ErrorKind::Corrupt,
            DemoError::Answer { .. } => ErrorKind::Internal,
            DemoError::Io { .. }
            | DemoError::Run { .. }
            | DemoError::Command { .. }
            | DemoError::Sql { .. }
            | DemoError::TooLong { .. } => ErrorKind::Unavailable,
        }
    }
}
