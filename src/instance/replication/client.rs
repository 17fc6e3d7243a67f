//! A session of physical replication: logged in, and asked in simple commands.
//!
//! Source: "Streaming Replication Protocol" in the manual.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::super::conninfo::{ConnectionSettings, Endpoint, SessionAttrs};
use super::super::tls::Attempt;
use super::cancel::Canceller;
use super::error::ReplicationError;
use super::frames::{Frames, fields, refusal, row};
use super::link::{Link, LinkError};
use super::login::{self, Identity};
use crate::error;
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;

const MAJORS: std::ops::RangeInclusive<u16> = 13..=18;
/// Remarks of the server that are kept.
const NOTICES: usize = 1000;

/// A session.
pub struct ReplicationClient {
    frames: Frames<Link>,
    endpoint: Endpoint,
    major: u16,
    parameters: BTreeMap<String, String>,
    canceller: Option<Canceller>,
    notices: Vec<String>,
    /// How long a read waits now.
    patience: Option<Duration>,
    /// Bytes that the last message carried, which end where the unread ones begin.
    last: usize,
    /// Whether the server waits for the next command.
    ready: bool,
}

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identification {
    /// The system identifier.
    pub system_id: SystemId,
    /// The timeline that is written, or replayed.
    pub timeline: TimelineId,
    /// How far it is written, or replayed and flushed.
    pub position: Lsn,
}

