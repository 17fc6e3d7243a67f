//! Fetching, and fetching ahead: a recovery asks for one segment after the other, so the next ones are brought meanwhile.
//!
//! A segment that waits is a file without a name, complete and verified before anyone sees it; nothing is left of it when
//! the agent ends. It goes to whoever asks for it only if it might be served now: no branch may have come to light since,
//! and the plan must want it. That a segment is absent is never remembered: the next request looks again.
//!
//! Source: which timeline a recovery asks for first, `XLogFileReadAnyTLI` in `src/backend/access/transam/xlogrecovery.c`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::Final;
use super::house::{House, failed, is_the_stores};
use super::nameless::{self, SyncAhead};
use super::wire::{FetchTask, Mode, Reply};
use crate::archive::{Caller, FetchBudgets, FetchError, Fetcher, Forks, Found, Loaded};
use crate::error::{ErrorKind, one_line};
use crate::format::recovery_plan::{Planned, RecoveryPlan};
use crate::metrics::{Count, Level, Metrics, Step};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::History;
use crate::pg::wal_name::WalFileName;
use crate::repo::{Lane, LaneId};

/// Time that fetching ahead gives one request to the store.
const BUDGET: Duration = Duration::from_secs(30);
/// Longest wait for a segment that is being fetched ahead, before it is fetched for the one who asks.
const PATIENCE: Duration = Duration::from_secs(5);
/// What waits is let go when nobody asked for anything in so long.
const IDLE: Duration = Duration::from_secs(600);
/// No window is longer, however small the segments are.
const MOST_SEGMENTS: u64 = 64;

const NO_WAITING: FetchBudgets = FetchBudgets { hole: Duration::ZERO, standby_hole: Duration::ZERO };

type SegmentKey = (LaneId, SegmentName);

/// What is being fetched, and what was and has not been asked for.
#[derive(Default)]
pub(super) struct Prefetch {
    state: Mutex<State>,
    changed: Condvar,
    pub sync: SyncAhead,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<SegmentKey, Slot>,
    queue: VecDeque<Job>,
    /// Those in a worker's hands that somebody waits for.
    awaited: BTreeSet<SegmentKey>,
    workers: usize,
    /// The history that a recovery was last given: the branch that it follows.
    followed: BTreeMap<LaneId, History>,
    asked: Option<Instant>,
}

#[derive(Debug)]
enum Slot {
    /// In somebody's hands, or next.
    Taken,
    Here {
        file: File,
        bytes: u64,
    },
}

#[derive(Clone, Debug)]
struct Job {
    lane: Lane,
    forks: Arc<Forks>,
    caller: Caller,
    segment: SegmentName,
    /// As in [`FetchTask`].
    device: Option<u64>,
}

