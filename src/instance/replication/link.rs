//! The socket: TCP or a path, plain or encrypted.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::super::conninfo::{ConnectionSettings, Endpoint, Probes, Watch};
use super::super::tls::{Attempt, TlsSettings, end_point};

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

    /// Returns the address of the host, if it has one that leads there by itself: one of IPv6 that is good on one link only
    /// needs the link's name.
    pub fn address(&self) -> Option<IpAddr> {
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Encrypted(stream) => &stream.sock,
            Self::Unix(_) => return None,
        };
        let address = stream.peer_addr().ok()?.ip();
        let of_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        Some(address).filter(|_| !of_link)
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
                watch(&stream, &settings.watch)?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Has the system find out that a host is gone.
fn watch(stream: &TcpStream, watch: &Watch) -> io::Result<()> {
    let Watch { probes, unanswered } = watch;
    sockopt::set_socket_keepalive(stream, probes.is_some())?;
    if let Some(Probes { idle, interval, count }) = probes {
        idle.map_or(Ok(()), |idle| sockopt::set_tcp_keepidle(stream, idle))?;
        interval.map_or(Ok(()), |interval| sockopt::set_tcp_keepintvl(stream, interval))?;
        count.map_or(Ok(()), |count| sockopt::set_tcp_keepcnt(stream, count))?;
    }
    unanswered.map_or(Ok(()), |time| sockopt::set_tcp_user_timeout(stream, time.as_millis() as u32))?;
    Ok(())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use super::*;
    use crate::instance::LibpqEnvironment;

    /// Whether it probes, after how much silence, how long after each other and how often, and how long it waits for an
    /// acknowledgement in milliseconds, of a connection to a host of ours.
    fn watched(words: &str) -> (bool, Duration, Duration, u32, u32) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let conninfo = format!("host=127.0.0.1 port={port} user=somebody {words}");
        let settings = ConnectionSettings::resolve(Some(&conninfo), &LibpqEnvironment::default(), None).unwrap();
        let link = Link::open(&settings, &settings.endpoints[0], Attempt::Plain).unwrap();
        assert_eq!(link.address(), Some("127.0.0.1".parse().unwrap()));
        let Link::Tcp(stream) = link else { panic!("it is plain") };
        (
            sockopt::socket_keepalive(&stream).unwrap(),
            sockopt::tcp_keepidle(&stream).unwrap(),
            sockopt::tcp_keepintvl(&stream).unwrap(),
            sockopt::tcp_keepcnt(&stream).unwrap(),
            sockopt::tcp_user_timeout(&stream).unwrap(),
        )
    }

    #[test]
    fn a_connection_is_watched_as_the_connection_string_says() {
        let seconds = Duration::from_secs;
        assert_eq!(watched(""), (true, seconds(30), seconds(10), 4, 0));
        let words = "keepalives_idle=70 keepalives_interval=7 keepalives_count=9 tcp_user_timeout=45000";
        assert_eq!(watched(words), (true, seconds(70), seconds(7), 9, 45_000));
        // Zero leaves it to the system.
        let (on, idle, interval, count, _) = watched("keepalives_idle=0 keepalives_interval=0 keepalives_count=0");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let untouched = (
            sockopt::tcp_keepidle(&tcp).unwrap(),
            sockopt::tcp_keepintvl(&tcp).unwrap(),
            sockopt::tcp_keepcnt(&tcp).unwrap(),
        );
        assert_eq!((on, (idle, interval, count)), (true, untouched));
        let (on, ..) = watched("keepalives=0 keepalives_idle=70");
        assert!(!on);
    }
}
