//! `/metrics`, `/healthz` and `/version`: three pages, one request a connection, nothing else.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::greeting;
use super::house::House;
use crate::metrics::Level;

/// Longest request that is read.
const LONGEST: u64 = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers at a TCP address, one request after the other, as long as the process lives. Returns the address, whose port
/// was chosen if it was 0.
///
/// # Errors
/// If it cannot be listened on.
pub fn listen(house: &Arc<House>, address: &str) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let bound = listener.local_addr()?;
    let house = Arc::clone(house);
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let ready = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
            if let Err(error) = ready.and_then(|()| answer(&house, &stream)) {
                debug!(%error, "a request for metrics ended early");
            }
        }
    })?;
    Ok(bound)
}

/// Answers one request.
pub(super) fn answer<S>(house: &House, stream: &S) -> io::Result<()>
where
    for<'a> &'a S: Read + Write,
{
    let mut request = BufReader::new(stream.take(LONGEST));
    let mut line = String::new();
    request.read_line(&mut line)?;
    let mut header = String::new();
    while request.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, kind, body) = match line.split(' ').nth(1).unwrap_or_default() {
        "/metrics" => ("200 OK", "text/plain; version=0.0.4", house.metrics_text()),
        greeting::PAGE => ("200 OK", "text/plain", house.greeting()),
        "/healthz" if house.metrics.level(Level::BreakerOpen) == 0 => ("200 OK", "text/plain", "ok\n".to_owned()),
        "/healthz" => ("503 Service Unavailable", "text/plain", "the store does not answer\n".to_owned()),
        _ => ("404 Not Found", "text/plain", "there is /metrics, /healthz and /version\n".to_owned()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    let mut stream = stream;
    stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())
}
