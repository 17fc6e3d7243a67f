//! A long listing, several stretches at a time: a bucket gives a thousand names an answer, and the next thousand only after
//! it. Where a folder turns out to be long, the folders in it are asked for, and stretches of them side by side.
//!
//! No name is taken from anywhere but listings of the whole range. What a stretch leaves to the next one rests on the order
//! of the names, which S3 and its relatives promise; a store that breaks it is found out, and listed from end to end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;

use super::retry::Effort;
use super::{Key, Meta, Store, StoreError, Verb, location, ours};

/// Names after which a folder is a long one.
const LONG: usize = 4000;
/// Stretches that are listed at once.
const AT_ONCE: usize = 8;

/// A part of a listing.
struct Part {
    found: Vec<Meta>,
    /// Whether it was left because it is long.
    cut: bool,
    /// Whether the names came in their order.
    ordered: bool,
}

impl Store {
    /// As [`Store::list`] of a folder that may hold very many objects, in folders.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub fn list_wide(&self, folder: &Key) -> Result<Vec<Meta>, StoreError> {
        match self.address {
            Some(_) => self.list_in_stretches(folder, LONG),
            // A directory tree has no pages.
            None => self.list(Some(folder)),
        }
    }

    fn list_in_stretches(&self, folder: &Key, long: usize) -> Result<Vec<Meta>, StoreError> {
        let first = self.list_part(folder, None, None, long)?;
        let last = first.found.last().map(|meta| meta.key.clone());
        let (true, true, Some(last)) = (first.cut, first.ordered, last) else {
            return if first.cut { self.list(Some(folder)) } else { Ok(sorted(first.found)) };
        };
        let mut folders = self.list_children(Some(folder))?.folders;
        folders.retain(|one| one.as_str() > last.as_str());
        let step = folders.len().div_ceil(AT_ONCE).max(1);
        let bounds: Vec<Key> = folders.into_iter().step_by(step).collect();
        let after = std::iter::once(&last).chain(&bounds);
        let stretches: Vec<(&Key, Option<&Key>)> = after.zip(bounds.iter().map(Some).chain([None])).collect();
        let (next, parts) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || -> Result<(), StoreError> {
            while let Some((after, before)) = stretches.get(next.fetch_add(1, Ordering::Relaxed)) {
                let part = self.list_part(folder, Some(after), *before, usize::MAX)?;
                parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(part);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE.min(stretches.len())).map(|_| scope.spawn(work)).collect();
            let done = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            done.collect::<Result<(), StoreError>>()
        })?;
        let parts = parts.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !parts.iter().all(|part| part.ordered) {
            return self.list(Some(folder));
        }
        Ok(sorted(first.found.into_iter().chain(parts.into_iter().flat_map(|part| part.found)).collect()))
    }

    /// Lists what comes after a key and before the objects of a folder, until it is long.
    fn list_part(
        &self,
        folder: &Key,
        after: Option<&Key>,
        before: Option<&Key>,
        long: usize,
    ) -> Result<Part, StoreError> {
        self.run(Verb::List, Some(folder), Effort::PIECES, || async {
            let prefix = location(folder);
            let mut entries = match after {
                Some(after) => self.backend.list_with_offset(Some(&prefix), &location(after)),
                None => self.backend.list(Some(&prefix)),
            };
            let mut part = Part { found: Vec::new(), cut: false, ordered: true };
            let mut previous = String::new();
            while let Some(entry) = self.in_time(entries.next()).await? {
                let entry = entry?;
                let Some(group) = group(folder, entry.location.as_ref()) else { continue };
                part.ordered &= previous.as_str() <= group;
                group.clone_into(&mut previous);
                if before.is_some_and(|before| entry.location.as_ref() >= format!("{before}/").as_str()) {
                    break;
                }
                part.found.extend(ours(entry));
                if part.found.len() >= long {
                    part.cut = true;
                    break;
                }
            }
            Ok(part)
        })
    }
}

fn sorted(mut found: Vec<Meta>) -> Vec<Meta> {
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    found.dedup_by(|a, b| a.key == b.key);
    found
}

/// What of a key a listing in order never goes back on: the folder in which it lies, with its slash, or its name.
fn group<'a>(folder: &Key, key: &'a str) -> Option<&'a str> {
    let rest = key.strip_prefix(folder.as_str())?.strip_prefix('/')?;
    Some(rest.find('/').map_or(rest, |at| &rest[..=at]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use bytes::Bytes;
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::RetryPolicy;

    /// Folders of some objects each, and files beside them, in the folder `a/b`; and what is beside it.
    fn holding(folders: u32, each: u32) -> (Store, Key) {
        let store = Store::over(Arc::new(InMemory::new()), "memory", RetryPolicy::brisk(1)).unwrap();
        let put = |key: &str| {
            store.create(&key.parse().unwrap(), vec![Bytes::from_static(b"x")]).unwrap();
        };
        for folder in 0..folders {
            (0..each).for_each(|one| put(&format!("a/b/{folder:08X}/{one:04}.zst")));
            if folder % 5 == 0 {
                // It comes before the folder of that name, and behind the name.
                put(&format!("a/b/{folder:08X}.history.zst"));
            }
        }
        put("a/b.zst");
        put("a/c/1");
        (store, "a/b".parse().unwrap())
    }

    #[test]
    fn every_name_comes_once_however_the_listing_is_split() {
        for (folders, each) in [(1, 30), (2, 10), (7, 3), (23, 4), (40, 1)] {
            let (store, folder) = holding(folders, each);
            let whole = store.list(Some(&folder)).unwrap();
            for long in [1, 2, 3, 5, 7, 11, 29, 30, 31, 1000] {
                let split = store.list_in_stretches(&folder, long).unwrap();
                assert_eq!(split, whole, "{folders} folders of {each}, long from {long} on");
            }
        }
        let (store, _) = holding(3, 3);
        assert_eq!(store.list_in_stretches(&"a/d".parse().unwrap(), 2).unwrap(), []);
    }

    #[test]
    fn what_is_stored_meanwhile_is_in_it_or_not_and_nothing_else_is_missing() {
        let (store, folder) = holding(20, 4);
        let whole = store.list(Some(&folder)).unwrap();
        let part = store.list_part(&folder, None, None, 10).unwrap();
        assert!(part.cut && part.ordered && part.found.len() == 10);
        let last = part.found.last().unwrap().key.clone();
        let rest = store.list_part(&folder, Some(&last), None, usize::MAX).unwrap();
        let all: Vec<Meta> = part.found.into_iter().chain(rest.found).collect();
        assert_eq!(sorted(all), whole);
    }

    #[test]
    fn a_group_is_a_folder_with_its_slash_or_a_name() {
        let folder: Key = "a/b".parse().unwrap();
        assert_eq!(group(&folder, "a/b/00000002/x.zst"), Some("00000002/"));
        assert_eq!(group(&folder, "a/b/00000002.history.zst"), Some("00000002.history.zst"));
        assert!(group(&folder, "a/b/00000002.history.zst") < group(&folder, "a/b/00000002/x.zst"));
        assert_eq!(group(&folder, "a/bc"), None);
    }
}
