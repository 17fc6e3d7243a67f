//! The socket: TCP or a path, plain or encrypted.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::super::conninfo::{ConnectionSettings, Endpoint};
use super::super::tls::{Attempt, TlsSettings, end_point};

/// After how many probes without an answer, and how long after each other, a silent host is given up.
const PROBES: u32 = 4;
const PROBE_AGAIN: Duration = Duration::from_secs(10);

/// A connection to one server.
pub(super) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
    Encrypted(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum LinkError {
    Connect(io::Error),
    Tls(io::Error),
    /// What answers is no server of ours.
    Stranger(u8),
}

impl LinkError {
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Connect(source) | Self::Tls(source) => source,
            Self::Stranger(byte) => io::Error::other(format!("it answers {:?}", char::from(byte))),
        }
    }
}

impl Link {
    /// Connects to one host in one way.
    pub fn open(settings: &ConnectionSettings, endpoint: &Endpoint, attempt: Attempt) -> Result<Self, LinkError> {
        if let Some(path) = endpoint.socket() {
            let stream = UnixStream::connect(path).map_err(LinkError::Connect)?;
            let link = Self::Unix(stream);
            link.set_timeout(settings.timeout).map_err(LinkError::Connect)?;
            return Ok(link);
        }
        let tcp = connect(settings, endpoint).map_err(LinkError::Connect)?;
        match attempt {
            Attempt::Plain => Ok(Self::Tcp(tcp)),
            Attempt::Encrypted | Attempt::EncryptedIfOffered => {
                encrypt(tcp, &settings.tls, &endpoint.host, attempt == Attempt::Encrypted)
            }
        }
    }

    /// Limits how long a read may wait; none for as long as it takes.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Encrypted(stream) => stream.sock.set_read_timeout(timeout),
        }
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// Whether nobody on the way can listen.
    pub fn is_private(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// Returns what binds a login to this connection, if there is such a thing.
    pub fn binding(&self) -> Option<Vec<u8>> {
        let Self::Encrypted(stream) = self else { return None };
        end_point(stream.conn.peer_certificates()?.first()?)
    }
}

fn connect(settings: &ConnectionSettings, endpoint: &Endpoint) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = match endpoint.address {
        Some(address) => vec![(address, endpoint.port).into()],
        None => (endpoint.host.as_str(), endpoint.port).to_socket_addrs()?.collect(),
    };
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let connected = match settings.timeout {
            Some(timeout) => TcpStream::connect_timeout(&address, timeout),
            None => TcpStream::connect(address),
        };
        match connected {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(settings.timeout)?;
                if let Some(idle) = settings.keepalive {
                    sockopt::set_socket_keepalive(&stream, true)?;
                    sockopt::set_tcp_keepidle(&stream, idle)?;
                    sockopt::set_tcp_keepintvl(&stream, PROBE_AGAIN)?;
                    sockopt::set_tcp_keepcnt(&stream, PROBES)?;
                }
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Asks for encryption and agrees on it.
fn encrypt(mut tcp: TcpStream, tls: &TlsSettings, host: &str, required: bool) -> Result<Link, LinkError> {
    if !tls.direct {
        let mut request = bytes::BytesMut::new();
        frontend::ssl_request(&mut request);
        let mut answer = [0];
        // Byte by byte: what comes before the handshake and is not part of it must not be taken for encrypted.
        tcp.write_all(&request).and_then(|()| tcp.read_exact(&mut answer)).map_err(LinkError::Connect)?;
        match answer {
            [b'S'] => {}
            [b'N'] if !required => return Ok(Link::Tcp(tcp)),
            [b'N'] => {
                let problem = io::Error::new(io::ErrorKind::Unsupported, "the server has no encryption (ssl is off)");
                return Err(LinkError::Tls(problem));
            }
            // A server that is too full or too old to look at the request says so.
            [b'E'] if !required => return Err(LinkError::Connect(io::Error::other("the server takes no connections"))),
            [b'E'] => return Err(LinkError::Tls(io::Error::other("the server refuses the request for encryption"))),
            [other] => return Err(LinkError::Stranger(other)),
        }
    }
    let configuration = tls.configuration().map_err(LinkError::Tls)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| LinkError::Tls(io::Error::other(error)))?;
    let connection = ClientConnection::new(Arc::clone(&configuration), name);
    let mut connection = connection.map_err(|error| LinkError::Tls(io::Error::other(error)))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp).map_err(LinkError::Tls)?;
    }
    if tls.direct && connection.alpn_protocol() != Some(b"postgresql") {
        let problem = "the server does not agree on PostgreSQL's protocol; sslnegotiation=direct needs 17 or later";
        return Err(LinkError::Tls(io::Error::new(io::ErrorKind::Unsupported, problem)));
    }
    Ok(Link::Encrypted(Box::new(StreamOwned::new(connection, tcp))))
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Encrypted(stream) => stream.read(buffer),
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Encrypted(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
            Self::Encrypted(stream) => stream.flush(),
        }
    }
}
