//! Who listens at the agent's socket, for those who check: its version, and whose agent it is.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use super::client::Client;
use super::house::House;
use super::wire;

/// The page that tells.
pub(super) const PAGE: &str = "/version";
/// Longest answer that makes sense.
const LONGEST: u64 = 4 << 10;

/// Who listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listener {
    /// Nobody: the socket is not there, or nothing is behind it.
    Nobody,
    /// Somebody who runs as a user that commands do not believe.
    Stranger,
    /// Somebody who does not answer as an agent does.
    Silent {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// An agent.
    Agent {
        /// Its version; `None` for one that is too old to tell.
        version: Option<String>,
        /// Whether it is the agent of this cluster and repository.
        ours: bool,
    },
}

impl House {
    /// Returns what the page says.
    pub(super) fn greeting(&self) -> String {
        let (repository, cluster) = self.serves();
        format!("{}\n{repository}\n{cluster}\n", wire::VERSION)
    }
}

impl Client {
    /// Asks who listens.
    pub fn listener(&self) -> Listener {
        match self.greeted() {
            Ok(listener) => listener,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Listener::Nobody,
                io::ErrorKind::PermissionDenied => Listener::Stranger,
                _ => Listener::Silent { socket: self.socket().to_path_buf(), problem: error.to_string() },
            },
        }
    }

    fn greeted(&self) -> io::Result<Listener> {
        let mut stream = self.connect()?;
        stream.write_all(format!("GET {PAGE} HTTP/1.1\r\n\r\n").as_bytes())?;
        let mut reply = BufReader::new(stream.take(LONGEST)).lines();
        let status = reply.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        if status.contains(" 404 ") {
            return Ok(Listener::Agent { version: None, ours: true });
        }
        if !status.contains(" 200 ") {
            return Err(io::Error::other(status));
        }
        let body: Vec<String> = reply
            .skip_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            .skip(1)
            .collect::<io::Result<_>>()?;
        let [version, repository, cluster] = body.as_slice() else { return Err(io::ErrorKind::InvalidData.into()) };
        let ours = (repository.as_str(), cluster.as_str()) == self.wants();
        Ok(Listener::Agent { version: Some(version.clone()), ours })
    }
}
