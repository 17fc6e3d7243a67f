//! Who pushes: a token that no copy of the data directory takes along.
//!
//! It is a digest of the data directory's path and of what tells this host from every other one: a random number in the
//! state directory, if there is one, else the machine's id and name. A whole machine that is copied takes all of that along;
//! then only the bytes tell the two apart, and they do.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::format::Sha256;
use crate::pg::timeline::TimelineId;

/// Who pushes, and how patient it is with others.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The token, part of keys: 16 hex digits.
    pub token: String,
    /// The token that the same place has where there is no state directory: what it owned before it got one stays its own.
    pub former: Option<String>,
    /// The host's name, for people.
    pub host: String,
    /// Silence of a timeline's owner after which this writer takes its place; none means at once.
    pub grace: Duration,
    /// The timeline along which this data directory was restored to take the lane over, if it was.
    pub takes_over: Option<TimelineId>,
    /// Whether its server is a standby, which archives what another one writes (`archive_mode = always`): it has nothing
    /// that the timeline's owner lacks.
    pub follows: bool,
}

/// File of the random number, in the state directory.
const FILE: &str = "writer";
/// Hex digits of the random number.
const DIGITS: usize = 64;

impl Writer {
    /// Returns the writer of a data directory on this host. The random number is drawn if the state directory is there
    /// and has none; where that cannot be done, it goes without.
    pub fn of(data: &Path, state: Option<&Path>, grace: Duration) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let place = place_of(data).unwrap_or_else(|| data.to_path_buf());
        let place = place.as_os_str().as_encoded_bytes();
        let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
        let by_machine = token_of(Sha256::of_parts([&machine[..], b"\0", host.as_bytes(), b"\0", place]));
        let (token, former) = match state.and_then(random_number) {
            Some(number) => (token_of(Sha256::of_parts([number.as_bytes(), b"\0", place])), Some(by_machine)),
            None => (by_machine, None),
        };
        Self { token, former, host, grace, takes_over: None, follows: false }
    }

    /// Whether a token is this writer's, or was.
    pub fn is(&self, token: &str) -> bool {
        self.token == token || self.was(token)
    }

    /// Whether a token was this writer's before it had a state directory.
    pub(super) fn was(&self, token: &str) -> bool {
        self.former.as_deref() == Some(token)
    }
}

fn token_of(digest: Sha256) -> String {
    digest.to_string()[..16].to_owned()
}

/// Where a data directory is, or will be.
fn place_of(data: &Path) -> Option<PathBuf> {
    if let Ok(place) = std::fs::canonicalize(data) {
        return Some(place);
    }
    let data = std::path::absolute(data).ok()?;
    Some(std::fs::canonicalize(data.parent()?).ok()?.join(data.file_name()?))
}

fn random_number(state: &Path) -> Option<String> {
    let file = state.join(FILE);
    read(&file).or_else(|| {
        // Another push may have drawn meanwhile; what counts is what is there.
        let _ = draw(state, &file);
        read(&file)
    })
}

fn read(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let number = text.trim_end();
    (number.len() == DIGITS && number.bytes().all(|digit| digit.is_ascii_hexdigit())).then(|| number.to_owned())
}

/// Whole or not at all, and never over one that is there: two pushes may draw at one time.
fn draw(state: &Path, file: &Path) -> std::io::Result<()> {
    let mut random = [0; DIGITS / 2];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let number = hex::encode(random);
    let unfinished = state.join(format!(".{FILE}-{}", &number[..16]));
    // Not a secret: whoever runs a check must see the same.
    let mut drawn = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&unfinished)?;
    let written = drawn.write_all(format!("{number}\n").as_bytes()).and_then(|()| drawn.sync_all());
    let named = written.and_then(|()| std::fs::hard_link(&unfinished, file));
    std::fs::remove_file(&unfinished)?;
    named?;
    File::open(state)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(data: &Path, state: Option<&Path>) -> String {
        Writer::of(data, state, Duration::ZERO).token
    }

    #[test]
    fn a_place_has_one_token_and_a_copy_elsewhere_another() {
        let place = tempfile::tempdir().expect("a directory");
        let (one, other) = (place.path().join("one"), place.path().join("other"));
        std::fs::create_dir(&one).expect("room");
        std::fs::create_dir(&other).expect("room");
        std::os::unix::fs::symlink(&one, place.path().join("link")).expect("room");
        let state = place.path().join("state");
        for state in [None, Some(state.as_path()), Some(one.as_path())] {
            let first = token(&one, state);
            assert_eq!((first.len(), &first), (16, &token(&one, state)));
            assert_eq!(first, token(&place.path().join("link"), state));
            let later = place.path().join("link/later");
            let before = token(&later, state);
            std::fs::create_dir(&later).expect("room");
            assert_eq!(before, token(&later, state), "a directory that was not there yet");
            std::fs::remove_dir(&later).expect("it is empty");
            assert_ne!(first, token(&other, state));
        }
        assert!(!state.exists(), "a directory that is not there is not made");
    }

    #[test]
    fn two_hosts_that_look_alike_have_two_tokens_by_their_state() {
        let (one, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let data = Path::new("/");
        let tokens = [None, Some(one.path()), Some(other.path())].map(|state| token(data, state));
        assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2] && tokens[0] != tokens[2], "{tokens:?}");
        // What cannot be read counts as not there, and is not written over.
        std::fs::write(one.path().join(FILE), "x").expect("room");
        assert_eq!(token(data, Some(one.path())), tokens[0]);
    }

    #[test]
    fn many_pushes_at_once_draw_one_number() {
        let state = tempfile::tempdir().expect("a directory");
        let draw = || token(Path::new("/"), Some(state.path()));
        let tokens: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
        assert_eq!(std::fs::read_dir(state.path()).expect("a directory").count(), 1);
    }
}
