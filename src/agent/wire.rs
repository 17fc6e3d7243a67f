//! What goes over the socket: frames of a length (four bytes, little-endian) and JSON, and descriptors beside them.
//!
//! A frame of length 0 is a sign of life. Both sides are one version of one program: whoever hears of another version
//! declines.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Final;
use crate::error::ErrorKind;
use crate::format::recovery_plan::RecoveryPlan;
use crate::pg::lsn::Lsn;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::repo::LaneFacts;

/// Version of these messages; two that differ do not talk.
pub(super) const PROTOCOL: u32 = 3;
/// The program's version; the same messages may mean something else to another one.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Longest message: a plan has a line for each timeline it passes.
const LONGEST: u32 = 1 << 20;
/// Most descriptors with one message.
const MOST_FILES: usize = 4;

/// Whether an agent on the server that its settings name for the bucket may stand in for a command, by that of its own: a
/// command that names none may not know it; but an agent that names none goes to the cloud's own, and not where a command
/// says that the bucket is.
pub(super) fn may_stand_in(agent: Option<&str>, command: Option<&str>) -> bool {
    command.is_none_or(|command| agent == Some(command))
}

/// What a command asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub protocol: u32,
    pub version: String,
    pub repository: String,
    /// The server that the command's settings name for the bucket, if they name one: the repository's URL does not tell.
    pub server: Option<String>,
    pub cluster: String,
    pub system_id: SystemId,
    /// The time after which nobody waits for the answer.
    pub budget_ms: u64,
    pub task: Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    Push(PushTask),
    Fetch(FetchTask),
    /// Let go of the socket: an agent wants it. Only a helper does.
    MakeWay,
}

/// Archive a file, the first descriptor; the second is the directory that it lies in, if that is a server's `pg_wal`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PushTask {
    pub name: String,
    /// What the command calls the file.
    pub path: String,
    pub server: LaneFacts,
    pub token: String,
    pub former: Option<String>,
    pub host: String,
    pub grace_seconds: u64,
    pub takes_over: Option<TimelineId>,
    pub follows: bool,
}

/// Fetch a file; it comes back as a descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FetchTask {
    pub name: String,
    pub lane: String,
    pub mode: Mode,
    pub plan: Option<RecoveryPlan>,
    /// How far a standby has certainly replayed.
    pub replayed: Option<(TimelineId, Lsn)>,
    /// The file system that the files go to, if they can be linked there: the command's user is the agent's.
    pub device: Option<u64>,
    pub request_ms: u64,
    pub hole_ms: u64,
    pub standby_hole_ms: u64,
}

/// Who asks for a file; see [`crate::archive::Caller`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// `recovery.signal` is there.
    Recovery,
    /// Neither signal file is there; answered with recovery's care, and nothing is fetched ahead.
    Unsignalled,
    /// `standby.signal` is there.
    Standby,
    /// `pg_rewind`.
    Exact,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// The file is durable in the repository.
    Archived,
    /// The file is the descriptor beside this; every byte was verified.
    Here,
    /// The file is proven not to exist.
    Absent,
    /// It failed; `settled` says why trying again at once is of no use, if that is so.
    Failed { kind: ErrorKind, text: String, settled: Option<Final> },
    /// This agent is not the one for it.
    Declined { reason: String },
    /// The socket is let go of as soon as what is under way has ended.
    MakingWay,
}

/// What a command tells after the agent had failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DidItMyself;

/// Sends a message and descriptors.
pub(super) fn send(stream: &UnixStream, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL)?;
    (&*stream).write_all(&frame[sent..])
}

/// Shows that the work goes on; never waits.
pub(super) fn beat(stream: &UnixStream) -> io::Result<()> {
    let sent = rustix::net::send(stream.as_fd(), &[0; 4], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    // A part of a frame would garble the next one; the peer reads nothing for long before that can be.
    if sent == 4 { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Waits for a message, and returns the descriptors that came with it. `beaten` hears every sign of life and may end the
/// waiting.
pub(super) fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
    mut beaten: impl FnMut() -> io::Result<()>,
) -> io::Result<(T, Vec<File>)> {
    let mut files = Vec::new();
    loop {
        let mut head = [0; 4];
        fill(stream, &mut head, &mut files)?;
        let len = u32::from_le_bytes(head);
        if len == 0 {
            beaten()?;
            continue;
        }
        if len > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; len as usize];
        fill(stream, &mut body, &mut files)?;
        let message = serde_json::from_slice(&body).map_err(io::Error::other)?;
        return Ok((message, files.into_iter().map(File::from).collect()));
    }
}

fn fill(stream: &UnixStream, mut buffer: &mut [u8], files: &mut Vec<OwnedFd>) -> io::Result<()> {
    while !buffer.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Err(rustix::io::Errno::INTR) => continue,
            received => received?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                files.extend(received);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[received.bytes..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn an_agent_stands_in_for_who_names_its_server_or_none() {
        let (here, elsewhere) = (Some("https://s3.here"), Some("https://s3.elsewhere"));
        for (agent, command, may) in [
            (here, here, true),
            (here, None, true),
            (None, None, true),
            (here, elsewhere, false),
            // It would store where nobody looks.
            (None, elsewhere, false),
        ] {
            assert_eq!(may_stand_in(agent, command), may, "an agent of {agent:?}, a command of {command:?}");
        }
    }

    #[test]
    fn a_message_comes_back_with_its_descriptors_after_any_signs_of_life() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"passed").expect("room");
        beat(&one).expect("room");
        beat(&one).expect("room");
        let reply =
            Reply::Failed { kind: ErrorKind::Conflict, text: "ä".repeat(1000), settled: Some(Final::Conflict) };
        send(&one, &reply, &[file.as_fd()]).expect("room");
        send(&one, &Reply::Absent, &[]).expect("room");
        let mut beats = 0;
        let count = || {
            beats += 1;
            Ok(())
        };
        let (received, mut files) = receive::<Reply>(&other, count).expect("a message");
        assert_eq!((received, files.len(), beats), (reply, 1, 2));
        let mut text = String::new();
        files[0].rewind().expect("a file");
        files[0].read_to_string(&mut text).expect("a file");
        assert_eq!(text, "passed");
        assert_eq!(receive::<Reply>(&other, || Ok(())).expect("a message").0, Reply::Absent);
    }

    #[test]
    fn garbage_and_an_early_end_are_errors() {
        for bytes in [&b""[..], b"\x05", b"\x05\0\0\0ab", b"\xff\xff\xff\xff", b"\x02\0\0\0xy", b"\0\0\0\0"] {
            let (one, other) = UnixStream::pair().expect("a pair");
            (&one).write_all(bytes).expect("room");
            drop(one);
            assert!(receive::<Reply>(&other, || Ok(())).is_err(), "{bytes:?}");
        }
    }
}
