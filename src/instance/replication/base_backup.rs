//! `BASE_BACKUP`: asked in each major's words, and read as it streams by.
//!
//! Up to 14 every tablespace is a copy of its own and the manifest another; since 15 there is one, whose messages say
//! what they carry. Both become the same events here.
//!
//! Source: "BASE_BACKUP" in "Streaming Replication Protocol"; `perform_base_backup` in `basebackup.c`,
//! `src/backend/backup/basebackup_copy.c`.

use super::client::ReplicationClient;
use super::error::{Refusal, ReplicationError};
use super::frames::{refusal, row, text};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;

const ACTION: &str = "take the base backup";
/// `data_corrupted`: what a server ends a backup with in which it found pages whose checksum does not match.
const DATA_CORRUPTED: &str = "XX001";

/// What is asked of the server.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// Its label.
    pub label: String,
    /// Whether to ask for an immediate checkpoint.
    pub fast: bool,
    /// Bytes that the server may send in a second.
    pub max_rate: Option<u64>,
    /// Whether to send what changed since the backup whose manifest was uploaded; 17 and later.
    pub incremental: bool,
}

impl BackupRequest {
    /// Returns the command for a server of this major. Archiving is not waited for: whoever commits looks there himself.
    fn command(&self, major: u16) -> String {
        let label = self.label.replace('\'', "''");
        // Below and above these the server refuses; above, no limit is the same.
        let rate = self.max_rate.map(|bytes| (bytes >> 10).max(32)).filter(|rate| *rate <= 1 << 20);
        if major >= 15 {
            let checkpoint = if self.fast { "fast" } else { "spread" };
            let rate = rate.map_or_else(String::new, |rate| format!(", MAX_RATE {rate}"));
            let incremental = if self.incremental { ", INCREMENTAL" } else { "" };
            return format!(
                "BASE_BACKUP (LABEL '{label}', PROGRESS, CHECKPOINT '{checkpoint}', WAIT false, TABLESPACE_MAP, \
                 MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'{incremental}{rate})"
            );
        }
        let fast = if self.fast { " FAST" } else { "" };
        let rate = rate.map_or_else(String::new, |rate| format!(" MAX_RATE {rate}"));
        format!(
            "BASE_BACKUP LABEL '{label}' PROGRESS{fast} NOWAIT{rate} TABLESPACE_MAP MANIFEST 'yes' \
             MANIFEST_CHECKSUMS 'CRC32C'"
        )
    }
}

/// A tablespace that the server announces; the data directory itself is the one without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteTablespace {
    /// Its number.
    pub oid: Option<u32>,
    /// Where it is on the server.
    pub location: String,
    /// About how many bytes it has.
    pub bytes: u64,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum BackupEvent<'a> {
    /// The archive of a tablespace begins; the one before is complete.
    Archive(RemoteTablespace),
    /// Bytes of the archive.
    Data(&'a [u8]),
    /// All archives are complete; the manifest begins.
    Manifest,
    /// Bytes of the manifest.
    ManifestData(&'a [u8]),
    /// Everything came.
    End {
        /// The position that recovery must reach.
        stop: Lsn,
        /// The timeline it is on.
        timeline: TimelineId,
        /// What the server says if it found pages whose checksum does not match.
        damaged: Option<Refusal>,
    },
}

/// A backup under way. Dropped before its end it is void, and the server is told.
pub struct BaseBackup<'c> {
    client: &'c mut ReplicationClient,
    /// Where recovery will begin.
    pub start: Lsn,
    /// On which timeline.
    pub timeline: TimelineId,
    /// What is announced, in the order in which it comes.
    pub tablespaces: Vec<RemoteTablespace>,
    typed: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No copy is under way; so many have begun.
    Between(usize),
    /// Bytes of this tablespace come.
    Archive(usize),
    Manifest,
    Ended,
}

/// What a message is, apart from its bytes.
enum Step {
    Archive(usize),
    Data,
    Manifest,
    ManifestData,
    Nothing,
}

impl ReplicationClient {
    /// Asks for a base backup; returns when the server has begun it, which takes a checkpoint.
    ///
    /// # Errors
    /// [`ReplicationError`]; then there is no backup under way. After a refusal the session can be asked again.
    pub fn base_backup(&mut self, request: &BackupRequest) -> Result<BaseBackup<'_>, ReplicationError> {
        self.send_query(ACTION, &request.command(self.major()))?;
        let first = match self.result_set(ACTION) {
            Err(refused @ ReplicationError::Refused { .. }) => {
                self.until_ready(ACTION)?;
                return Err(refused);
            }
            first => first?,
        };
        let nonsense = |what: String| ReplicationError::Answer { action: ACTION, what };
        let (start, timeline) = position(&first).ok_or_else(|| nonsense(format!("{first:?} as its start")))?;
        let rows = self.result_set(ACTION)?;
        let tablespaces: Option<Vec<_>> = rows.iter().map(|row| tablespace(row)).collect();
        let tablespaces = tablespaces.ok_or_else(|| nonsense(format!("{rows:?} as its tablespaces")))?;
        if tablespaces.iter().filter(|one| one.oid.is_none()).count() != 1 {
            return Err(nonsense(format!("{rows:?} as its tablespaces")));
        }
        let typed = self.major() >= 15;
        Ok(BaseBackup { client: self, start, timeline, tablespaces, typed, state: State::Between(0) })
    }
}

