//! `START_REPLICATION PHYSICAL`: the log as the server writes it, and what the server must hear meanwhile.
//!
//! The log comes from one position on, without a gap, until the timeline ends or nobody wants more. A server that hears
//! nothing for `wal_sender_timeout` ends the session, so whoever reads says from time to time how far it is; what it says
//! is durable, a slot need not keep any longer.
//!
//! Source: "Streaming Replication Protocol" in the manual; `StartReplication`, `ProcessStandbyReplyMessage` and
//! `XLogSendPhysical` in `src/backend/replication/walsender.c`; `ReceiveXlogStream` in `src/bin/pg_basebackup/receivelog.c`.

use std::time::Duration;

use super::client::ReplicationClient;
use super::error::ReplicationError;
use super::frames::{refusal, row};
use crate::clock;
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::timeline::TimelineId;

const ACTION: &str = "stream the server's WAL";
/// How long the end of a session is waited for; nothing depends on it.
const FAREWELL: Duration = Duration::from_secs(10);

/// Which part of the log is asked for.
#[derive(Clone, Debug)]
pub struct WalRequest {
    /// The slot that keeps it until it is durable here.
    pub slot: Option<String>,
    /// Where to begin.
    pub start: Lsn,
    /// On which timeline.
    pub timeline: TimelineId,
}

impl WalRequest {
    fn command(&self) -> String {
        let Self { slot, start, timeline } = self;
        let slot = slot.as_ref().map_or_else(String::new, |slot| format!("SLOT \"{}\" ", slot.replace('"', "\"\"")));
        format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}")
    }
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Streamed<'a> {
    /// Bytes of the log.
    Log {
        /// Where in the log they begin: where the ones before ended.
        at: Lsn,
        /// At least one.
        bytes: &'a [u8],
    },
    /// The server is there and has nothing new.
    Alive {
        /// Whether it wants to hear at once how far we are.
        asks: bool,
    },
    /// Nothing came within the time that was given.
    Silence,
    /// The timeline ends here; the server goes on with another one.
    TimelineEnd {
        /// The timeline that follows and where it begins, if the server says so.
        next: Option<(TimelineId, Lsn)>,
    },
}

/// The log, streaming by. Dropped before its end it just ends.
pub struct WalStream<'c> {
    client: &'c mut ReplicationClient,
    /// Where the next bytes begin.
    position: Lsn,
    over: bool,
}

impl ReplicationClient {
    /// Asks for the log from a position on.
    ///
    /// # Errors
    /// [`ReplicationError::Refused`] if it is not there any more, if the server does not know the timeline, or if the slot
    /// is not there or in use.
    pub fn stream_wal(&mut self, request: &WalRequest) -> Result<WalStream<'_>, ReplicationError> {
        self.send_query(ACTION, &request.command())?;
        match self.message(ACTION)? {
            (b'W', _) => Ok(WalStream { client: self, position: request.start, over: false }),
            (b'E', body) => Err(ReplicationError::Refused { action: ACTION, source: refusal(body) }),
            // Of a timeline that ended just there nothing is left to stream.
            (b'T' | b'C', _) => Err(ReplicationError::Answer { action: ACTION, what: "no WAL at all".to_owned() }),
            (other, _) => {
                let what = format!("a message {:?} in place of WAL", char::from(other));
                Err(ReplicationError::Answer { action: ACTION, what })
            }
        }
    }
}

