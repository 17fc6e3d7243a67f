//! Requests made of a store, and the bytes of them: what a bucket's owner pays for.

use crate::store::{RequestCounts, Traffic, Verb};

/// Returns how many requests were made: `4 requests: 1 create, 3 read`; of a bucket also what went over the network:
/// `…; 4 over HTTP, 310422 bytes sent, 912 received`.
pub fn text(requests: &RequestCounts, traffic: &Traffic) -> String {
    let made = Verb::ALL.iter().filter(|verb| requests.of(**verb) > 0);
    let parts: Vec<String> = made.map(|verb| format!("{} {verb}", requests.of(*verb))).collect();
    let total = requests.total();
    let noun = if total == 1 { "request" } else { "requests" };
    let mut text = match parts.is_empty() {
        true => "no request of the store".to_owned(),
        false => format!("{total} {noun}: {}", parts.join(", ")),
    };
    // A page of a listing is a request over HTTP, and credentials are fetched by requests too.
    let by_http = traffic.requests + traffic.for_credentials;
    if by_http > 0 {
        text += &format!("; {by_http} over HTTP, {} bytes sent, {} received", traffic.sent, traffic.received);
    }
    text
}