impl BaseBackup<'_> {
    /// Waits for what comes next.
    ///
    /// # Errors
    /// [`ReplicationError`]; then the backup is void.
    pub fn event(&mut self) -> Result<BackupEvent<'_>, ReplicationError> {
        loop {
            let (tag, body) = self.client.message(ACTION)?;
            let (state, step, skip) = match tag {
                b'H' | b'd' | b'c' => decide(tag, body, self.state, self.typed, &self.tablespaces)
                    .map_err(|what| ReplicationError::Answer { action: ACTION, what })?,
                b'T' if matches!(self.state, State::Between(_)) => return self.end(),
                b'E' => return Err(ReplicationError::Refused { action: ACTION, source: refusal(body) }),
                other => {
                    let what = format!("a message {:?} in the middle of it", char::from(other));
                    return Err(ReplicationError::Answer { action: ACTION, what });
                }
            };
            self.state = state;
            match step {
                Step::Nothing => {}
                Step::Archive(number) => return Ok(BackupEvent::Archive(self.tablespaces[number].clone())),
                Step::Manifest => return Ok(BackupEvent::Manifest),
                Step::Data => return Ok(BackupEvent::Data(&self.client.last_body()[skip..])),
                Step::ManifestData => return Ok(BackupEvent::ManifestData(&self.client.last_body()[skip..])),
            }
        }
    }

    /// Reads what follows the last copy.
    fn end(&mut self) -> Result<BackupEvent<'static>, ReplicationError> {
        let nonsense = |what: String| ReplicationError::Answer { action: ACTION, what };
        let expected = self.tablespaces.len() + usize::from(!self.typed);
        let copies = if self.typed { 1 } else { expected };
        if self.state != State::Between(copies) {
            return Err(nonsense("its end before all of it had come".to_owned()));
        }
        let rows = self.rows_after_description(ACTION)?;
        let (stop, timeline) = position(&rows).ok_or_else(|| nonsense(format!("{rows:?} as its end")))?;
        let damaged = match self.client.until_ready(ACTION) {
            Ok(()) => None,
            Err(ReplicationError::Refused { source, .. }) if source.code == DATA_CORRUPTED => Some(source),
            Err(error) => return Err(error),
        };
        self.state = State::Ended;
        Ok(BackupEvent::End { stop, timeline, damaged })
    }

    fn rows_after_description(&mut self, action: &'static str) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        let mut rows = Vec::new();
        loop {
            match self.client.message(action)? {
                (b'D', body) => rows.extend(row(body)),
                (b'C', _) => return Ok(rows),
                (b'E', body) => return Err(ReplicationError::Refused { action, source: refusal(body) }),
                (other, _) => {
                    let what = format!("a message {:?} in its result", char::from(other));
                    return Err(ReplicationError::Answer { action, what });
                }
            }
        }
    }

    /// Returns what the server remarked since it was last asked: links and special files that it passes over, damage.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.client.take_notices()
    }
}

impl Drop for BaseBackup<'_> {
    fn drop(&mut self) {
        if self.state != State::Ended
            && let Some(canceller) = self.client.canceller()
        {
            // What does not reach the server, the connection's end tells it, if later.
            let _ = canceller.cancel();
        }
    }
}

/// Decides what a message of a copy means: the state after it, what it is, and how many of its bytes are its heading.
fn decide(
    tag: u8,
    body: &[u8],
    state: State,
    typed: bool,
    tablespaces: &[RemoteTablespace],
) -> Result<(State, Step, usize), String> {
    match (tag, state, typed) {
        (b'H', State::Between(0), true) => Ok((State::Between(0), Step::Nothing, 0)),
        (b'H', State::Between(begun), false) if begun < tablespaces.len() => {
            Ok((State::Archive(begun), Step::Archive(begun), 0))
        }
        (b'H', State::Between(begun), false) if begun == tablespaces.len() => Ok((State::Manifest, Step::Manifest, 0)),
        (b'd', State::Archive(_), false) => Ok((state, Step::Data, 0)),
        (b'd', State::Manifest, false) => Ok((state, Step::ManifestData, 0)),
        (b'c', State::Archive(number), false) => Ok((State::Between(number + 1), Step::Nothing, 0)),
        (b'c', State::Manifest, false) => Ok((State::Between(tablespaces.len() + 1), Step::Nothing, 0)),
        (b'c', State::Manifest, true) => Ok((State::Between(1), Step::Nothing, 0)),
        (b'd', _, true) => decide_typed(body, state, tablespaces),
        _ => Err(format!("a message {:?} out of turn", char::from(tag))),
    }
}

