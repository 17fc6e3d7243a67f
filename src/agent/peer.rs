//! Who is at the other end of a socket.

use std::io;
use std::os::fd::AsFd;

/// Returns the user of the process that connected, or that listens.
///
/// Source: `SO_PEERCRED` in unix(7): the credentials at the time of connect(2) or listen(2).
pub(super) fn user_of(stream: &impl AsFd) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
}

/// Returns whether a user's word is taken: our own, root's, and those that are named.
pub(super) fn is_trusted(user: u32, named: &[u32]) -> bool {
    user == rustix::process::geteuid().as_raw() || user == 0 || named.contains(&user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_not_trusted() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let own = user_of(&one).expect("a user");
        assert!(is_trusted(own, &[]) && is_trusted(0, &[]) && is_trusted(own + 1000, &[own + 1000]));
        assert!(!is_trusted(own + 1000, &[own + 1001]));
    }
}
