//! The facade over a real volume and over faults.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use super::fault::{Fault, FaultStore, When};
use super::*;
use crate::error::chain;

/// A directory of its own for one test, removed when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let path = std::env::temp_dir().join(format!("walvault store {}", hex::encode(random)));
        fs::create_dir(&path).unwrap();
        Self(fs::canonicalize(path).unwrap())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn url(&self) -> StoreUrl {
        StoreUrl::volume(&self.0).unwrap()
    }

    pub(super) fn store(&self, policy: RetryPolicy) -> Store {
        Store::open(&self.url(), &Access::default(), policy).unwrap()
    }

    /// Returns every file and directory below it, relative and sorted.
    pub(super) fn files(&self) -> Vec<String> {
        let (mut found, mut waiting) = (vec![], vec![self.0.clone()]);
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned());
                if path.is_dir() {
                    waiting.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn body(text: &str) -> Vec<Bytes> {
    text.split_inclusive(' ').map(|word| Bytes::from(word.to_owned())).collect()
}

fn faulty(policy: RetryPolicy) -> (FaultStore, Store) {
    let faults = FaultStore::in_memory();
    let store = Store::over(Arc::new(faults.clone()), "memory", policy).unwrap();
    (faults, store)
}

#[test]
fn a_missing_root_is_unavailable_and_never_made() {
    let scratch = Scratch::new();
    let gone = StoreUrl::volume(&scratch.path().join("not/mounted")).unwrap();
    let error = Store::open(&gone, &Access::default(), RetryPolicy::default()).unwrap_err();
    assert_eq!((error.kind(), error.verb()), (ErrorKind::Unavailable, Verb::Open));
    let text = chain(&error).to_string();
    assert!(text.starts_with("open the root in file:///") && text.contains("No such file"), "{text}");
    let error = Store::create_root(&gone, &RetryPolicy::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "its parent is missing");
    assert_eq!(scratch.files(), Vec::<String>::new());
}

#[test]
fn a_root_that_is_a_file_is_invalid() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("file"), "").unwrap();
    let url = StoreUrl::volume(&scratch.path().join("file")).unwrap();
    assert_eq!(Store::open(&url, &Access::default(), RetryPolicy::default()).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(Store::create_root(&url, &RetryPolicy::default()).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_root_is_made_once() {
    let scratch = Scratch::new();
    let url = StoreUrl::volume(&scratch.path().join("repo")).unwrap();
    assert_eq!(Store::create_root(&url, &RetryPolicy::default()).unwrap(), Created::New);
    assert_eq!(Store::create_root(&url, &RetryPolicy::default()).unwrap(), Created::Existing);
    assert_eq!(Store::open(&url, &Access::default(), RetryPolicy::default()).unwrap().list(None).unwrap(), []);
}

#[test]
fn a_lost_reply_becomes_existing_with_our_bytes() {
    let (faults, store) = faulty(RetryPolicy::brisk(5));
    faults.script(When::next(Verb::Create), Fault::After(io::ErrorKind::ConnectionReset));
    assert_eq!(store.create(&key("a"), body("one two three")).unwrap(), Created::Existing);
    assert_eq!(store.get(&key("a")).unwrap().unwrap(), "one two three");
    assert_eq!(store.requests().of(Verb::Create), 2);
}

#[test]
fn every_attempt_sends_the_whole_body() {
    let (faults, store) = faulty(RetryPolicy::brisk(5));
    faults.script(When::every(Verb::Create).times(3), Fault::Before(io::ErrorKind::BrokenPipe));
    assert_eq!(store.create(&key("a"), body("one two three")).unwrap(), Created::New);
    assert_eq!(store.get(&key("a")).unwrap().unwrap(), "one two three");
    assert_eq!((store.requests().of(Verb::Create), store.requests().total()), (4, 5));
}

#[test]
fn what_cannot_pass_is_asked_once() {
    for (fault, kind) in [
        (io::ErrorKind::PermissionDenied, ErrorKind::Denied),
        (io::ErrorKind::StorageFull, ErrorKind::Full),
        (io::ErrorKind::InvalidInput, ErrorKind::Invalid),
    ] {
        let (faults, store) = faulty(RetryPolicy::brisk(5));
        faults.script(When::every(Verb::Create), Fault::Before(fault));
        let error = store.create(&key("a/b"), body("x")).unwrap_err();
        assert_eq!((error.kind(), error.attempts(), error.key()), (kind, 1, Some(&key("a/b"))));
        assert_eq!(faults.operations(), 1);
    }
}

#[test]
fn no_error_is_taken_for_absence() {
    use io::ErrorKind as K;
    for fault in [K::NotFound, K::NotADirectory, K::PermissionDenied, K::TimedOut, K::StaleNetworkFileHandle, K::Other]
    {
        let (faults, store) = faulty(RetryPolicy::brisk(2));
        faults.script(When::default(), Fault::Before(fault));
        assert!(store.get(&key("a")).is_err(), "get, {fault}");
        assert!(store.get_range(&key("a"), 0..1).is_err(), "get_range, {fault}");
        assert!(store.get_range(&key("a"), 0..0).is_err(), "get_range of nothing, {fault}");
        assert!(store.head(&key("a")).is_err(), "head, {fault}");
        assert!(store.list(None).is_err(), "list, {fault}");
        assert!(store.list_children(None).is_err(), "list_children, {fault}");
        assert!(store.delete(&key("a")).is_err(), "delete, {fault}");
    }
}

#[test]
fn a_reply_that_breaks_off_is_read_again_and_never_handed_out_short() {
    let (faults, store) = faulty(RetryPolicy::brisk(3));
    store.create(&key("a"), body("one two three")).unwrap();
    for verb in [Verb::Get, Verb::GetRange] {
        faults.script(When::next(verb), Fault::Truncate { to: 2 });
    }
    assert_eq!(store.get(&key("a")).unwrap().unwrap(), "one two three");
    assert_eq!(store.get_range(&key("a"), 4..7).unwrap().unwrap(), "two");
    assert_eq!(faults.operations(), 5);
    for verb in [Verb::Get, Verb::GetRange] {
        faults.script(When::every(verb), Fault::Truncate { to: 2 });
    }
    let error = store.get(&key("a")).unwrap_err();
    assert!(matches!(error.failure(), Failure::CutOff { expected: 13, got: 2 }), "{error:?}");
    let error = store.get_range(&key("a"), 4..7).unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unavailable, 3));
}

