//! What a signal does to a backup over the network: the server is told, so that nothing goes on there, and the command ends
//! as one that failed, with its lease given back. A second signal, or none of that in time, ends it at once.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::output;
use crate::instance::replication::Canceller;

/// Kubernetes kills a pod 30 seconds after it asked it to end.
const TIME_TO_END: Duration = Duration::from_secs(20);

/// From now on SIGTERM and SIGINT end what these sessions of the server do.
pub(super) fn cancel_on_signals(sessions: Vec<Canceller>) -> std::io::Result<()> {
    let (mut pipe, wake) = UnixStream::pair()?;
    let last = Arc::new(AtomicUsize::new(0));
    for signal in [SIGTERM, SIGINT] {
        flag::register_usize(signal, Arc::clone(&last), signal as usize)?;
        low_level::pipe::register(signal, wake.try_clone()?)?;
    }
    std::thread::spawn(move || {
        if !waits(&mut pipe) {
            return;
        }
        output::complain("a signal came: the backup is being ended; another one ends it at once");
        for session in sessions {
            if let Err(problem) = session.cancel() {
                output::complain(&format!("warning: the server was not told to end the backup: {problem}"));
            }
        }
        let _ = pipe.set_read_timeout(Some(TIME_TO_END));
        waits(&mut pipe);
        let _ = low_level::emulate_default_handler(last.load(Ordering::SeqCst) as i32);
    });
    Ok(())
}

/// Waits for a signal; whether one came.
fn waits(pipe: &mut UnixStream) -> bool {
    loop {
        match pipe.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other.is_ok_and(|read| read > 0),
        }
    }
}
