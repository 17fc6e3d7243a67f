//! The thread that renews what is held by a record, for as long as it is held.

use std::sync::mpsc;
use std::thread::JoinHandle;

use super::lease::RENEWED;

/// Renews until it is ended or dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Dropped first: that ends the thread.
    working: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins to call `renew` from time to time. Where no thread can be had nothing is renewed, and what is held runs out.
    pub fn begin(name: &str, renew: impl Fn() + Send + 'static) -> Self {
        let (working, over) = mpsc::channel::<()>();
        let keep = move || {
            while over.recv_timeout(RENEWED) == Err(mpsc::RecvTimeoutError::Timeout) {
                renew();
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(keep).ok();
        Self { working: Some(working), thread }
    }

    /// Ends it; what it is at comes to its end first.
    pub fn end(&mut self) {
        drop(self.working.take());
        if let Some(thread) = self.thread.take() {
            // Whatever befell it, nothing is renewed any more.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}
