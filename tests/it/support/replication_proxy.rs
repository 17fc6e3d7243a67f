//! A socket between a client and a server that looks at the server's messages: counts them, cuts, flips a bit, waits.
//!
//! The first connection is the one that is meddled with unless a test names another; the others, such as those of SQL, pass.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::scratch::Scratch;
use super::user::ServerUser;

/// What is done to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddling {
    /// Nothing but counting.
    Count,
    /// Of the server's messages with this tag, so many pass and no more, nor anything behind them.
    CutAt(u8, u64),
    /// Of the large messages that carry data, behind so many others, the last byte but so many is another.
    Flip(u64, usize),
    /// Behind so many messages nothing passes until [`ReplicationProxy::go_on`].
    HoldAfter(u64),
}

/// Bytes from which a message is large: it holds nothing but what is in a file, or in the manifest.
pub const LARGE: usize = 20_000;

/// The socket; nobody is served any more once it is dropped.
#[derive(Debug)]
pub struct ReplicationProxy {
    place: Scratch,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: PathBuf,
    meddling: Mutex<Meddling>,
    /// Number of the connection that is meddled with.
    meant: AtomicU64,
    connections: AtomicU64,
    /// Tag and length of every message of that connection.
    messages: Mutex<Vec<(u8, usize)>>,
    held: AtomicBool,
    released: AtomicBool,
}

impl ReplicationProxy {
    /// Listens in a directory of its own for the server in `server`.
    pub fn start(server: PathBuf) -> Self {
        let place = Scratch::new();
        let socket = place.join(".s.PGSQL.5432");
        let listener = UnixListener::bind(&socket).expect("a socket in a directory of ours");
        ServerUser::get().take_over_itself(&socket);
        let shared = Arc::new(Shared {
            server: server.join(".s.PGSQL.5432"),
            meddling: Mutex::new(Meddling::Count),
            meant: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            messages: Mutex::default(),
            held: AtomicBool::new(false),
            released: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let shared = Arc::clone(&serving);
                thread::spawn(move || shared.serve(client));
            }
        });
        Self { place, shared }
    }

    /// Returns a connection string that leads here.
    pub fn conninfo(&self) -> String {
        format!("host={} port=5432 user=postgres dbname=postgres connect_timeout=60", self.place.path().display())
    }

    /// Does this to the next connection.
    pub fn meddle(&self, meddling: Meddling) {
        self.meddle_with(0, meddling);
    }

    /// Does this to one of the next connections, the first of which is number 0.
    pub fn meddle_with(&self, number: u64, meddling: Meddling) {
        self.shared.meant.store(number, Ordering::SeqCst);
        *self.shared.meddling.lock().expect("no test panics in here") = meddling;
        self.shared.messages.lock().expect("no test panics in here").clear();
        self.shared.held.store(false, Ordering::SeqCst);
        self.shared.released.store(false, Ordering::SeqCst);
        self.shared.connections.store(0, Ordering::SeqCst);
    }

    /// Returns the tags and lengths of the server's messages on the last connection that was meddled with.
    pub fn messages(&self) -> Vec<(u8, usize)> {
        self.shared.messages.lock().expect("no test panics in here").clone()
    }

    /// Tells whether a connection waits.
    pub fn holds(&self) -> bool {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.shared.released.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn serve(&self, client: UnixStream) {
        let Ok(server) = UnixStream::connect(&self.server) else { return };
        let (mut from_client, mut to_server) =
            (client.try_clone().expect("a handle"), server.try_clone().expect("one"));
        let asking = thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(std::net::Shutdown::Both);
        });
        let meant = self.connections.fetch_add(1, Ordering::SeqCst) == self.meant.load(Ordering::SeqCst);
        if meant {
            let _ = self.answer(&server, &client);
        } else {
            let _ = std::io::copy(&mut &server, &mut &client);
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
        let _ = server.shutdown(std::net::Shutdown::Both);
        let _ = asking.join();
    }

    fn answer(&self, mut server: &UnixStream, mut client: &UnixStream) -> std::io::Result<()> {
        let meddling = *self.meddling.lock().expect("no test panics in here");
        let (mut number, mut of_kind) = (0, 0);
        loop {
            match meddling {
                Meddling::HoldAfter(after) if number == after => {
                    self.held.store(true, Ordering::SeqCst);
                    while !self.released.load(Ordering::SeqCst) {
                        thread::sleep(std::time::Duration::from_millis(5));
                    }
                }
                _ => {}
            }
            let mut message = vec![0; 5];
            server.read_exact(&mut message)?;
            let length = u32::from_be_bytes(message[1..5].try_into().expect("four bytes")) as usize;
            message.resize(1 + length, 0);
            server.read_exact(&mut message[5..])?;
            number += 1;
            match meddling {
                Meddling::CutAt(tag, nth) if tag == message[0] => {
                    if of_kind == nth {
                        return Ok(());
                    }
                    of_kind += 1;
                }
                Meddling::Flip(nth, back) if message[0] == b'd' && length > LARGE => {
                    if of_kind == nth {
                        let at = message.len() - 1 - back;
                        message[at] ^= 0x10;
                    }
                    of_kind += 1;
                }
                _ => {}
            }
            self.messages.lock().expect("no test panics in here").push((message[0], length));
            client.write_all(&message)?;
        }
    }
}
