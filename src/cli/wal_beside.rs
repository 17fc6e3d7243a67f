//! `backup --with-wal`: the WAL of a backup, streamed into the archive beside it.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::archive::{Archived, Goal, PushOptions, StreamError, WalStreaming, Writer};
use crate::backup::{RemoteError, WalBeside, WalBesideError};
use crate::error::ErrorKind;
use crate::instance::ConnectionSettings;
use crate::instance::replication::{Canceller, ReplicationClient, ReplicationError};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentNo;
use crate::pg::system_id::SystemId;
use crate::pg::timeline::TimelineId;
use crate::repo::Lane;

/// How long a server that archives may take to be the first to, on a timeline that nobody archives yet.
const GIVES_WAY: Duration = Duration::from_secs(60);

/// A second connection to the server, with a slot that keeps the log, and what becomes of it.
pub(super) struct Beside {
    client: Option<ReplicationClient>,
    canceller: Option<Canceller>,
    slot: String,
    temporary: bool,
    moves_slot: bool,
    gives_way: Duration,
    writer: Writer,
    options: PushOptions,
    goal: Goal,
    outcome: Option<Receiver<Result<Archived, StreamError>>>,
    archived: Option<Archived>,
}

impl Beside {
    /// Connects and has the server keep its log from now on: in the slot that is named, or in one that goes with the
    /// connection. It must be of the system that is backed up.
    pub fn open(
        settings: &ConnectionSettings,
        system_id: SystemId,
        slot: Option<&str>,
        writer: Writer,
        options: PushOptions,
    ) -> Result<Self, RemoteError> {
        let mut client = ReplicationClient::connect(settings)?;
        client.expect_system(system_id)?;
        let moves_slot = client.show("synchronous_standby_names")?.is_empty();
        let gives_way = if archives(&mut client)? { GIVES_WAY } else { Duration::ZERO };
        let name = match slot {
            Some(slot) => {
                client.read_slot(slot)?;
                slot.to_owned()
            }
            None => {
                let name = own_slot();
                client.create_temporary_slot(&name)?;
                name
            }
        };
        let canceller = client.canceller();
        Ok(Self {
            client: Some(client),
            canceller,
            slot: name,
            temporary: slot.is_none(),
            moves_slot,
            gives_way,
            writer,
            options,
            goal: Goal::default(),
            outcome: None,
            archived: None,
        })
    }

    /// What ends the stream.
    pub fn canceller(&self) -> Option<Canceller> {
        self.canceller.clone()
    }

    /// What was archived, once everything is.
    pub fn archived(&self) -> Option<Archived> {
        self.archived
    }

    fn came_to(&mut self, outcome: Result<Archived, StreamError>) -> Result<(), WalBesideError> {
        self.outcome = None;
        self.archived = Some(outcome.map_err(failed)?);
        Ok(())
    }
}

impl WalBeside for Beside {
    fn begin(&mut self, lane: &Lane, (start, timeline): (Lsn, TimelineId), backup: Option<Canceller>) {
        let Some(mut client) = self.client.take() else { return };
        let streaming = WalStreaming {
            lane: lane.clone(),
            slot: Some(self.slot.clone()),
            start,
            timeline,
            writer: self.writer.clone(),
            options: self.options,
            temporary: self.temporary,
            moves_slot: self.moves_slot,
            gives_way: self.gives_way,
        };
        let (tell, outcome) = channel();
        let goal = self.goal.clone();
        std::thread::spawn(move || {
            let done = streaming.perform(&mut client, &goal);
            let failed = done.is_err();
            // First why, and then the end of what would ask why.
            let heard = tell.send(done).is_ok();
            if failed
                && heard
                && let Some(backup) = backup
            {
                let _ = backup.cancel();
            }
        });
        self.outcome = Some(outcome);
    }

    fn failure(&mut self) -> Option<WalBesideError> {
        let outcome = self.outcome.as_ref()?.try_recv().ok()?;
        self.came_to(outcome).err()
    }

    fn end(&mut self, through: SegmentNo, patience: Duration) -> Result<(), WalBesideError> {
        self.goal.set(through, patience);
        let outcome = self.outcome.as_ref().and_then(|outcome| outcome.recv().ok());
        match outcome {
            Some(outcome) => self.came_to(outcome),
            None => {
                let source = "its thread ended without a word".into();
                Err(WalBesideError { kind: ErrorKind::Internal, hint: None, source })
            }
        }
    }
}

impl Drop for Beside {
    /// A stream that nobody waits for ends by itself; a push may still be under way, and does no harm.
    fn drop(&mut self) {
        self.goal.give_up();
    }
}

fn failed(error: StreamError) -> WalBesideError {
    WalBesideError { kind: error.kind(), hint: error.hint(), source: Box::new(error) }
}

/// Whether the server is set up to archive. If it fails to, that shows soon.
fn archives(client: &mut ReplicationClient) -> Result<bool, ReplicationError> {
    if client.show("archive_mode")? == "off" {
        return Ok(false);
    }
    // Before 15 there is no library.
    let library = client.show("archive_library").unwrap_or_default();
    Ok(!library.is_empty() || !client.show("archive_command")?.is_empty())
}

/// Returns a name that no other slot has.
fn own_slot() -> String {
    let mut random = [0; 8];
    let _ = getrandom::fill(&mut random);
    format!("walvault_{}_{}", std::process::id(), hex::encode(random))
}
