//! The only reader of wall time.

use chrono::{DateTime, Utc};

/// Returns the moment by this host's clock.
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
