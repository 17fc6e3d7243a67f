//! What every backend must do, as one suite that any backend can be put through.
//!
//! Each rule is a function that uses a [`Store`] as the rest of the program does and returns the first thing that was
//! not so. A store that breaks one of them loses or changes data sooner or later.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Barrier;
use std::thread;

use bytes::Bytes;

use super::{Created, Deleted, Key, KeyError, Store, StoreError};
use crate::error::ErrorKind;

/// A rule that a store does not keep.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// The store answered, and wrongly.
    #[error("{rule}: expected {expected}, found {found}")]
    Broken {
        /// The rule.
        rule: &'static str,
        /// What follows from it.
        expected: String,
        /// What was there instead.
        found: String,
    },
    /// The store failed.
    #[error("{rule}")]
    Failed {
        /// The rule that was being tried.
        rule: &'static str,
        /// How it failed.
        source: StoreError,
    },
    /// The folder's name is too long to work in.
    #[error("no folder to work in")]
    Folder(#[from] KeyError),
}

/// Puts a store through the whole suite, in `folder`, which must be empty and is left with objects in it.
///
/// # Errors
/// The first [`Violation`].
pub fn check(store: &Store, folder: &Key) -> Result<(), Violation> {
    absence_is_a_value(store, &folder.join("absent")?)?;
    a_create_never_overwrites(store, &folder.join("create-only")?)?;
    one_of_many_creators_wins(store, &folder.join("race")?, 32)?;
    parts_are_exact(store, &folder.join("parts")?)?;
    every_name_is_its_own(store, &folder.join("names")?)?;
    listings_are_sorted_and_complete(store, &folder.join("listing")?, 300)?;
    deletes_can_be_repeated(store, &folder.join("delete")?)?;
    large_bodies_are_whole(store, &folder.join("large")?, 40)
}

/// What is not there is `None`, and an empty folder an empty list.
pub fn absence_is_a_value(store: &Store, key: &Key) -> Result<(), Violation> {
    let rule = Rule("what is absent is a value");
    rule.is(None, rule.of(store.get(key))?)?;
    rule.is(None, rule.of(store.get_range(key, 0..1))?)?;
    rule.is(None, rule.of(store.get_range(key, 0..0))?)?;
    rule.is(None, rule.of(store.head(key))?)?;
    rule.is(0, rule.of(store.list(Some(key)))?.len())?;
    rule.is(Default::default(), rule.of(store.list_children(Some(key)))?)
}

/// A second create changes nothing and says so, with the same bytes or others, fewer or more.
pub fn a_create_never_overwrites(store: &Store, key: &Key) -> Result<(), Violation> {
    let rule = Rule("a create never overwrites");
    rule.is(Created::New, rule.of(store.create(key, chunks(&["first"])))?)?;
    for other in [&["first"][..], &["other"], &[], &["a longer one"]] {
        rule.is(Created::Existing, rule.of(store.create(key, chunks(other)))?)?;
        rule.is(Some(Bytes::from("first")), rule.of(store.get(key))?)?;
    }
    Ok(())
}

/// Of `writers` threads that create one object at once exactly one is told that it is new, and the object is its own.
pub fn one_of_many_creators_wins(store: &Store, key: &Key, writers: usize) -> Result<(), Violation> {
    let rule = Rule("one of many creators wins");
    let start = Barrier::new(writers);
    let create = |writer: usize| {
        start.wait();
        store.create(key, chunks(&["writer ", &writer.to_string()]))
    };
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|writer| scope.spawn(move || create(writer))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a create does not panic")).collect()
    });
    let mut winners = Vec::new();
    for (writer, outcome) in outcomes.into_iter().enumerate() {
        if rule.of(outcome)? == Created::New {
            winners.push(writer);
        }
    }
    rule.is(1, winners.len())?;
    let expected = winners.first().map(|writer| Bytes::from(format!("writer {writer}")));
    rule.is(expected, rule.of(store.get(key))?)
}