impl WalStream<'_> {
    /// Waits for what comes next, at most for `patience`.
    ///
    /// # Errors
    /// [`ReplicationError`], also for bytes that do not follow those before; then the stream is over.
    pub fn next(&mut self, patience: Duration) -> Result<Streamed<'_>, ReplicationError> {
        let Some(tag) = self.client.message_within(ACTION, patience)? else { return Ok(Streamed::Silence) };
        let nonsense = |what: String| ReplicationError::Answer { action: ACTION, what };
        match tag {
            b'd' => match decide(self.client.last_body(), self.position).map_err(nonsense)? {
                Part::Log => {
                    let at = self.position;
                    let length = self.client.last_body().len() - LOG_HEADING;
                    self.position = at + length as u64;
                    let bytes = &self.client.last_body()[LOG_HEADING..];
                    Ok(if bytes.is_empty() { Streamed::Alive { asks: false } } else { Streamed::Log { at, bytes } })
                }
                Part::Keepalive { asks } => Ok(Streamed::Alive { asks }),
            },
            b'c' => {
                self.over = true;
                self.client.send(ACTION, b"c\0\0\0\x04")?;
                let next = self.rows_to_the_end()?;
                Ok(Streamed::TimelineEnd { next: next.first().and_then(|row| following(row)) })
            }
            b'E' => {
                let source = refusal(self.client.last_body());
                Err(ReplicationError::Refused { action: ACTION, source })
            }
            other => Err(nonsense(format!("a message {:?} among the WAL", char::from(other)))),
        }
    }

    /// Tells the server how far we are: up to where the log came, and up to where it is durable. A server counts whoever
    /// names durable log among its synchronous standbys, if their names fit; with `None` it does not, and a slot stays
    /// where it is.
    ///
    /// # Errors
    /// [`ReplicationError::Lost`].
    pub fn confirm(&mut self, durable: Option<Lsn>) -> Result<(), ReplicationError> {
        let now = PgTime::from_utc(clock::now()).map_or(0, PgTime::micros);
        let message = status(self.position, durable.unwrap_or(Lsn::INVALID), now);
        self.client.send(ACTION, &message)
    }

    /// Ends the stream. The server answers once it has read everything that was said before.
    pub fn finish(mut self) {
        let ended = self.client.send(ACTION, b"c\0\0\0\x04").and_then(|()| self.rows_to_the_end());
        // It was told; if it did not hear it, the connection's end tells it too.
        self.over = ended.is_ok();
    }

    /// Reads on to where the server is ready again; what is still under way is passed over.
    fn rows_to_the_end(&mut self) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        let mut rows = Vec::new();
        loop {
            let Some(tag) = self.client.message_within(ACTION, FAREWELL)? else {
                let what = "nothing at the end of the WAL".to_owned();
                return Err(ReplicationError::Answer { action: ACTION, what });
            };
            match tag {
                b'D' => rows.extend(row(self.client.last_body())),
                b'Z' => return Ok(rows),
                b'E' => {
                    let source = refusal(self.client.last_body());
                    return Err(ReplicationError::Refused { action: ACTION, source });
                }
                _ => {}
            }
        }
    }
}

/// A part's kind, where it begins, where the server's log ends, and the server's clock.
const LOG_HEADING: usize = 25;

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Log,
    Keepalive { asks: bool },
}

/// Decides what a part of the stream is; `position` is where the log before it ended.
fn decide(body: &[u8], position: Lsn) -> Result<Part, String> {
    match body {
        [b'w', heading @ ..] if body.len() >= LOG_HEADING => {
            let at = heading.first_chunk::<8>().map(|bytes| Lsn::new(u64::from_be_bytes(*bytes)));
            match at == Some(position) {
                true => Ok(Part::Log),
                false => Err(format!("WAL from {} on after {position}", at.unwrap_or_default())),
            }
        }
        [b'k', rest @ ..] if rest.len() == 17 => Ok(Part::Keepalive { asks: rest[16] != 0 }),
        [kind, ..] => Err(format!("{} bytes of kind {:?} among the WAL", body.len(), char::from(*kind))),
        [] => Err("an empty part of the WAL".to_owned()),
    }
}

/// Returns a "standby status update": how far the log was received, made durable and applied, the clock, no wish for an
/// answer.
fn status(received: Lsn, durable: Lsn, micros: i64) -> Vec<u8> {
    let mut message = b"d\0\0\0\0r".to_vec();
    for position in [received, durable, Lsn::INVALID] {
        message.extend(position.bytes().to_be_bytes());
    }
    message.extend(micros.to_be_bytes());
    message.push(0);
    let length = message.len() as u32 - 1;
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message
}

