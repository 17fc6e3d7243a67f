//! Listening, and one thread a request.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::door::Door;
use super::house::{House, Stay, is_the_stores};
use super::wire::{self, DidItMyself, Reply, Request, Task};
use super::{AgentFailure, http, peer};
use crate::metrics::Count;

/// Requests at a time; PostgreSQL makes one, and a host has few servers.
const MOST: usize = 64;
/// A request comes whole within this time, or not at all.
const HEARING: Duration = Duration::from_secs(5);
/// How often a request that takes longer is shown to be alive.
const BEAT: Duration = Duration::from_millis(500);
/// How long after a failure the command may take to do the work itself, and tell.
const NOTE: Duration = Duration::from_secs(120);
/// How often what nobody asks for is let go, at least.
const TIDY: Duration = Duration::from_secs(60);
/// Memory that only makes the next push or fetch faster is let go when nobody asked for anything in so long.
const SPARE: Duration = Duration::from_secs(30);
/// How long requests under way may take when the agent is told to end.
const LAST: Duration = Duration::from_secs(5);

/// An agent that listens; [`Running::stop`] ends it.
pub struct Running {
    house: Arc<House>,
    door: Arc<Door>,
    busy: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    tidying: mpsc::Sender<()>,
}

/// Begins to answer at a door.
///
/// # Errors
/// If no thread can be had.
pub fn serve(house: Arc<House>, door: Door) -> io::Result<Running> {
    if house.limits().stay == Stay::Resident {
        house.take_counts(&door.counts());
    }
    let (door, busy, ending) = (Arc::new(door), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (tidying, over) = mpsc::channel();
    let accepting = {
        let (house, door, busy, ending) =
            (Arc::clone(&house), Arc::clone(&door), Arc::clone(&busy), Arc::clone(&ending));
        std::thread::Builder::new().name("accept".into()).spawn(move || accept(&house, &door, &busy, &ending))?
    };
    let tidy = {
        let house = Arc::clone(&house);
        std::thread::Builder::new().name("tidy".into()).spawn(move || {
            let hold = house.limits().stay.holds_directories();
            while over.recv_timeout(TIDY.min(hold / 2)) == Err(mpsc::RecvTimeoutError::Timeout) {
                house.ahead.tidy(hold);
                house.prefetch.tidy(&house.metrics);
                if house.use_made.since() > SPARE {
                    crate::format::wal::clear_kept();
                } else {
                    // Whoever fetches one segment after the other has no use for what others were archived with.
                    crate::format::wal::let_go_unused();
                }
            }
        })?
    };
    // It ends with the process: what it does is done anew by the next.
    let standby = Arc::downgrade(&house);
    std::thread::Builder::new().name("standby".into()).spawn(move || {
        while let Some(house) = standby.upgrade() {
            let push = house.limits().own;
            push.iter().for_each(|push| house.push_from_standby(push));
            drop(house);
            std::thread::sleep(push.map_or(TIDY, |push| push.interval()));
        }
    })?;
    if house.limits().stay == Stay::Resident {
        let (served, signs) = (Arc::downgrade(&house), Arc::clone(&house.signs));
        std::thread::Builder::new().name("signs".into()).spawn(move || {
            while let Some(house) = served.upgrade() {
                house.give_signs();
                drop(house);
                signs.wait();
            }
        })?;
    }
    Ok(Running { house, door, busy, ending, threads: vec![accepting, tidy], tidying })
}

impl Running {
    /// What is served.
    pub fn house(&self) -> &Arc<House> {
        &self.house
    }

    /// Waits until nobody has made use of it for `idle`, or an agent wants its place.
    pub fn wait_until_idle(&self, idle: Duration) {
        loop {
            let at_work = self.busy.load(Ordering::SeqCst) > 0 || self.house.past.is_looking();
            let left = if at_work { idle } else { idle.saturating_sub(self.house.use_made.since()) };
            if left.is_zero() || self.house.use_made.is_over_within(left) {
                return;
            }
        }
    }

    /// Whether no request is under way, and every command's last word on one that failed was heard.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.busy.load(Ordering::SeqCst) == 0
    }

    /// Ends: no further request is taken, and those under way get a few seconds.
    pub fn stop(self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes whoever waits for a connection.
        let _ = rustix::net::shutdown(self.door.listener.as_fd(), rustix::net::Shutdown::Both);
        drop(self.tidying);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
        let until = Instant::now() + LAST;
        while self.busy.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        // As long as the door is ours nobody else writes it.
        if self.house.limits().stay != Stay::Resident
            && let Err(error) = self.house.keep_counts(&self.door.counts())
        {
            debug!(%error, "what was counted is not kept");
        }
    }
}

