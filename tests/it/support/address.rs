//! Addresses of this host's own, for servers whose port is always the same.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU8, Ordering};

/// Returns a loopback address on which nobody listens at PostgreSQL's port; no other test of this run gets the same.
pub fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let number = std::process::id();
    loop {
        let last = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(last < 255, "no free address");
        let address = format!("127.{}.{}.{last}", 64 + (number >> 8) % 128, number % 256);
        if TcpListener::bind((address.as_str(), 5432)).is_ok() {
            return address;
        }
    }
}