fn following(row: &[Option<String>]) -> Option<(TimelineId, Lsn)> {
    let [Some(timeline), Some(at)] = row else { return None };
    Some((TimelineId::new(timeline.parse().ok()?)?, at.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::instance::replication::server_fixture::{Played, copy_data, description, ready, rows};

    fn request() -> WalRequest {
        WalRequest {
            slot: Some("of\"ours".to_owned()),
            start: "0/3000000".parse().unwrap(),
            timeline: TimelineId::new(2).unwrap(),
        }
    }

    fn log(at: &str, bytes: &[u8]) -> Vec<u8> {
        let at = at.parse::<Lsn>().unwrap().bytes().to_be_bytes();
        copy_data(&[b"w", &at[..], &[0; 16], bytes].concat())
    }

    fn keepalive(asks: u8) -> Vec<u8> {
        copy_data(&[&b"k"[..], &[0; 16], &[asks]].concat())
    }

    const BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";
    const DONE: &[u8] = b"c\0\0\0\x04";
    const PATIENT: Duration = Duration::from_secs(60);

    #[test]
    fn the_log_comes_in_order_and_the_timelines_end_is_told() {
        let command = "START_REPLICATION SLOT \"of\"\"ours\" PHYSICAL 0/3000000 TIMELINE 2";
        assert_eq!(request().command(), command);
        let end = [description(&["next_tli", "next_tli_startpos"]), rows(&[&["3", "0/3000009"]]), ready()].concat();
        let said = [BOTH, &keepalive(1), &log("0/3000000", b"abcd"), &log("0/3000004", b"efghi"), DONE, &end].concat();
        let server = Played::answering(vec![(command, said)]);
        let mut client = server.connect().unwrap();
        let mut stream = client.stream_wal(&request()).unwrap();
        assert_eq!(stream.next(PATIENT).unwrap(), Streamed::Alive { asks: true });
        stream.confirm(None).unwrap();
        let at = |text: &str| text.parse().unwrap();
        assert_eq!(stream.next(PATIENT).unwrap(), Streamed::Log { at: at("0/3000000"), bytes: b"abcd" });
        assert_eq!(stream.next(PATIENT).unwrap(), Streamed::Log { at: at("0/3000004"), bytes: b"efghi" });
        let next = Some((TimelineId::new(3).unwrap(), at("0/3000009")));
        assert_eq!(stream.next(PATIENT).unwrap(), Streamed::TimelineEnd { next });
    }

    #[test]
    fn silence_is_no_error_and_a_gap_is_one() {
        for (said, words) in [
            (log("0/3000001", b"x"), "WAL from 0/3000001 on after 0/3000000"),
            (copy_data(b"w123"), "of kind 'w'"),
            (copy_data(b"k"), "of kind 'k'"),
            (copy_data(b"x"), "of kind 'x'"),
            (copy_data(b""), "an empty part"),
            (b"D\0\0\0\x06\0\0".to_vec(), "a message 'D'"),
        ] {
            let server = Played::answering(vec![("START_REPLICATION", [BOTH, &said].concat())]);
            let mut client = server.connect().unwrap();
            let mut stream = client.stream_wal(&request()).unwrap();
            let error = stream.next(PATIENT).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let server = Played::answering(vec![("START_REPLICATION", BOTH.to_vec())]);
        let mut client = server.connect().unwrap();
        let mut stream = client.stream_wal(&request()).unwrap();
        assert_eq!(stream.next(Duration::from_millis(1)).unwrap(), Streamed::Silence);
    }

    #[test]
    fn a_status_is_laid_out_as_servers_read_it() {
        let message = status(Lsn::new(1), Lsn::new(2), 3);
        assert_eq!((message.len(), &message[..6]), (39, &b"d\0\0\0\x26r"[..]));
        assert_eq!((message[13], message[21], message[29], message[37], message[38]), (1, 2, 0, 3, 0));
    }
}
