//! A small HTTP server on loopback, in the test's own process: one thread for each connection, nothing clever.
//!
//! It speaks as much of HTTP/1.1 as object stores and their credential services need, with TLS if wanted, and it can
//! misbehave: break off, answer late, or never.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// One request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// As it was sent, percent-encoded.
    pub path: String,
    /// Decoded.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether it was sent as to a proxy, with its whole URL.
    pub by_proxy: bool,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// How a reply is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Manner {
    #[default]
    Whole,
    /// Only so many bytes of the body; then the connection breaks.
    Cut(usize),
    /// The connection breaks before a word.
    Lost,
    /// No word, ever.
    Never,
}

/// One reply.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub manner: Manner,
    pub delay: Duration,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

const HERE: &str = "127.0.0.1";

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// The server; it ends with the test.
pub struct HttpServer {
    address: &'static str,
    port: u16,
    tls: bool,
    ended: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl HttpServer {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(HERE, Arc::new(handler), None, None)
    }

    /// With the certificate of `fixtures/tls`, whose authority nobody else trusts.
    pub fn start_tls(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_tls_at(HERE, handler)
    }

    /// At another address of loopback.
    pub fn start_tls_at(address: &'static str, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(address, Arc::new(handler), Some(Self::identity("tls/server")), None)
    }

    /// A proxy behind which there is `host` alone, with the certificate of that name in `fixtures`.
    pub fn start_proxy(
        host: &'static str,
        certificate: &str,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(HERE, Arc::new(handler), Some(Self::identity(certificate)), Some(host))
    }

    fn identity(name: &str) -> Arc<rustls::ServerConfig> {
        let fixture = |ending: &str| format!("{}/fixtures/{name}.{ending}", env!("CARGO_MANIFEST_DIR"));
        let chain = vec![CertificateDer::from_pem_file(fixture("pem")).expect("a fixture")];
        let key = PrivateKeyDer::from_pem_file(fixture("key")).expect("a fixture");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .expect("a certificate and its key");
        Arc::new(config)
    }

    fn listen(
        address: &'static str,
        handler: Arc<Handler>,
        tls: Option<Arc<rustls::ServerConfig>>,
        behind: Option<&'static str>,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let port = listener.local_addr().expect("it listens").port();
        let (ended, open) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<TcpStream>>>::default());
        let server = Self { address, port, tls: tls.is_some(), ended: Arc::clone(&ended), open: Arc::clone(&open) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let _ = stream.set_nodelay(true);
                open.lock().unwrap_or_else(PoisonError::into_inner).extend(stream.try_clone());
                let (handler, tls) = (Arc::clone(&handler), tls.clone());
                thread::spawn(move || {
                    if behind.is_some_and(|host| connect_to(&stream, host).is_err()) {
                        return stream.shutdown(Shutdown::Both);
                    }
                    let closing = stream.try_clone();
                    // What a client breaks off is not the server's failure.
                    let _ = match tls {
                        None => serve(stream, &*handler),
                        Some(config) => match rustls::ServerConnection::new(config) {
                            Ok(connection) => serve(rustls::StreamOwned::new(connection, stream), &*handler),
                            Err(error) => Err(io::Error::other(error)),
                        },
                    };
                    // The list of open connections holds it open otherwise.
                    closing.and_then(|stream| stream.shutdown(Shutdown::Both))
                });
            }
        });
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("{}://{}:{}", if self.tls { "https" } else { "http" }, self.address, self.port)
    }

    /// The certificate of the server's authority.
    pub fn ca_file() -> String {
        format!("{}/fixtures/tls/ca.pem", env!("CARGO_MANIFEST_DIR"))
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listener up.
        let _ = TcpStream::connect((self.address, self.port));
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers a client that asks a proxy for `host`.
fn connect_to(mut stream: &TcpStream, host: &str) -> io::Result<()> {
    let mut head = Vec::new();
    // Byte by byte: what follows is TLS.
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    match head.starts_with(format!("CONNECT {host}:443 ").as_bytes()) {
        true => stream.write_all(b"HTTP/1.1 200 X\r\n\r\n"),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn serve(stream: impl Read + Write, handler: &Handler) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    while let Some(request) = read_request(&mut stream)? {
        let reply = handler(&request);
        thread::sleep(reply.delay);
        match reply.manner {
            Manner::Lost => return Ok(()),
            Manner::Never => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            Manner::Whole | Manner::Cut(_) => {}
        }
        let out = stream.get_mut();
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let told = reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if !told && reply.status != 204 && reply.status != 304 {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        out.write_all((head + "\r\n").as_bytes())?;
        let bodiless = request.method == "HEAD" || reply.status == 204 || reply.status == 304;
        let shown = match reply.manner {
            Manner::Cut(bytes) => bytes.min(reply.body.len()),
            _ => reply.body.len(),
        };
        if !bodiless {
            out.write_all(&reply.body[..shown])?;
        }
        out.flush()?;
        if reply.manner != Manner::Whole {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(stream: &mut BufReader<impl Read>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, ..Request::default() };
    let target = match target.split_once("://") {
        Some((_, rest)) => {
            request.by_proxy = true;
            rest.split_once('/').map_or("/".to_owned(), |(_, path)| format!("/{path}"))
        }
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    request.path = path.to_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    request.query = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        })
        .collect();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    request.body = vec![0; length];
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// Undoes percent-encoding.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut at, mut out) = (0, Vec::new());
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