impl House {
    /// Brings a file for a command; it comes as a descriptor beside [`Reply::Here`].
    pub(super) fn fetch(self: &Arc<Self>, task: &FetchTask, deadline: Instant) -> (Reply, Option<File>) {
        let began = Instant::now();
        let declined = |reason: &str| (Reply::Declined { reason: reason.to_owned() }, None);
        let (Ok(name), Ok(id)) = (task.name.parse::<WalFileName>(), task.lane.parse::<LaneId>()) else {
            return declined("no name of a file of WAL, or of a lane");
        };
        // Where giving up only means that it asks again. A recovery keeps all its patience: to it, failing is the end.
        if task.mode == Mode::Standby
            && let Some(refusal) = self.breaker.refuses(Instant::now())
        {
            return (
                Reply::Failed { kind: ErrorKind::Unavailable, text: refusal, settled: Some(Final::StoreGone) },
                None,
            );
        }
        let caller = match task.mode {
            Mode::Recovery | Mode::Unsignalled => Caller::Recovery(task.plan.clone()),
            Mode::Standby => Caller::Standby,
            Mode::Exact => Caller::Exact,
        };
        let request = Duration::from_millis(task.request_ms);
        let opened = self.lane(id, request);
        let (lane, forks) = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => return declined("the lane is not there"),
            Err(error) => {
                self.metrics.add(Count::FetchFailures, 1);
                self.forget();
                return (failed(error.kind(), &error, None), None);
            }
        };
        let patience = FetchBudgets {
            hole: Duration::from_millis(task.hole_ms),
            standby_hole: Duration::from_millis(task.standby_hole_ms),
        };
        let fetcher = Fetcher::new(&lane, caller.clone(), patience).remembering(&forks).having_replayed(task.replayed);
        let segment = match &name {
            WalFileName::Segment(segment) if matches!(task.mode, Mode::Recovery | Mode::Standby) => Some(*segment),
            _ => None,
        };
        let waiting = segment.and_then(|segment| self.prefetch.take(&(id, segment), deadline));
        let hit = waiting.filter(|_| segment.is_some_and(|segment| fetcher.may_serve(segment).is_ok_and(|may| may)));
        let ahead = hit.is_some();
        let outcome = match hit {
            Some(file) => Ok(Some(file)),
            None => self.fetch_now(&fetcher, &name, id),
        };
        let elapsed_ms = began.elapsed().as_millis() as u64;
        self.metrics.took(Step::Fetch, began.elapsed());
        match outcome {
            Ok(Some(file)) => {
                self.metrics.add(Count::FetchedFiles, 1);
                self.metrics.add(Count::PrefetchHits, u64::from(ahead));
                self.store_worked();
                info!(segment = %name, ahead, elapsed_ms, "fetched");
                if let Some(segment) = segment {
                    self.fetch_ahead(Job { lane, forks, caller, segment, device: task.device });
                }
                (Reply::Here, Some(file))
            }
            // The lane's document may have been read a minute ago.
            Ok(None) if absence_is_the_stores(&caller, &name) && !self.lane_is_there(id, request).unwrap_or(false) => {
                self.forget();
                declined("the lane is not there any more")
            }
            Ok(None) => {
                debug!(segment = %name, elapsed_ms, "proven absent");
                (Reply::Absent, None)
            }
            Err(reply) => (reply, None),
        }
    }

    fn fetch_now(&self, fetcher: &Fetcher<'_>, name: &WalFileName, id: LaneId) -> Result<Option<File>, Reply> {
        let brought = fetcher.load(name).and_then(|loaded| match loaded {
            Loaded::Here(found) => self.take_out(&found).map(Some),
            // The only place where this word is said.
            Loaded::ProvenAbsent(_) => Ok(None),
        });
        let brought = brought.map_err(|error| {
            self.metrics.add(Count::FetchFailures, 1);
            if is_the_stores(error.kind()) {
                self.forget();
            }
            warn!(segment = %name, error = %one_line(&error, 400), "not fetched");
            // It was waited for already; the archive would say the same once more.
            let settled = match error {
                FetchError::Hole { .. } => Some(Final::Hole),
                FetchError::LeftBranch { .. } => Some(Final::LeftBranch),
                _ => None,
            };
            failed(error.kind(), &error, settled)
        })?;
        Ok(brought.map(|(file, history)| {
            history.into_iter().for_each(|history| drop(self.prefetch.state().followed.insert(id, history)));
            file
        }))
    }

    /// Writes what was found to a file without a name.
    fn take_out(&self, found: &Found) -> Result<(File, Option<History>), FetchError> {
        let brought = nameless::written(self.limits().scratch.as_deref(), found).or_else(|error| {
            if !matches!(error, FetchError::Write { .. }) {
                return Err(error);
            }
            debug!(%error, "the scratch directory cannot be used");
            nameless::in_memory(found)
        });
        Ok((brought?, found.history()))
    }

    /// Begins to bring what the recovery will ask for after a segment, as far as there is room.
    fn fetch_ahead(self: &Arc<Self>, after: Job) {
        let limits = self.limits();
        if limits.prefetch == 0 || limits.scratch.is_none() {
            return;
        }
        let (id, size) = (after.lane.id(), after.lane.segment_size());
        let most = (limits.prefetch / size.bytes()).min(MOST_SEGMENTS);
        let mut state = self.prefetch.state();
        state.asked = Some(Instant::now());
        let window = window(&after.caller, state.followed.get(&id), after.segment, size, most);
        // What the recovery has passed, or left for another branch, it will not ask for.
        state
            .slots
            .retain(|(lane, segment), slot| *lane != id || matches!(slot, Slot::Taken) || window.contains(segment));
        let left = std::mem::take(&mut state.queue);
        for job in left {
            if job.lane.id() == id && !window.contains(&job.segment) {
                state.slots.remove(&(id, job.segment));
            } else {
                state.queue.push_back(job);
            }
        }
        for segment in window {
            if let std::collections::btree_map::Entry::Vacant(vacant) = state.slots.entry((id, segment)) {
                vacant.insert(Slot::Taken);
                state.queue.push_back(Job { segment, ..after.clone() });
            }
        }
        state.measure(&self.metrics);
        while state.workers < limits.workers().min(state.queue.len()) {
            state.workers += 1;
            let house = Arc::clone(self);
            std::thread::spawn(move || house.work_on_prefetch());
        }
    }

    fn work_on_prefetch(&self) {
        loop {
            let mut state = self.prefetch.state();
            let Some(job) = state.queue.pop_front() else {
                state.workers -= 1;
                return;
            };
            drop(state);
            let key = (job.lane.id(), job.segment);
            let brought = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.bring(&job)));
            let mut state = self.prefetch.state();
            state.awaited.remove(&key);
            match brought.ok().flatten() {
                Some((file, bytes)) => drop(state.slots.insert(key, Slot::Here { file, bytes })),
                None => {
                    // Nothing beyond it is worth bringing now.
                    state.slots.remove(&key);
                    state.give_up_queue();
                }
            }
            state.measure(&self.metrics);
            drop(state);
            self.prefetch.changed.notify_all();
        }
    }

    fn bring(&self, job: &Job) -> Option<(File, u64)> {
        let began = Instant::now();
        let lane = job.lane.with_budget(BUDGET);
        let fetcher = Fetcher::new(&lane, job.caller.clone(), NO_WAITING).remembering(&job.forks);
        let fetcher = fetcher.only_for_what_is_there();
        let loaded = fetcher.load(&WalFileName::Segment(job.segment));
        let Ok(Loaded::Here(found)) = loaded else { return None };
        let scratch = self.limits().scratch;
        let brought = nameless::written(scratch.as_deref(), &found)
            .and_then(|file| self.sync_ahead(job, &file, scratch).map(|()| file));
        self.metrics.took(Step::Prefetch, began.elapsed());
        match brought {
            Ok(file) => Some((file, found.bytes())),
            Err(error @ FetchError::Write { .. }) => {
                warn!(error = %one_line(&error, 400), "the scratch directory cannot be used; nothing is fetched ahead");
                None
            }
            // Whoever asks for it will be told.
            Err(error) => {
                debug!(error = %one_line(&error, 400), "not fetched ahead");
                None
            }
        }
    }

    /// Has the disk take what the recovery will want durable, while it replays what comes before. Not what it waits for: its
    /// own sync may do less.
    fn sync_ahead(&self, job: &Job, file: &File, scratch: Option<PathBuf>) -> Result<(), FetchError> {
        if self.prefetch.is_awaited(&(job.lane.id(), job.segment)) {
            return Ok(());
        }
        let path = scratch.unwrap_or_default();
        self.prefetch.sync.linked_into(job.device, file).map_err(|source| FetchError::Write { path, source })
    }
}