/// The first byte says what the others are, since 15.
fn decide_typed(body: &[u8], state: State, tablespaces: &[RemoteTablespace]) -> Result<(State, Step, usize), String> {
    let next = match state {
        State::Between(0) => Some(0),
        State::Archive(number) => Some(number + 1),
        _ => None,
    };
    match (body.first(), state, next) {
        (Some(b'n'), _, Some(next)) => {
            let announced = tablespaces.get(next).ok_or("more archives than it announced")?;
            let (name, location) = text(&body[1..])
                .and_then(|(name, rest)| Some((name, text(rest)?.0)))
                .ok_or("an archive without a name")?;
            let expected = announced.oid.map_or_else(|| "base.tar".to_owned(), |oid| format!("{oid}.tar"));
            if name != expected || announced.oid.is_some() && location != announced.location {
                return Err(format!("the archive {name:?} of {location:?} where {expected} was announced"));
            }
            Ok((State::Archive(next), Step::Archive(next), 0))
        }
        (Some(b'm'), _, Some(next)) if next == tablespaces.len() => Ok((State::Manifest, Step::Manifest, 0)),
        (Some(b'd'), State::Archive(_), _) => Ok((state, Step::Data, 1)),
        (Some(b'd'), State::Manifest, _) => Ok((state, Step::ManifestData, 1)),
        // How far the server is: what arrived is counted here.
        (Some(b'p'), State::Archive(_) | State::Manifest, _) => Ok((state, Step::Nothing, 0)),
        (kind, ..) => Err(format!("a part of kind {:?} out of turn", kind.copied().map(char::from))),
    }
}

fn position(rows: &[Vec<Option<String>>]) -> Option<(Lsn, TimelineId)> {
    let [row] = rows else { return None };
    let [Some(lsn), Some(timeline)] = row.as_slice() else { return None };
    Some((lsn.parse().ok()?, TimelineId::new(timeline.parse().ok()?)?))
}

fn tablespace(row: &[Option<String>]) -> Option<RemoteTablespace> {
    let [oid, location, kib] = row else { return None };
    let oid = oid.as_ref().map(|oid| oid.parse()).transpose().ok()?;
    let kib: u64 = kib.as_ref().map_or(Ok(0), |kib| kib.parse()).ok()?;
    Some(RemoteTablespace { oid, location: location.clone().unwrap_or_default(), bytes: kib.saturating_mul(1024) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_major_is_asked_in_its_own_words() {
        let request =
            BackupRequest { label: "it's".to_owned(), fast: true, max_rate: Some(50 << 20), incremental: false };
        assert_eq!(
            request.command(14),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 51200 TABLESPACE_MAP MANIFEST 'yes' \
             MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            request.command(15),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP, MANIFEST 'yes', \
             MANIFEST_CHECKSUMS 'CRC32C', MAX_RATE 51200)"
        );
        let request = BackupRequest { label: "l".to_owned(), fast: false, max_rate: Some(1 << 40), incremental: false };
        assert!(request.command(18).contains("CHECKPOINT 'spread'") && !request.command(18).contains("MAX_RATE"));
        assert!(!request.command(13).contains("FAST") && !request.command(13).contains("MAX_RATE"));
        assert!(!request.command(18).contains("INCREMENTAL"));
        let incremental = BackupRequest { incremental: true, ..request };
        assert!(incremental.command(17).ends_with("MANIFEST_CHECKSUMS 'CRC32C', INCREMENTAL)"));
    }

    fn announced() -> Vec<RemoteTablespace> {
        let of = |oid, location: &str| RemoteTablespace { oid, location: location.to_owned(), bytes: 0 };
        vec![of(Some(16400), "/space"), of(None, "")]
    }

    #[test]
    fn archives_come_as_they_were_announced_and_in_no_other_way() {
        let announced = announced();
        let begin = decide_typed(b"n16400.tar\0/space\0", State::Between(0), &announced).expect("the first");
        assert_eq!(begin.0, State::Archive(0));
        for wrong in
            [&b"n16401.tar\0/space\0"[..], b"n16400.tar\0/other\0", b"nbase.tar\0\0", b"n", b"d", b"m", b"x", b""]
        {
            assert!(decide_typed(wrong, State::Between(0), &announced).is_err(), "{wrong:?}");
        }
        assert!(decide_typed(b"m", State::Archive(0), &announced).is_err(), "the data directory is missing");
        assert_eq!(
            decide_typed(b"nbase.tar\0\0", State::Archive(0), &announced).expect("the next").0,
            State::Archive(1)
        );
        assert_eq!(decide_typed(b"m", State::Archive(1), &announced).expect("all are there").0, State::Manifest);
        assert!(decide_typed(b"nmore.tar\0\0", State::Archive(1), &announced).is_err());
        assert!(decide(b'c', b"", State::Archive(1), true, &announced).is_err(), "no manifest came");
        assert!(decide(b'H', b"", State::Between(3), false, &announced).is_err(), "a copy too many");
    }
}
