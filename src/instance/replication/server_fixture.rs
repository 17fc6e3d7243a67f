//! A server for tests that is played: it lets everybody in and answers commands with bytes that a test gives.

#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::client::ReplicationClient;
use super::error::ReplicationError;
use crate::instance::{ConnectionSettings, LibpqEnvironment};

/// Writes what the server answers to a command; an error, or `false`, ends the connection.
pub(crate) type Answers = dyn Fn(&str, &mut dyn Write) -> io::Result<bool> + Send + Sync;

/// The server; nobody is served any more once it is dropped.
pub(crate) struct Played {
    place: tempfile::TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    version: String,
    answers: Box<Answers>,
    cancelled: Mutex<Vec<(i32, i32)>>,
    heard: Mutex<Vec<Vec<u8>>>,
    over: AtomicBool,
}

impl Played {
    /// Plays 17, which answers each command that begins like this with these bytes.
    pub fn answering(script: Vec<(&str, Vec<u8>)>) -> Self {
        Self::of_version("17.9", script)
    }

    /// As [`Played::answering`], of any version.
    pub fn of_version(version: &str, script: Vec<(&str, Vec<u8>)>) -> Self {
        let script: Vec<(String, Vec<u8>)> = script.into_iter().map(|(begin, said)| (begin.to_owned(), said)).collect();
        let answers = move |command: &str, out: &mut dyn Write| match script
            .iter()
            .find(|(begin, _)| command.starts_with(begin.as_str()))
        {
            Some((_, said)) => out.write_all(said).map(|()| true),
            None => out.write_all(&refusal_of("42601", "syntax error")).map(|()| true),
        };
        Self::playing(version, Box::new(answers))
    }

    /// Plays a server that answers as `answers` does.
    pub fn playing(version: &str, answers: Box<Answers>) -> Self {
        let place = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(place.path().join(".s.PGSQL.5432")).unwrap();
        let shared = Arc::new(Shared {
            version: version.to_owned(),
            answers,
            cancelled: Mutex::default(),
            heard: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.over.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, Ok(client)) = (Arc::clone(&serving), client) else { return };
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { place, shared }
    }

    /// How to connect to it.
    pub fn settings(&self) -> ConnectionSettings {
        let conninfo = format!("host={} user=somebody connect_timeout=60", self.place.path().display());
        ConnectionSettings::resolve(Some(&conninfo), &LibpqEnvironment::default(), None).unwrap()
    }

    /// Connects.
    pub fn connect(&self) -> Result<ReplicationClient, ReplicationError> {
        ReplicationClient::connect(&self.settings())
    }

    /// The processes that were to be cancelled, with the secret that was given.
    pub fn cancelled(&self) -> Vec<(i32, i32)> {
        self.shared.cancelled.lock().unwrap().clone()
    }

    /// What came as `CopyData`.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.shared.heard.lock().unwrap().clone()
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join(".s.PGSQL.5432")
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes whoever waits for somebody to come.
        drop(UnixStream::connect(self.socket()));
    }
}

impl Shared {
    fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        let number = || -> io::Result<i32> {
            let mut bytes = [0; 4];
            (&client).read_exact(&mut bytes)?;
            Ok(i32::from_be_bytes(bytes))
        };
        let (length, code) = (number()?, number()?);
        if code == 80_877_102 {
            self.cancelled.lock().unwrap().push((number()?, number()?));
            return Ok(());
        }
        let mut parameters = vec![0; length as usize - 8];
        client.read_exact(&mut parameters)?;
        let version = [b"server_version\0", self.version.as_bytes(), b"\0"].concat();
        let key = [4711i32.to_be_bytes(), 4712i32.to_be_bytes()].concat();
        let welcome = [
            message(b'R', &[0; 4]),
            message(b'S', &version),
            message(b'S', b"in_hot_standby\0off\0"),
            message(b'K', &key),
            message(b'Z', b"I"),
        ];
        client.write_all(&welcome.concat())?;
        loop {
            let mut heading = [0; 5];
            client.read_exact(&mut heading)?;
            let length = u32::from_be_bytes(heading[1..].try_into().unwrap()) as usize;
            let mut body = vec![0; length - 4];
            client.read_exact(&mut body)?;
            match heading[0] {
                b'Q' => {
                    let command = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned();
                    let mut out = io::BufWriter::with_capacity(128 << 10, &client);
                    let goes_on = (self.answers)(&command, &mut out)?;
                    out.flush()?;
                    if !goes_on {
                        return Ok(());
                    }
                }
                b'X' => return Ok(()),
                b'd' => self.heard.lock().unwrap().push(body),
                // Whoever ends a stream is told that it is over.
                b'c' => client.write_all(&[message(b'c', b""), message(b'C', b"COPY 0\0"), ready()].concat())?,
                _ => {}
            }
        }
    }
}

/// A message of the protocol.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// `CopyData`.
pub(crate) fn copy_data(body: &[u8]) -> Vec<u8> {
    message(b'd', body)
}

/// An `ErrorResponse`, and that the server is ready again.
pub(crate) fn refusal_of(code: &str, text: &str) -> Vec<u8> {
    let fields = format!("SERROR\0C{code}\0M{text}\0\0");
    [message(b'E', fields.as_bytes()), ready()].concat()
}

/// A `RowDescription`; only the number of columns is looked at.
pub(crate) fn description(names: &[&str]) -> Vec<u8> {
    let mut body = (names.len() as u16).to_be_bytes().to_vec();
    for name in names {
        body.extend([name.as_bytes(), &[0; 19]].concat());
    }
    message(b'T', &body)
}

/// A `DataRow`.
pub(crate) fn row_of(fields: &[Option<&str>]) -> Vec<u8> {
    let mut body = (fields.len() as u16).to_be_bytes().to_vec();
    for field in fields {
        body.extend(field.map_or(-1, |text| text.len() as i32).to_be_bytes());
        body.extend(field.unwrap_or_default().as_bytes());
    }
    message(b'D', &body)
}

/// Rows, and the end of the result.
pub(crate) fn rows(rows: &[&[&str]]) -> Vec<u8> {
    let row = |fields: &&[&str]| row_of(&fields.iter().map(|field| Some(*field)).collect::<Vec<_>>());
    [rows.iter().flat_map(row).collect(), message(b'C', b"SELECT\0")].concat()
}

/// A result of these rows, and that the server is ready again.
pub(crate) fn result(fields: &[&str]) -> Vec<u8> {
    [description(fields), rows(&[fields]), ready()].concat()
}

/// `ReadyForQuery`.
pub(crate) fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}