impl ReplicationClient {
    /// Connects to the first host that will do.
    ///
    /// # Errors
    /// [`ReplicationError`]; of several hosts, what each of them said.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, ReplicationError> {
        let mut problems = Vec::new();
        for wanted in settings.attrs.passes() {
            for endpoint in &settings.endpoints {
                match Self::connect_to(settings, endpoint, *wanted) {
                    Ok(client) => return Ok(client),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        let last = problems.pop().expect("there is at least one host");
        if problems.is_empty() {
            return Err(last);
        }
        let kind = last.kind();
        problems.push(last);
        let problems: Vec<String> = problems.iter().map(|problem| error::chain(problem).to_string()).collect();
        Err(ReplicationError::NoHost { problems: problems.join("; "), kind })
    }

    fn connect_to(
        settings: &ConnectionSettings,
        endpoint: &Endpoint,
        wanted: SessionAttrs,
    ) -> Result<Self, ReplicationError> {
        let local = [Attempt::Plain];
        let attempts = if endpoint.socket().is_some() { &local } else { settings.tls.mode.attempts() };
        let mut failed = None;
        for attempt in attempts {
            match Self::connect_once(settings, endpoint, *attempt) {
                Ok(client) => return client.in_role(wanted),
                // Another way is tried where it can make a difference: not with a password that is wrong.
                Err(error @ (ReplicationError::Tls { .. } | ReplicationError::Login { .. }))
                    if may_differ(&error) && attempts.len() > 1 =>
                {
                    failed.get_or_insert(error);
                }
                Err(error) => return Err(failed.unwrap_or(error)),
            }
        }
        Err(failed.expect("there is at least one way"))
    }

    fn connect_once(
        settings: &ConnectionSettings,
        endpoint: &Endpoint,
        attempt: Attempt,
    ) -> Result<Self, ReplicationError> {
        let target = endpoint.target();
        let link = Link::open(settings, endpoint, attempt).map_err(|error| match error {
            LinkError::Connect(source) => ReplicationError::Connect { target: target.clone(), source },
            LinkError::Tls(source) => ReplicationError::Tls { target: target.clone(), source },
            LinkError::Stranger(byte) => ReplicationError::NotAServer {
                target: target.clone(),
                problem: format!("it answers {:?} to the request for encryption", char::from(byte)),
            },
        })?;
        // A name may have several addresses: whoever asks more of this server goes to this one.
        let endpoint = Endpoint { address: link.address().or(endpoint.address), ..endpoint.clone() };
        let endpoint = &endpoint;
        let mut frames = Frames::new(link);
        let password = settings.password(endpoint, &["replication", &settings.dbname]);
        let identity = Identity {
            target: &target,
            user: &settings.user,
            password: password.as_deref(),
            binding: settings.tls.binding,
        };
        let welcome = login::log_in(&mut frames, &identity)?;
        // What follows may take as long as a checkpoint; a host that is gone is found by probes.
        let unlimited = frames.stream().set_timeout(None);
        unlimited.map_err(|source| ReplicationError::Connect { target: target.clone(), source })?;
        let version = welcome.parameters.get("server_version").cloned().unwrap_or_default();
        let major = version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
        let major = major.filter(|major| MAJORS.contains(major)).ok_or(ReplicationError::Major { found: version })?;
        let canceller = Canceller::new(settings, endpoint, attempt, welcome.cancel);
        let endpoint = endpoint.clone();
        Ok(Self {
            frames,
            endpoint,
            major,
            parameters: welcome.parameters,
            canceller,
            notices: Vec::new(),
            patience: None,
            last: 0,
            ready: true,
        })
    }

    /// Goes on with this server if it is what was asked for.
    fn in_role(mut self, wanted: SessionAttrs) -> Result<Self, ReplicationError> {
        if wanted == SessionAttrs::Any {
            return Ok(self);
        }
        let standby = self.in_recovery()?;
        let read_only = self.parameters.get("default_transaction_read_only").is_some_and(|value| value == "on");
        if wanted.accepts(standby, read_only) {
            return Ok(self);
        }
        let found = if standby { "a standby" } else { "a primary" };
        Err(ReplicationError::OtherRole { target: self.endpoint.target(), found, wanted: wanted.as_str() })
    }

    /// Returns the host that this is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns what ends whatever this session is doing, from another thread.
    pub fn canceller(&self) -> Option<Canceller> {
        self.canceller.clone()
    }

    /// Returns the server's major, 13 to 18.
    pub fn major(&self) -> u16 {
        self.major
    }

    /// Returns `server_version` as the server prints it.
    pub fn version(&self) -> &str {
        self.parameters.get("server_version").map_or("", String::as_str)
    }

    /// Asks whether the server is a standby.
    pub fn in_recovery(&mut self) -> Result<bool, ReplicationError> {
        match self.parameters.get("in_hot_standby") {
            Some(value) => Ok(value == "on"),
            // 13 does not report it; there a standby is what takes no writes.
            None => Ok(self.show("transaction_read_only")? == "on"),
        }
    }

    /// Asks the server who it is.
    ///
    /// # Errors
    /// [`ReplicationError::NotAServer`] if what answers takes this for SQL.
    pub fn identify(&mut self) -> Result<Identification, ReplicationError> {
        const ACTION: &str = "ask the server who it is";
        let rows = self.ask(ACTION, "IDENTIFY_SYSTEM").map_err(|error| match error {
            ReplicationError::Refused { source, .. } if source.code == "42601" => {
                ReplicationError::NotAServer { target: self.endpoint.target(), problem: source.to_string() }
            }
            error => error,
        })?;
        let read = || {
            let [Some(system_id), Some(timeline), Some(position), ..] = rows.first()?.as_slice() else { return None };
            Some(Identification {
                system_id: SystemId::new(system_id.parse().ok()?),
                timeline: TimelineId::new(timeline.parse().ok()?)?,
                position: position.parse().ok()?,
            })
        };
        read().ok_or_else(|| ReplicationError::Answer { action: ACTION, what: format!("{rows:?}") })
    }

    /// Checks that this is a server of a cluster: behind a name for several servers may be others.
    ///
    /// # Errors
    /// [`ReplicationError::OtherSystem`].
    pub fn expect_system(&mut self, expected: SystemId) -> Result<(), ReplicationError> {
        let found = self.identify()?.system_id;
        match found == expected {
            true => Ok(()),
            false => Err(ReplicationError::OtherSystem { target: self.endpoint.target(), found, expected }),
        }
    }

    /// Asks for a setting.
    pub fn show(&mut self, name: &'static str) -> Result<String, ReplicationError> {
        const ACTION: &str = "ask the server for a setting";
        let rows = self.ask(ACTION, &format!("SHOW {name}"))?;
        match rows.first().map(Vec::as_slice) {
            Some([Some(value)]) => Ok(value.clone()),
            _ => Err(ReplicationError::Answer { action: ACTION, what: format!("{rows:?} for {name}") }),
        }
    }

    /// Asks for a timeline's history file: its bytes, which need not be text in any one encoding.
    pub fn timeline_history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, ReplicationError> {
        const ACTION: &str = "ask the server for a timeline's history";
        self.send_query(ACTION, &format!("TIMELINE_HISTORY {timeline}"))?;
        let mut found = None;
        loop {
            match self.message(ACTION)? {
                (b'D', body) => found = fields(body),
                (b'C', _) => break,
                (b'E', body) => return Err(ReplicationError::Refused { action: ACTION, source: refusal(body) }),
                _ => {}
            }
        }
        self.until_ready(ACTION)?;
        match found.as_deref() {
            Some([Some(name), Some(content)]) if *name == format!("{}.history", timeline.hex()).as_bytes() => {
                Ok(content.clone())
            }
            _ => Err(ReplicationError::Answer { action: ACTION, what: "something else".to_owned() }),
        }
    }

    /// Sends a command and returns the rows of its answer.
    pub(super) fn ask(
        &mut self,
        action: &'static str,
        command: &str,
    ) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        self.send_query(action, command)?;
        let rows = self.result_set(action);
        let ready = self.until_ready(action);
        let rows = rows?;
        ready.map(|()| rows)
    }

    pub(super) fn send_query(&mut self, action: &'static str, command: &str) -> Result<(), ReplicationError> {
        self.ready = false;
        let mut message = BytesMut::new();
        let encoded = frontend::query(command, &mut message);
        encoded.map_err(|source| ReplicationError::Lost { action, source })?;
        self.send(action, &message)
    }

    pub(super) fn send(&mut self, action: &'static str, message: &[u8]) -> Result<(), ReplicationError> {
        self.frames.send(message).map_err(|source| ReplicationError::Lost { action, source })
    }

    /// Reads the next message that is no remark; an error of the server's is left to the caller.
    pub(super) fn message(&mut self, action: &'static str) -> Result<(u8, &[u8]), ReplicationError> {
        self.wait_at_most(action, None)?;
        let tag = self.read(action)?.ok_or_else(|| {
            let source = io::Error::from(io::ErrorKind::TimedOut);
            ReplicationError::Lost { action, source }
        })?;
        Ok((tag, self.last_body()))
    }

    /// As [`ReplicationClient::message`], but for `None` if nothing whole came in time; what came of a message is kept.
    /// [`ReplicationClient::last_body`] has what the message carries.
    pub(super) fn message_within(
        &mut self,
        action: &'static str,
        patience: Duration,
    ) -> Result<Option<u8>, ReplicationError> {
        self.wait_at_most(action, Some(patience))?;
        self.read(action)
    }

    fn wait_at_most(&mut self, action: &'static str, patience: Option<Duration>) -> Result<(), ReplicationError> {
        if self.patience != patience {
            let set = self.frames.stream().set_timeout(patience);
            set.map_err(|source| ReplicationError::Lost { action, source })?;
            self.patience = patience;
        }
        Ok(())
    }

    fn read(&mut self, action: &'static str) -> Result<Option<u8>, ReplicationError> {
        loop {
            let (tag, body) = match self.frames.next() {
                Ok(message) => message,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(source) => return Err(ReplicationError::Lost { action, source }),
            };
            match tag {
                b'N' if self.notices.len() < NOTICES => self.notices.push(refusal(body).to_string()),
                b'N' | b'S' => {}
                _ => {
                    self.ready |= tag == b'Z';
                    self.last = body.len();
                    return Ok(Some(tag));
                }
            }
        }
    }

    /// Returns what the last message carried.
    pub(super) fn last_body(&self) -> &[u8] {
        self.frames.before_unread(self.last)
    }

    /// Reads one result: its description, its rows, its end. A refusal comes in its place; the session goes on.
    pub(super) fn result_set(&mut self, action: &'static str) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        let mut rows = Vec::new();
        loop {
            match self.message(action)? {
                (b'T', _) => {}
                (b'D', body) => {
                    let found = row(body);
                    let what = "a row that cannot be read".to_owned();
                    rows.push(found.ok_or(ReplicationError::Answer { action, what })?);
                }
                (b'C', _) => return Ok(rows),
                (b'E', body) => return Err(ReplicationError::Refused { action, source: refusal(body) }),
                (other, _) => {
                    let what = format!("a message {:?} in place of a result", char::from(other));
                    return Err(ReplicationError::Answer { action, what });
                }
            }
        }
    }

    /// Reads on until the server is ready for the next command.
    pub(super) fn until_ready(&mut self, action: &'static str) -> Result<(), ReplicationError> {
        let mut refused = None;
        loop {
            match self.message(action)? {
                (b'Z', _) => return refused.map_or(Ok(()), Err),
                (b'E', body) => refused = Some(ReplicationError::Refused { action, source: refusal(body) }),
                (b'T' | b'D' | b'C', _) => {}
                (other, _) => {
                    let what = format!("a message {:?} at the end", char::from(other));
                    return Err(ReplicationError::Answer { action, what });
                }
            }
        }
    }

    /// Passes over what a command that was given up still says, until the server waits for the next one.
    ///
    /// # Errors
    /// [`ReplicationError::Lost`].
    pub fn come_to_rest(&mut self) -> Result<(), ReplicationError> {
        while !self.ready {
            self.message("wait for the end of what was given up")?;
        }
        Ok(())
    }

    pub(super) fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }
}

impl Drop for ReplicationClient {
    /// Says goodbye, so that the server's log does not complain. In the middle of a command it is the connection's end
    /// that ends the command.
    fn drop(&mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        let _ = self.frames.send(&message);
    }
}

/// Whether the same login may succeed in another way: encrypted or not is part of a rule in `pg_hba.conf`.
fn may_differ(error: &ReplicationError) -> bool {
    match error {
        ReplicationError::Tls { source, .. } => source.kind() != io::ErrorKind::NotFound,
        ReplicationError::Login { source, .. } => source.code == "28000",
        _ => false,
    }
}
