//! A network between a client and servers: a TCP port that passes bytes on, and stops to, for all connections at once.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// The port; nobody is served any more once it is dropped.
#[derive(Debug)]
pub struct Network {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Directories of the servers' sockets: the first connection leads to the first, and so on; the last serves all others.
    servers: Vec<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How often it was said when it breaks: connections from before are broken.
    turn: usize,
    connections: usize,
    /// Bytes of the servers' that were passed on, and after how many nothing is any more.
    passed: u64,
    limit: Option<u64>,
    open: Vec<TcpStream>,
    over: bool,
}

impl Network {
    /// Leads to the server whose socket is in this directory.
    pub fn to(server: PathBuf) -> Self {
        Self::to_several(vec![server])
    }

    /// Leads the first connection to the first server, the second to the second, and all others to the last.
    pub fn to_several(servers: Vec<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { servers, state: Mutex::default() });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let shared = Arc::clone(&serving);
                if shared.state().over {
                    return;
                }
                thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { address, shared }
    }

    /// Returns a connection string that leads here.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=60", self.address.port())
    }

    /// Breaks once so many bytes of the servers' have been passed on from now on, for every connection and every new one; with
    /// `None` it holds. Counts connections from the first again.
    pub fn break_after(&self, limit: Option<u64>) {
        let mut state = self.shared.state();
        state.turn += 1;
        (state.connections, state.passed, state.limit) = (0, 0, limit);
        state.open.clear();
    }

    /// Returns how many bytes of the servers' were passed on.
    pub fn passed(&self) -> u64 {
        self.shared.state().passed
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.state().over = true;
        // Wakes whoever waits for somebody to come.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics in here")
    }

    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        let (server, turn) = {
            let mut state = self.state();
            if state.is_broken() {
                return client.shutdown(Shutdown::Both);
            }
            let number = state.connections.min(self.servers.len() - 1);
            state.connections += 1;
            state.open.push(client.try_clone()?);
            (UnixStream::connect(self.servers[number].join(".s.PGSQL.5432"))?, state.turn)
        };
        client.set_nodelay(true)?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        let asking = thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Both);
        });
        let answered = self.answer(&server, &client, turn);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        let _ = asking.join();
        answered
    }

    fn answer(&self, mut server: &UnixStream, mut client: &TcpStream, turn: usize) -> std::io::Result<()> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let some = server.read(&mut buffer)?;
            if some == 0 {
                return Ok(());
            }
            let passes = self.state().pass(some as u64, turn);
            client.write_all(&buffer[..passes as usize])?;
            if passes < some as u64 {
                return Ok(());
            }
        }
    }
}

impl State {
    fn is_broken(&self) -> bool {
        self.limit.is_some_and(|limit| self.passed >= limit)
    }

    /// Counts bytes, and returns how many of them may pass. With the last one every other connection breaks too.
    fn pass(&mut self, bytes: u64, turn: usize) -> u64 {
        if turn != self.turn {
            return 0;
        }
        let passes = self.limit.map_or(bytes, |limit| bytes.min(limit.saturating_sub(self.passed)));
        self.passed += passes;
        if self.is_broken() {
            // Its own thread closes the way to the server, which hears of it so.
            self.open.drain(..).for_each(|other| drop(other.shutdown(Shutdown::Read)));
        }
        passes
    }
}