impl Prefetch {
    /// Whether somebody waits for a segment that is in a worker's hands.
    fn is_awaited(&self, key: &SegmentKey) -> bool {
        self.state().awaited.contains(key)
    }

    /// Takes a segment that was fetched ahead; waits a while for one that is being fetched.
    fn take(&self, key: &SegmentKey, deadline: Instant) -> Option<File> {
        let deadline = deadline.min(Instant::now() + PATIENCE);
        let mut state = self.state();
        loop {
            if let Some(queued) = state.queue.iter().position(|job| (job.lane.id(), job.segment) == *key) {
                state.queue.remove(queued);
                state.slots.remove(key);
                return None;
            }
            match state.slots.get(key) {
                None => return None,
                Some(Slot::Here { .. }) => match state.slots.remove(key) {
                    Some(Slot::Here { file, .. }) => return Some(file),
                    _ => return None,
                },
                Some(Slot::Taken) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state.awaited.insert(*key);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets go of what nobody asked for in a long time.
    pub fn tidy(&self, metrics: &Metrics) {
        let mut state = self.state();
        if state.asked.is_some_and(|asked| asked.elapsed() > IDLE) {
            state.slots.retain(|_, slot| matches!(slot, Slot::Taken));
            state.measure(metrics);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_up_queue(&mut self) {
        for job in std::mem::take(&mut self.queue) {
            self.slots.remove(&(job.lane.id(), job.segment));
        }
    }

    fn measure(&self, metrics: &Metrics) {
        let bytes = |slot: &Slot| match slot {
            Slot::Here { bytes, .. } => *bytes,
            Slot::Taken => 0,
        };
        metrics.set(Level::PrefetchedBytes, self.slots.values().map(bytes).sum());
    }
}

/// Whether an absence rests on what the store said: a plan alone says of a segment that it is not wanted, and to a standby
/// an absence proves nothing.
fn absence_is_the_stores(caller: &Caller, name: &WalFileName) -> bool {
    match caller {
        Caller::Recovery(Some(_)) => !matches!(name, WalFileName::Segment(_)),
        Caller::Recovery(None) | Caller::Exact => true,
        Caller::Standby => false,
    }
}

/// Returns the names of the `most` segments that come after one on the branch that a recovery follows: along its plan, or
/// the history that it was given, or else the segment's own timeline.
fn window(
    caller: &Caller,
    followed: Option<&History>,
    after: SegmentName,
    size: SegmentSize,
    most: u64,
) -> Vec<SegmentName> {
    let Ok(number) = after.number(size) else { return Vec::new() };
    let plan = match caller {
        Caller::Recovery(plan) => plan.as_ref(),
        Caller::Standby | Caller::Exact => None,
    };
    let numbers = std::iter::successors(Some(number.next()), |number| Some(number.next())).take(most as usize);
    let named = |timeline, number| SegmentName::from_number(timeline, number, size);
    let on_plan = |plan: &RecoveryPlan, number| {
        let names = plan.path.iter().map(|stretch| named(stretch.timeline, number));
        names.into_iter().find(|name| plan.segment(*name) == Planned::Needed)
    };
    // The segment in which a timeline forks off is the child's, which is whose its last byte is.
    let on_history = |history: &History, number| named(history.timeline_at(number_end(number, size)), number);
    let history = followed.filter(|history| on_history(history, number) == after);
    match (plan, history) {
        (Some(plan), _) => numbers.map_while(|number| on_plan(plan, number)).collect(),
        (None, Some(history)) => numbers.map(|number| on_history(history, number)).collect(),
        (None, None) => numbers.map(|number| named(after.timeline(), number)).collect(),
    }
}

fn number_end(number: crate::pg::segment::SegmentNo, size: SegmentSize) -> crate::pg::lsn::Lsn {
    crate::pg::lsn::Lsn::new(number.end(size).bytes().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::recovery_plan::{PlannedStretch, RECOVERY_PLAN_VERSION};
    use crate::pg::lsn::Lsn;
    use crate::pg::system_id::SystemId;
    use crate::pg::timeline::TimelineId;

    fn names(caller: &Caller, followed: Option<&History>, after: &str) -> Vec<String> {
        let after = after.parse().expect("a segment");
        let window = window(caller, followed, after, SegmentSize::DEFAULT, 3);
        window
            .iter()
            .map(|name| name.to_string().split_off(7))
            .map(|name| format!("{}-{}", &name[..1], &name[15..]))
            .collect()
    }

    #[test]
    fn the_window_follows_the_branch_through_its_switches() {
        let timeline = |number| TimelineId::new(number).expect("not zero");
        let history = History::parse(timeline(2), "1\t0/5000500\tno reason\n").expect("a history");
        let any = Caller::Standby;
        assert_eq!(names(&any, None, "000000010000000000000003"), ["1-04", "1-05", "1-06"]);
        assert_eq!(names(&any, Some(&history), "000000010000000000000003"), ["1-04", "2-05", "2-06"]);
        // On a boundary the child begins with the segment of its own.
        let boundary = History::parse(timeline(2), "1\t0/5000000\tno reason\n").expect("a history");
        assert_eq!(names(&any, Some(&boundary), "000000010000000000000003"), ["1-04", "2-05", "2-06"]);
        // Whoever asks for the parent past the fork does not follow that history.
        assert_eq!(names(&any, Some(&history), "000000010000000000000006"), ["1-07", "1-08", "1-09"]);
    }

    #[test]
    fn who_waits_for_a_segment_in_a_workers_hands_is_known_to_the_worker() {
        let prefetch = Prefetch::default();
        let segment = "000000010000000000000003".parse().expect("a name");
        let WalFileName::Segment(segment) = segment else { panic!("a segment") };
        let key = (LaneId::first(SystemId::new(7)), segment);
        prefetch.state().slots.insert(key, Slot::Taken);
        assert!(!prefetch.is_awaited(&key));
        let deadline = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| prefetch.take(&key, deadline));
            while !prefetch.is_awaited(&key) && Instant::now() < deadline {
                std::thread::yield_now();
            }
            assert!(prefetch.is_awaited(&key));
            prefetch.state().slots.remove(&key);
            prefetch.changed.notify_all();
            assert!(taking.join().expect("no panic").is_none());
        });
    }

    #[test]
    fn under_a_plan_the_window_ends_at_the_target() {
        let stretch = |number, begin, end: Option<u64>| PlannedStretch {
            timeline: TimelineId::new(number).expect("not zero"),
            begin: Lsn::new(begin),
            end: end.map(Lsn::new),
        };
        let plan = RecoveryPlan {
            primary: None,
            version: RECOVERY_PLAN_VERSION,
            system_id: SystemId::new(7),
            lane: "7-1".to_owned(),
            backup: "b".to_owned(),
            segment_size: 1 << 24,
            path: vec![stretch(1, 0, Some(0x500_0500)), stretch(2, 0x500_0500, None)],
            needed_before: Lsn::new(0x600_0100),
            partial: None,
            target: String::new(),
        };
        let caller = Caller::Recovery(Some(plan));
        assert_eq!(names(&caller, None, "000000010000000000000003"), ["1-04", "2-05", "2-06"]);
        assert_eq!(names(&caller, None, "000000020000000000000005"), ["2-06"]);
    }
}