#[test]
fn a_backend_that_hangs_costs_the_budget_and_no_more() {
    let (brief, long) = (Duration::from_millis(30), Duration::from_secs(600));
    let hanging = |attempt: Duration, attempts: u32, budget: Duration| {
        let (faults, store) = faulty(RetryPolicy { attempt, ..RetryPolicy::brisk(attempts) });
        faults.script(When::default(), Fault::Hang);
        store.with_budget(budget)
    };
    // Every attempt ends, whatever time is left; and the budget ends the verb, whatever an attempt may take.
    for (store, attempts) in [(hanging(brief, 3, long), 3), (hanging(long, u32::MAX, brief), 1)] {
        let verbs: [&dyn Fn() -> Option<StoreError>; 7] = [
            &|| store.create(&key("a"), body("x")).err(),
            &|| store.get(&key("a")).err(),
            &|| store.get_range(&key("a"), 0..u64::MAX).err(),
            &|| store.head(&key("a")).err(),
            &|| store.list(None).err(),
            &|| store.list_children(None).err(),
            &|| store.delete(&key("a")).err(),
        ];
        for verb in verbs {
            let began = Instant::now();
            let error = verb().expect("it never answers");
            assert!((brief..long / 2).contains(&began.elapsed()), "{error} took {:?}", began.elapsed());
            assert!(matches!(error.failure(), Failure::TimedOut(_)), "{error:?}");
            assert_eq!(error.attempts(), attempts, "{error}");
        }
    }
}

#[test]
fn a_create_that_was_only_slow_to_answer_is_existing() {
    let policy = RetryPolicy { attempt: Duration::from_millis(30), ..RetryPolicy::brisk(9) };
    let (faults, store) = faulty(policy);
    faults.script(When::next(Verb::Create), Fault::HangAfter);
    assert_eq!(store.create(&key("a"), body("x")).unwrap(), Created::Existing);
}

#[test]
fn a_hung_file_system_holds_up_neither_a_verb_nor_the_end() {
    let scratch = Scratch::new();
    // Opening a pipe nobody writes to blocks inside the kernel, as a read from a dead NFS server does.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        scratch.path().join("stuck"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let policy = RetryPolicy { attempt: Duration::from_millis(50), ..RetryPolicy::brisk(2) };
    let store = scratch.store(policy);
    let began = Instant::now();
    assert_eq!(store.get(&key("stuck")).unwrap_err().kind(), ErrorKind::Unavailable);
    drop(store);
    // It would have hung for ever.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn threads_share_one_store_without_waiting_for_each_other() {
    let (faults, store) = faulty(RetryPolicy::brisk(1));
    faults.script(When::every(Verb::Head), Fault::Delay(Duration::from_secs(2)));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(store.head(&key("a")).unwrap(), None));
        }
    });
    // One after the other would take 16 s.
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    assert_eq!(store.requests().of(Verb::Head), 8);
}

#[test]
fn a_larger_object_than_allowed_is_corrupt_and_not_read() {
    let (faults, store) = faulty(RetryPolicy::brisk(3));
    store.create(&key("a"), body("12345")).unwrap();
    let error = store.get_up_to(&key("a"), 4).unwrap_err();
    assert!(matches!(error.failure(), Failure::TooLarge { size: 5, limit: 4 }));
    assert_eq!((error.kind(), faults.operations()), (ErrorKind::Corrupt, 2));
}

#[test]
fn names_that_are_not_ours_are_not_listed() {
    let (faults, store) = faulty(RetryPolicy::brisk(1));
    store.create(&key("ours"), vec![]).unwrap();
    let foreign = object_store::path::Path::parse("not ours").unwrap();
    store.bridge.block_on(faults.put_opts(&foreign, PutPayload::new(), PutOptions::default())).unwrap();
    assert_eq!(store.list(None).unwrap().len(), 1);
    assert_eq!(store.list_children(None).unwrap().objects.len(), 1);
}
