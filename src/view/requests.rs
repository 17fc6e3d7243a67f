//! Requests made of a store: what a bucket's owner pays for.

use crate::store::{RequestCounts, Verb};

/// Returns how many requests were made: `4 requests: 1 create, 3 read`.
pub fn text(requests: &RequestCounts) -> String {
    let made = Verb::ALL.iter().filter(|verb| requests.of(**verb) > 0);
    let parts: Vec<String> = made.map(|verb| format!("{} {verb}", requests.of(*verb))).collect();
    let total = requests.total();
    let noun = if total == 1 { "request" } else { "requests" };
    match parts.is_empty() {
        true => "no request of the store".to_owned(),
        false => format!("{total} {noun}: {}", parts.join(", ")),
    }
}