fn accept(house: &Arc<House>, door: &Door, busy: &Arc<AtomicUsize>, ending: &AtomicBool) {
    while !ending.load(Ordering::SeqCst) {
        let stream = match door.listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if ending.load(Ordering::SeqCst) => return,
            Err(error) => {
                // Out of descriptors, most likely; commands do the work themselves meanwhile.
                error!(%error, "no connection was accepted");
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
        };
        let turn = Turn::take(busy);
        if busy.load(Ordering::SeqCst) > MOST {
            house.metrics.add(Count::Refused, 1);
            continue;
        }
        let house = Arc::clone(house);
        let answering = std::thread::Builder::new().name("request".into()).spawn(move || {
            let _turn = turn;
            if let Err(error) = converse(&house, &stream) {
                debug!(%error, "a conversation ended early");
            }
        });
        if let Err(error) = answering {
            error!(%error, "no thread for a request");
        }
    }
}

/// A request's place among those under way.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn take(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(busy))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn converse(house: &Arc<House>, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(HEARING))?;
    stream.set_write_timeout(Some(HEARING))?;
    let user = peer::user_of(stream)?;
    if !peer::is_trusted(user, &house.limits().users) {
        house.metrics.add(Count::Refused, 1);
        warn!(user, "a user that is not allowed connected; see agent_users");
        return wire::send(stream, &Reply::Declined { reason: format!("user {user} is not allowed") }, &[]);
    }
    let mut first = [0; 4];
    let (seen, _) = rustix::net::recv(stream.as_fd(), &mut first, rustix::net::RecvFlags::PEEK)?;
    if &first[..seen] == b"GET " {
        return http::answer(house, stream);
    }
    let (request, files) = wire::receive::<Request>(stream, || Ok(()))?;
    // At once, so that the command knows that somebody is at home.
    wire::beat(stream)?;
    if let Some(reason) = house.declines(&request) {
        house.metrics.add(Count::Declined, 1);
        info!(%reason, "declined a request");
        return wire::send(stream, &Reply::Declined { reason }, &[]);
    }
    let (reply, file) = while_beating(stream, || answer(house, &request, files));
    let file = file.as_ref().map(AsFd::as_fd);
    wire::send(stream, &reply, file.as_slice())?;
    match reply {
        Reply::Failed { kind, text, settled: settled @ None } => {
            hear_the_end(house, stream, &AgentFailure { kind, text, settled });
        }
        Reply::Declined { .. } => house.metrics.add(Count::Declined, 1),
        _ => {}
    }
    Ok(())
}

fn answer(house: &Arc<House>, request: &Request, files: Vec<File>) -> (Reply, Option<File>) {
    let deadline = Instant::now() + Duration::from_millis(request.budget_ms);
    let _used = (!matches!(request.task, Task::MakeWay)).then(|| house.use_made.begin());
    match &request.task {
        Task::Push(task) => (house.push(task, files, deadline), None),
        Task::Fetch(task) => house.fetch(task, deadline),
        Task::MakeWay => (house.make_way(), None),
    }
}

/// Does a request's work and shows from time to time that it goes on.
fn while_beating<T>(stream: &UnixStream, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        // Dropped when the work is over, however it ends.
        let (_working, over) = mpsc::channel::<()>();
        scope.spawn(move || {
            while over.recv_timeout(BEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                if wire::beat(stream).is_err() {
                    return;
                }
            }
        });
        work()
    })
}

/// Waits for what the command made of the agent's failure: if it could do the work, the store is well.
fn hear_the_end(house: &House, stream: &UnixStream, failure: &AgentFailure) {
    house.metrics.add(Count::Declined, 1);
    let heard = stream.set_read_timeout(Some(NOTE)).and_then(|()| wire::receive::<DidItMyself>(stream, || Ok(())));
    match heard {
        Ok(_) if is_the_stores(failure.kind) => house.outdone(failure),
        Err(_) if is_the_stores(failure.kind) => house.store_failed(failure),
        _ => {}
    }
}
