//! Moto, a server with S3's interface that others wrote, in a process of its own. `tests/pg/install.sh` brings it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::major::cache;

/// Starts the server on a port of the system's choice, which it writes to standard output: nobody else can have taken it.
///
/// It ends when its input does, however this process ends. Moto looks whether an object is there and then stores it, and
/// lets other threads run in between, which no store that promises conditions may do: so it answers one request at a time.
const PROGRAM: &str = "
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from werkzeug.serving import make_server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
moto = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()
def answer(environ, start_response):
    with one_at_a_time:
        reply = moto(environ, start_response)
        try:
            return list(reply)
        finally:
            getattr(reply, 'close', lambda: None)()
server = make_server('127.0.0.1', 0, answer, threaded=True, request_handler=MotoRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
";

/// The server; it ends with the test.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    port: u16,
    buckets: AtomicU32,
}

impl Moto {
    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start() -> Self {
        let home: PathBuf = cache().join("moto");
        assert!(home.is_dir(), "moto is not in {home:?}: run tests/pg/install.sh test");
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-B", "-c", PROGRAM]).env("PYTHONPATH", &home);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = python.spawn().expect("python3 runs");
        let mut line = String::new();
        let said = process.stdout.take().expect("it is a pipe");
        BufReader::new(said).read_line(&mut line).expect("a pipe can be read");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("moto did not start: it said {line:?}"));
        let moto = Self { process, port, buckets: AtomicU32::new(0) };
        let began = Instant::now();
        while moto.put("/ready", "").is_none() {
            assert!(began.elapsed() < Duration::from_secs(120), "moto does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        moto
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bucket and returns its name.
    #[track_caller]
    pub fn make_bucket(&self) -> String {
        let name = format!("bucket-{}", self.buckets.fetch_add(1, Ordering::Relaxed));
        assert_eq!(self.put(&format!("/{name}"), "").as_deref(), Some("200"));
        name
    }

    /// As [`Moto::make_bucket`], one that keeps what is deleted behind a marker.
    #[track_caller]
    pub fn make_versioned_bucket(&self) -> String {
        let name = self.make_bucket();
        let body = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>Enabled</Status></VersioningConfiguration>";
        assert_eq!(self.put(&format!("/{name}?versioning"), body).as_deref(), Some("200"));
        name
    }

    /// Returns the status of a PUT.
    fn put(&self, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let length = body.len();
        let head =
            format!("PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all((head + body).as_bytes()).ok()?;
        let mut status = String::new();
        BufReader::new(&stream).read_line(&mut status).ok()?;
        status.split(' ').nth(1).map(str::to_owned)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // Either it has ended already or it ends now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
