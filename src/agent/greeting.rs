//! Who listens at the agent's socket, for those who check: its version, and whose agent it is.

use std::io::{self, BufRead, BufReader, Read, Write};

use super::client::Client;
use super::house::{House, Stay};
use super::wire;
use crate::workflow::check::AgentFacts;

/// The page that tells.
pub(super) const PAGE: &str = "/version";
/// What an agent calls itself there, and a helper does not.
const RESIDENT: &str = "agent";
/// Longest answer that makes sense.
const LONGEST: u64 = 4 << 10;

impl House {
    /// Returns what the page says.
    pub(super) fn greeting(&self) -> String {
        let (repository, cluster) = self.serves();
        let kind = match self.limits().stay {
            Stay::Resident => RESIDENT,
            Stay::UntilIdle(_) => "helper",
        };
        let server = self.server().unwrap_or_default();
        format!("{}\n{repository}\n{cluster}\n{kind}\n{server}\n", wire::VERSION)
    }
}

impl Client {
    /// Asks who listens.
    pub fn listener(&self) -> AgentFacts {
        match self.greeted() {
            Ok((listener, _)) => listener,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AgentFacts::Nobody,
                io::ErrorKind::PermissionDenied => AgentFacts::Stranger,
                _ => AgentFacts::Silent { socket: self.socket().to_path_buf(), problem: error.to_string() },
            },
        }
    }

    /// Whether an agent answers that stays, and so does what nobody asks for.
    pub fn finds_resident(&self) -> bool {
        self.greeted().is_ok_and(|(_, resident)| resident)
    }

    /// Returns who listens, and whether it stays.
    fn greeted(&self) -> io::Result<(AgentFacts, bool)> {
        let mut stream = self.connect()?;
        stream.write_all(format!("GET {PAGE} HTTP/1.1\r\n\r\n").as_bytes())?;
        let mut reply = BufReader::new(stream.take(LONGEST)).lines();
        let status = reply.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        if status.contains(" 404 ") {
            return Ok((AgentFacts::Agent { version: None, ours: true }, true));
        }
        if !status.contains(" 200 ") {
            return Err(io::Error::other(status));
        }
        let body: Vec<String> = reply
            .skip_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            .skip(1)
            .collect::<io::Result<_>>()?;
        let [version, repository, cluster, kind @ ..] = body.as_slice() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let server = kind.get(1).map(String::as_str).filter(|server| !server.is_empty());
        let ours = (repository.as_str(), cluster.as_str()) == self.wants() && wire::may_stand_in(server, self.server());
        let resident = kind.first().is_none_or(|kind| kind == RESIDENT);
        Ok((AgentFacts::Agent { version: Some(version.clone()), ours }, resident))
    }
}