/// A range gives exactly its bytes or fails; a lookup gives the size; an empty object is an object.
pub fn parts_are_exact(store: &Store, folder: &Key) -> Result<(), Violation> {
    let rule = Rule("parts are exact");
    let (digits, empty) = (folder.join("digits")?, folder.join("empty")?);
    rule.is(Created::New, rule.of(store.create(&digits, chunks(&["01", "", "234567", "89"])))?)?;
    rule.is(Created::New, rule.of(store.create(&empty, vec![]))?)?;
    let (whole, none) = (Bytes::from("0123456789"), Bytes::new());
    for range in [0..10, 0..1, 9..10, 3..7, 0..0, 10..10] {
        let expected = whole.slice(range.start as usize..range.end as usize);
        rule.is(Some(expected), rule.of(store.get_range(&digits, range))?)?;
    }
    for range in [0..11, 5..11, 10..11, 11..12, 0..u64::MAX, u64::MAX - 1..u64::MAX, 11..11] {
        let refused = store.get_range(&digits, range).map_err(|error| error.kind());
        rule.is(Err(ErrorKind::Corrupt), refused)?;
    }
    rule.is(Some(none.clone()), rule.of(store.get(&empty))?)?;
    rule.is(Some(none), rule.of(store.get_range(&empty, 0..0))?)?;
    rule.is(Err(ErrorKind::Corrupt), store.get_range(&empty, 0..1).map_err(|error| error.kind()))?;
    rule.is(Some(10), rule.of(store.head(&digits))?.map(|meta| meta.size))?;
    rule.is(Some(0), rule.of(store.head(&empty))?.map(|meta| meta.size))?;
    rule.is(Err(ErrorKind::Corrupt), store.get_up_to(&digits, 9).map_err(|error| error.kind()))?;
    rule.is(Some(whole), rule.of(store.get_up_to(&digits, 10))?)
}

/// Names that differ at all are different objects, and each comes back from a listing as it was written.
pub fn every_name_is_its_own(store: &Store, folder: &Key) -> Result<(), Violation> {
    let rule = Rule("every name is its own");
    let longest = "x".repeat(Key::MAX_PART_BYTES);
    let names = ["a", "A", "a.b", "a-b", "a_b", "a+b", "a=b", "a@b", "a.", "-a", "@", "0", "00", "con", "2b", &longest];
    for name in names {
        rule.is(Created::New, rule.of(store.create(&folder.join(name)?, chunks(&[name])))?)?;
    }
    for name in names {
        rule.is(Some(Bytes::from(name.to_owned())), rule.of(store.get(&folder.join(name)?))?)?;
    }
    let listed = rule.of(store.list(Some(folder)))?;
    let listed: BTreeSet<_> = listed.iter().filter_map(|meta| meta.key.below(folder)).collect();
    rule.is(BTreeSet::from(names), listed)
}

/// A listing names every object below its folder once, in order, with its size, and nothing of a namesake's.
pub fn listings_are_sorted_and_complete(store: &Store, folder: &Key, objects: usize) -> Result<(), Violation> {
    let rule = Rule("listings are sorted and complete");
    let wanted = folder.join("wanted")?;
    let mut keys = BTreeSet::new();
    for n in 0..objects {
        let depth = ["", "one/", "two/deep/"][n % 3];
        // Out of order, so that the order listed is not the order created; 7919 is prime.
        let key = wanted.join(&format!("{depth}{:05}", n * 7919 % objects))?;
        rule.is(Created::New, rule.of(store.create(&key, vec![Bytes::from(vec![b'x'; n % 5])]))?)?;
        keys.insert((key, (n % 5) as u64));
    }
    for namesake in ["wanted-not/a", "wanted.b", "unwanted"] {
        rule.of(store.create(&folder.join(namesake)?, vec![]))?;
    }
    let listed: Vec<_> = rule.of(store.list(Some(&wanted)))?.into_iter().map(|meta| (meta.key, meta.size)).collect();
    rule.is(keys.iter().cloned().collect(), listed)?;

    let children = rule.of(store.list_children(Some(&wanted)))?;
    rule.is(vec![wanted.join("one")?, wanted.join("two")?], children.folders)?;
    let direct = keys.iter().map(|(key, _)| key.clone()).filter(|key| key.parent().as_ref() == Some(&wanted));
    rule.is(direct.collect(), children.objects.into_iter().map(|meta| meta.key).collect::<Vec<_>>())?;

    let everything = rule.of(store.list(None))?;
    rule.is(true, everything.is_sorted_by(|a, b| a.key < b.key))?;
    rule.is(keys.len() + 3, everything.iter().filter(|meta| meta.key.below(folder).is_some()).count())
}

/// Deleting removes one object, and can be done again.
pub fn deletes_can_be_repeated(store: &Store, folder: &Key) -> Result<(), Violation> {
    let rule = Rule("deletes can be repeated");
    let (gone, kept) = (folder.join("gone")?, folder.join("gone-not")?);
    for key in [&gone, &kept] {
        rule.is(Created::New, rule.of(store.create(key, chunks(&["once"])))?)?;
    }
    rule.is(Deleted::Gone, rule.of(store.delete(&gone))?)?;
    rule.is(None, rule.of(store.get(&gone))?)?;
    // Which of the two it answers now is the backend's choice.
    rule.of(store.delete(&gone))?;
    rule.of(store.delete(&folder.join("never/was")?))?;
    rule.is(vec![kept.clone()], rule.of(store.list(Some(folder)))?.into_iter().map(|meta| meta.key).collect())?;
    rule.is(Created::New, rule.of(store.create(&gone, chunks(&["again"])))?)?;
    rule.is(Some(Bytes::from("again")), rule.of(store.get(&gone))?)?;

    let many = (0..25).map(|n| folder.join(&format!("many/{n}"))).collect::<Result<Vec<_>, _>>()?;
    for key in many.iter().skip(1) {
        rule.is(Created::New, rule.of(store.create(key, chunks(&["once"])))?)?;
    }
    rule.of(store.delete_all(&many))?;
    rule.of(store.delete_all(&many))?;
    rule.of(store.delete_all(&[]))?;
    let left = rule.of(store.list(Some(folder)))?.into_iter().map(|meta| meta.key).collect::<Vec<_>>();
    rule.is(vec![gone, kept], left)
}

