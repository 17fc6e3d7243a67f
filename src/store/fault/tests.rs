//! That each fault does what it says, and nothing else.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::ErrorKind;
use crate::store::{Created, Key, RetryPolicy, Store};

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn store(faults: &FaultStore) -> Store {
    Store::over(Arc::new(faults.clone()), "memory", RetryPolicy::brisk(1)).unwrap()
}

fn body(text: &str) -> Vec<Bytes> {
    vec![Bytes::from(text.to_owned())]
}

#[test]
fn operations_are_numbered_and_named() {
    let faults = FaultStore::in_memory();
    let store = store(&faults);
    store.create(&key("a/b"), body("x")).unwrap();
    store.get(&key("a/b")).unwrap();
    store.get_range(&key("a/b"), 0..1).unwrap();
    store.head(&key("a/b")).unwrap();
    store.list(None).unwrap();
    store.list_children(Some(&key("a"))).unwrap();
    store.delete(&key("a/b")).unwrap();
    let seen: Vec<_> = faults.seen().into_iter().map(|seen| (seen.number, seen.verb, seen.key)).collect();
    let expected = [
        (1, Verb::Create, "a/b"),
        (2, Verb::Get, "a/b"),
        (3, Verb::GetRange, "a/b"),
        (4, Verb::Head, "a/b"),
        (5, Verb::List, ""),
        (6, Verb::ListChildren, "a"),
        (7, Verb::Delete, "a/b"),
    ];
    assert_eq!(seen, expected.map(|(number, verb, key)| (number, verb, key.to_owned())));
}

#[test]
fn a_rule_strikes_where_it_says_and_nowhere_else() {
    let faults = FaultStore::in_memory();
    let store = store(&faults);
    let rule = When { skip: 1, ..When::every(Verb::Head).on("wal") }.times(2);
    faults.script(rule, Fault::Before(io::ErrorKind::PermissionDenied));
    let outcomes: Vec<_> = ["wal/1", "x", "wal/2", "wal/3", "wal/4"].map(|k| store.head(&key(k)).is_ok()).into();
    assert_eq!(outcomes, [true, true, false, false, true]);
    assert!(store.get(&key("wal/5")).is_ok());
}

#[test]
fn before_leaves_nothing_and_after_leaves_everything() {
    let faults = FaultStore::in_memory();
    let store = store(&faults);
    faults.script(When::nth(1), Fault::Before(io::ErrorKind::TimedOut));
    faults.script(When::nth(2), Fault::After(io::ErrorKind::TimedOut));
    assert_eq!(store.create(&key("before"), body("x")).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.create(&key("after"), body("x")).unwrap_err().kind(), ErrorKind::Unavailable);
    let listed: Vec<_> = store.list(None).unwrap().into_iter().map(|meta| meta.key).collect();
    assert_eq!(listed, [key("after")]);
}

#[test]
fn nothing_is_done_after_death() {
    for (fault, left) in [(Fault::Die, 1), (Fault::DieAfter, 2)] {
        let faults = FaultStore::in_memory();
        let store = store(&faults);
        faults.script(When::nth(2), fault);
        let outcomes: Vec<_> = ["a", "b", "c", "d"].map(|k| store.create(&key(k), body("x")).is_ok()).into();
        assert_eq!(outcomes, [true, false, false, false]);
        assert!(store.list(None).is_err() && faults.is_dead());
        faults.heal();
        assert_eq!(store.list(None).unwrap().len(), left, "{fault:?}");
    }
}

#[test]
fn bodies_are_damaged_as_told() {
    let faults = FaultStore::in_memory();
    let store = store(&faults);
    faults.script(When::nth(1), Fault::Truncate { to: 2 });
    faults.script(When::nth(2), Fault::FlipBit { bit: 8 });
    store.create(&key("short"), body("abcd")).unwrap();
    store.create(&key("bent"), vec![Bytes::from("a"), Bytes::from("b")]).unwrap();
    assert_eq!(store.get(&key("short")).unwrap().unwrap(), "ab");
    assert_eq!(store.get(&key("bent")).unwrap().unwrap(), "ac");
    faults.script(When::next(Verb::Get), Fault::FlipBit { bit: 17 });
    assert_eq!(store.get(&key("short")).unwrap().unwrap(), "cb");
    assert_eq!(store.get(&key("short")).unwrap().unwrap(), "ab", "what is stored was not damaged by reading");
}

#[test]
fn what_is_forgotten_is_absent() {
    let faults = FaultStore::in_memory();
    let store = store(&faults);
    store.create(&key("a/b"), body("x")).unwrap();
    for verb in [Verb::Get, Verb::Head, Verb::List, Verb::ListChildren] {
        faults.script(When::next(verb), Fault::Forget);
    }
    assert_eq!(store.get(&key("a/b")).unwrap(), None);
    assert_eq!(store.head(&key("a/b")).unwrap(), None);
    assert_eq!(store.list(None).unwrap(), []);
    assert_eq!(store.list_children(None).unwrap(), Default::default());
    assert!(store.get(&key("a/b")).unwrap().is_some());
}

#[test]
fn one_seed_gives_one_history() {
    let history = |seed| {
        let faults = FaultStore::in_memory();
        let store = store(&faults);
        faults.seeded(seed, 300, &[Fault::Before(io::ErrorKind::TimedOut), Fault::After(io::ErrorKind::TimedOut)]);
        (0..200).map(|n| store.create(&key(&n.to_string()), vec![]).is_ok()).collect::<Vec<_>>()
    };
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
    let failures = history(3).into_iter().filter(|ok| !ok).count();
    assert!((30..90).contains(&failures), "{failures} of 200 failed at 300 per mille");
}

#[test]
fn an_overwriting_store_overwrites() {
    let store = store(&FaultStore::in_memory().overwriting());
    store.create(&key("a"), body("one")).unwrap();
    assert_eq!(store.create(&key("a"), body("two")).unwrap(), Created::New);
    assert_eq!(store.get(&key("a")).unwrap().unwrap(), "two");
}
