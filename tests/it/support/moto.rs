//! Moto, a server with S3's interface that others wrote, in a process of its own. `tests/pg/install.sh` brings it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::major::cache;

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
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).expect("a free port").port();
        let program = format!("from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])");
        let mut python = Command::new("/usr/bin/python3");
        // It ends when its input does, however this process ends.
        let watched = format!(
            "import os, sys, threading\nthreading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n{program}"
        );
        python.args(["-B", "-c", &watched]).env("PYTHONPATH", &home);
        python.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = python.spawn().expect("python3 runs");
        let moto = Self { process, port, buckets: AtomicU32::new(0) };
        let began = Instant::now();
        while moto.put("/ready").is_none() {
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
        assert_eq!(self.put(&format!("/{name}")).as_deref(), Some("200"));
        name
    }

    /// Returns the status of a PUT without a body.
    fn put(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .ok()?;
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