/// A body of many chunks, `mib` MiB in all, comes back whole and in parts.
pub fn large_bodies_are_whole(store: &Store, key: &Key, mib: u64) -> Result<(), Violation> {
    let rule = Rule("large bodies are whole");
    let block = |n: u64| Bytes::from(n.to_le_bytes().repeat((1 << 20) / 8));
    rule.is(Created::New, rule.of(store.create(key, (0..mib).map(block).collect()))?)?;
    let whole = rule.of(store.get_up_to(key, mib << 20))?.unwrap_or_default();
    rule.is((mib << 20) as usize, whole.len())?;
    for n in 0..mib {
        let place = n << 20..(n + 1) << 20;
        let part = rule.of(store.get_range(key, place.clone()))?;
        let same = part.as_ref() == Some(&block(n)) && whole[place.start as usize..place.end as usize] == block(n);
        rule.is((n, true), (n, same))?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Rule(&'static str);

impl Rule {
    fn of<T>(self, answer: Result<T, StoreError>) -> Result<T, Violation> {
        answer.map_err(|source| Violation::Failed { rule: self.0, source })
    }

    fn is<T: PartialEq + Debug>(self, expected: T, found: T) -> Result<(), Violation> {
        if expected == found {
            return Ok(());
        }
        Err(Violation::Broken { rule: self.0, expected: format!("{expected:?}"), found: format!("{found:?}") })
    }
}

fn chunks(texts: &[&str]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::from((*text).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::chain;
    use crate::store::fault::{Fault, FaultStore, When};
    use crate::store::tests::Scratch;
    use crate::store::{RetryPolicy, Verb};
    use std::sync::Arc;

    fn passes(store: &Store) {
        if let Err(violation) = check(store, &"suite".parse().unwrap()) {
            panic!("{}", chain(&violation));
        }
    }

    fn rule_broken(faults: FaultStore) -> &'static str {
        let store = Store::over(Arc::new(faults), "faulty", RetryPolicy::brisk(3)).unwrap();
        match check(&store, &"suite".parse().unwrap()) {
            Err(Violation::Broken { rule, .. }) => rule,
            other => panic!("expected a broken rule, got {other:?}"),
        }
    }

    #[test]
    fn a_volume_keeps_every_rule() {
        let scratch = Scratch::new();
        passes(&scratch.store(RetryPolicy::default()));
        let unfinished = scratch.files().into_iter().filter(|name| name.contains('#')).collect::<Vec<_>>();
        assert_eq!(unfinished, Vec::<String>::new());
    }

    #[test]
    fn a_store_in_memory_keeps_every_rule() {
        passes(&Store::over(Arc::new(FaultStore::in_memory()), "memory", RetryPolicy::brisk(1)).unwrap());
    }

    #[test]
    fn a_store_that_overwrites_is_found_out() {
        assert_eq!(rule_broken(FaultStore::in_memory().overwriting()), "a create never overwrites");
    }

    #[test]
    fn a_store_that_overwrites_only_in_a_race_is_found_out() {
        let store = Store::over(Arc::new(FaultStore::in_memory().overwriting()), "m", RetryPolicy::brisk(1)).unwrap();
        let outcome = one_of_many_creators_wins(&store, &"race".parse().unwrap(), 8);
        assert!(matches!(outcome, Err(Violation::Broken { .. })), "{outcome:?}");
    }

    #[test]
    fn a_store_that_forgets_or_damages_is_found_out() {
        let table = [
            (Verb::List, Fault::Forget, "every name is its own"),
            (Verb::ListChildren, Fault::Forget, "listings are sorted and complete"),
            (Verb::Get, Fault::Forget, "a create never overwrites"),
            (Verb::Head, Fault::Forget, "parts are exact"),
            (Verb::GetRange, Fault::FlipBit { bit: 3 }, "parts are exact"),
            (Verb::Create, Fault::Truncate { to: 1000 }, "large bodies are whole"),
        ];
        for (verb, fault, rule) in table {
            let faults = FaultStore::in_memory();
            faults.script(When::every(verb), fault);
            assert_eq!(rule_broken(faults), rule, "{verb} {fault:?}");
        }
    }
}
