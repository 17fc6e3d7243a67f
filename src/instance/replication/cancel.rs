//! A request to a server to end what a session of ours is doing.
//!
//! A connection that is closed does not end a command that waits: a base backup would go on waiting for its checkpoint,
//! and hold its walsender, for as long as a checkpoint takes. So whoever gives up says so, over a connection of its own.
//!
//! Source: "Canceling Requests in Progress" in the manual's chapter on the protocol.

use std::io::{self, Read, Write};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::super::conninfo::{ConnectionSettings, Endpoint};
use super::super::tls::Attempt;
use super::link::Link;

/// How long the server is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What ends one session's command; may be used from any thread, and after the session's end does nothing.
#[derive(Clone)]
pub struct Canceller {
    settings: ConnectionSettings,
    endpoint: Endpoint,
    attempt: Attempt,
    /// The server's process and its secret.
    key: (i32, i32),
}

impl Canceller {
    pub(super) fn new(
        settings: &ConnectionSettings,
        endpoint: &Endpoint,
        attempt: Attempt,
        key: Option<(i32, i32)>,
    ) -> Option<Self> {
        Some(Self { settings: settings.clone(), endpoint: endpoint.clone(), attempt, key: key? })
    }

    /// Asks the server to end the command, as securely as the session is connected; returns once the server has taken
    /// note. Whether it came in time, nobody says.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn cancel(&self) -> io::Result<()> {
        let mut settings = self.settings.clone();
        settings.timeout = Some(settings.timeout.map_or(PATIENCE, |timeout| timeout.min(PATIENCE)));
        let link = Link::open(&settings, &self.endpoint, self.attempt).map_err(|error| error.into_io());
        let mut link = link?;
        let mut request = BytesMut::new();
        frontend::cancel_request(self.key.0, self.key.1, &mut request);
        link.write_all(&request)?;
        link.flush()?;
        // It closes the connection once it has sent the signal.
        let _ = link.read(&mut [0]);
        Ok(())
    }
}

impl std::fmt::Debug for Canceller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Canceller({}, process {})", self.endpoint.target(), self.key.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::instance::replication::server_fixture::Played;

    #[test]
    fn a_cancellation_names_the_sessions_process_and_secret() {
        let server = Played::answering(Vec::new());
        let client = server.connect().unwrap();
        let canceller = client.canceller().unwrap();
        assert!(!format!("{canceller:?}").contains("4712"), "the secret is printed");
        canceller.cancel().unwrap();
        assert_eq!(server.cancelled(), vec![(4711, 4712)]);
        drop(client);
        drop(server);
        assert!(canceller.cancel().is_err(), "nobody is there any more");
    }
}
