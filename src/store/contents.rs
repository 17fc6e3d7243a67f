//! A store that ignores conditions, used so that nothing is overwritten all the same.
//!
//! An object `K` lies at `K@/<digest>-<random>`: SHA-256 of what it holds, and sixteen digits that no other create has.
//! So no two creates ever write one name. A create looks first, stores, and looks again:
//!
//! - If only its own digest is there, the object is stored: every later create will see it.
//! - If there is another digest too, two writers met, and both see it, because each looked after it had stored. The one
//!   whose name sorts last takes its own object back; the first waits for that, and takes its own back if nothing moves,
//!   since the other may have been acknowledged before.
//!
//! What makes this safe: success is said only of an object of one's own that a look after storing found alone with its
//! digest, only that create can take it back, and it no longer does. So at most one digest is ever acknowledged. It needs
//! a store whose listings show what was stored before, as S3's have to.
//!
//! A reader that finds two digests looks again for a while, since one may be taken back, and then reports a conflict.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

/// Looks at two digests before they are called a conflict, and the pause before the second; the others are longer.
const LOOKS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Most places that are remembered.
const REMEMBERED: usize = 4096;
/// Ends the name of a folder that holds an object.
const MARK: char = '@';

/// SHA-256 of what an object holds, where that is something else than its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents(pub [u8; 32]);

/// Two writers met under one name.
#[derive(Clone, Debug, thiserror::Error)]
#[error("two writers stored different contents under this name: {}; keep one and delete the other", .names.join(" and "))]
pub(super) struct TwoContents {
    names: Vec<String>,
}

/// A store in which the last writer of a name wins, used without ever writing a name twice.
#[derive(Debug)]
pub(super) struct ByContents {
    objects: Arc<dyn ObjectStore>,
    /// Where objects were found: they never move.
    places: Mutex<HashMap<Location, Location>>,
}

impl ByContents {
    pub(super) fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, places: Mutex::default() }
    }

    /// Returns what is stored under a name, sorted.
    async fn stored(&self, location: &Location) -> Result<Vec<ObjectMeta>> {
        let folder = folder_of(location);
        let mut found: Vec<ObjectMeta> = self.objects.list(Some(&folder)).try_collect().await?;
        found.retain(|meta| digest_of(&meta.location).is_some());
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Returns the object of that name, if there is one.
    async fn find(&self, location: &Location) -> Result<Option<ObjectMeta>> {
        let mut pauses = pauses();
        loop {
            let mut found = self.stored(location).await?;
            let one = found.windows(2).all(|two| digest_of(&two[0].location) == digest_of(&two[1].location));
            match (one, pauses.next()) {
                (true, _) => return Ok((!found.is_empty()).then(|| found.swap_remove(0))),
                (false, Some(pause)) => sleep(pause).await,
                (false, None) => {
                    let names = found.iter().map(|meta| meta.location.to_string()).collect();
                    return Err(Error::Generic { store: "bucket", source: TwoContents { names }.into() });
                }
            }
        }
    }

    async fn take_back(&self, own: Location) -> Result<()> {
        match self.objects.delete_stream(stream::iter([Ok(own)]).boxed()).try_collect::<Vec<_>>().await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<Location, Location>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn place(&self, location: &Location) -> Result<Option<Location>> {
        if let Some(place) = self.places().get(location) {
            return Ok(Some(place.clone()));
        }
        let Some(found) = self.find(location).await? else { return Ok(None) };
        let mut places = self.places();
        if places.len() >= REMEMBERED {
            places.clear();
        }
        places.insert(location.clone(), found.location.clone());
        Ok(Some(found.location))
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    (0..LOOKS).map(|n| FIRST_PAUSE * (1 << n))
}

/// How long a writer that others met waits for them: from the beginning each time that one of them took its own back.
struct Patience {
    looks: u32,
    others: usize,
}

impl Patience {
    fn new() -> Self {
        Self { looks: 0, others: usize::MAX }
    }

    /// Returns the pause before the next look, after one that found so many others; `None` if nothing has moved in all.
    fn next(&mut self, others: usize) -> Option<Duration> {
        if others < std::mem::replace(&mut self.others, others) {
            self.looks = 0;
        }
        self.looks += 1;
        pauses().nth(self.looks as usize - 1)
    }
}

fn folder_of(location: &Location) -> Location {
    Location::from(format!("{location}{MARK}"))
}

/// Returns the digest in the name of a stored object.
fn digest_of(place: &Location) -> Option<String> {
    let (digest, random) = place.filename()?.split_once('-')?;
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex(digest, 64) && hex(random, 16)).then(|| digest.to_owned())
}

/// Returns the name of the object that is stored at `place`.
fn name_at(place: &Location) -> Option<Location> {
    digest_of(place)?;
    let (folder, _) = place.as_ref().rsplit_once('/')?;
    Some(Location::from(folder.strip_suffix(MARK)?))
}

fn absent(location: &Location) -> Error {
    Error::NotFound { path: location.to_string(), source: "its folder is empty".into() }
}

fn exists(location: &Location) -> Error {
    Error::AlreadyExists { path: location.to_string(), source: "its folder holds one".into() }
}

fn unsure(text: &str) -> Error {
    Error::Generic { store: "bucket", source: text.to_owned().into() }
}

fn not_offered(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "bucket".to_owned() }
}

impl fmt::Display for ByContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by contents", self.objects)
    }
}

#[async_trait]
impl ObjectStore for ByContents {
    async fn put_opts(&self, location: &Location, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !matches!(options.mode, PutMode::Create) {
            return Err(not_offered("overwriting"));
        }
        let digest = match options.extensions.get::<Contents>() {
            Some(Contents(digest)) => hex::encode(digest),
            None => {
                let mut hash = Sha256::new();
                payload.iter().for_each(|bytes| hash.update(bytes));
                hex::encode(hash.finalize())
            }
        };
        let other = |meta: &ObjectMeta| digest_of(&meta.location).as_ref() != Some(&digest);
        let before = self.stored(location).await?;
        if before.iter().any(other) {
            return Err(exists(location));
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| unsure(&error.to_string()))?;
        let own = Location::from(format!("{}/{digest}-{}", folder_of(location), hex::encode(random)));
        // The same contents may be there; whoever stored them may still take them back.
        let result = self.objects.put_opts(&own, payload, PutOptions { mode: PutMode::Overwrite, ..options }).await?;
        let mut patience = Patience::new();
        loop {
            let found = self.stored(location).await?;
            if !found.iter().any(|meta| meta.location == own) {
                return Err(unsure("the store's listing does not show what was just stored"));
            }
            if !found.iter().any(other) {
                return if before.is_empty() { Ok(result) } else { Err(exists(location)) };
            }
            let first = found.iter().filter(|meta| other(meta)).all(|meta| own < meta.location);
            let others = found.iter().filter(|meta| other(meta)).count();
            match patience.next(others).filter(|_| first) {
                Some(pause) => sleep(pause).await,
                None => {
                    self.take_back(own).await?;
                    return Err(exists(location));
                }
            }
        }
    }

    async fn put_multipart_opts(&self, _: &Location, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_offered("multipart upload"))
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        let Some(place) = self.place(location).await? else { return Err(absent(location)) };
        match self.objects.get_opts(&place, options).await {
            // Taken back since it was listed, or another's: the next attempt looks again.
            Err(Error::NotFound { .. }) => {
                self.places().remove(location);
                Err(unsure("it was listed and is gone"))
            }
            Err(error) => Err(error),
            Ok(mut reply) => {
                reply.meta.location = location.clone();
                Ok(reply)
            }
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        let store = Self::new(Arc::clone(&self.objects));
        self.places().clear();
        let store = Arc::new(store);
        locations
            .then(move |location| {
                let store = Arc::clone(&store);
                async move {
                    let location = location?;
                    let found = store.stored(&location).await?;
                    if found.is_empty() {
                        return Err(absent(&location));
                    }
                    for meta in found {
                        store.take_back(meta.location).await?;
                    }
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        once_each(self.objects.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Location>, offset: &Location) -> BoxStream<'static, Result<ObjectMeta>> {
        // What is stored under a name comes behind the name itself: of that one it begins anew.
        once_each(self.objects.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        let found = self.objects.list_with_delimiter(prefix).await?;
        let object = |folder: &Location| folder.as_ref().strip_suffix(MARK).map(Location::from);
        let (holding, common_prefixes): (Vec<_>, Vec<_>) =
            found.common_prefixes.into_iter().partition(|folder| object(folder).is_some());
        let mut objects = Vec::new();
        for location in holding.iter().filter_map(object) {
            let stored = self.stored(&location).await?.into_iter().next();
            objects.extend(stored.map(|meta| ObjectMeta { location, ..meta }));
        }
        Ok(ListResult { common_prefixes, objects, extensions: found.extensions })
    }

    async fn copy_opts(&self, _: &Location, _: &Location, _: CopyOptions) -> Result<()> {
        Err(not_offered("copying"))
    }
}

/// Gives each name of a listing once, with the first of what is stored under it.
fn once_each(listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
    let named = |(last, meta): (Option<Location>, ObjectMeta)| {
        let name = name_at(&meta.location)?;
        if last.as_ref() == Some(&name) { None } else { Some(ObjectMeta { location: name, ..meta }) }
    };
    let mut last = None;
    listed
        .try_filter_map(move |meta| {
            let before = std::mem::replace(&mut last, name_at(&meta.location));
            async move { Ok(named((before, meta))) }
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;

    use crate::error::ErrorKind;
    use crate::store::fault::{Fault, FaultStore, When};
    use crate::store::{Created, Key, RetryPolicy, Store, Verb, conformance};
    use std::sync::Arc;

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    /// The same objects as two programs see them, and below.
    fn weak() -> (FaultStore, Store, Store) {
        let faults = FaultStore::in_memory().overwriting();
        let plain = Store::over(Arc::new(faults.clone()), "weak", RetryPolicy::brisk(3)).unwrap();
        let other = Store::over(Arc::new(faults.clone()), "weak", RetryPolicy::brisk(3)).unwrap();
        (faults, plain.by_contents(), other.by_contents())
    }

    #[test]
    fn a_store_that_ignores_conditions_keeps_every_rule() {
        let (_, store, _) = weak();
        if let Err(violation) = conformance::check(&store, &key("suite")) {
            panic!("{}", crate::error::chain(&violation));
        }
    }

    #[test]
    fn of_many_writers_one_wins_and_what_the_others_stored_is_taken_back() {
        let (faults, store, _) = weak();
        // So that they do meet: in memory one create would end before the next begins.
        faults.script(When::every(Verb::List), Fault::Delay(std::time::Duration::from_millis(5)));
        for name in 0..8 {
            conformance::one_of_many_creators_wins(&store, &key(&format!("race/{name}")), 32).unwrap();
        }
        let plain = Store::over(Arc::new(faults), "weak", RetryPolicy::brisk(1)).unwrap();
        assert_eq!(plain.list(None).unwrap().len(), 8);
    }

    #[test]
    fn the_first_of_many_waits_as_long_as_one_of_the_others_moves() {
        let mut patience = super::Patience::new();
        let mut pauses = |others| patience.next(others).map(|pause| pause.as_millis());
        let all = [10, 20, 40, 80, 160, 320, 640, 1280].map(Some);
        assert_eq!(all.map(|_| pauses(3)), all);
        assert_eq!(pauses(2), Some(10), "one has gone");
        assert_eq!(pauses(2), Some(20));
        assert_eq!(pauses(1), Some(10));
        for _ in 1..8 {
            // More of them are no progress.
            assert!(pauses(2).is_some());
        }
        assert_eq!(pauses(2), None);
    }

    #[test]
    fn a_writer_that_comes_too_late_is_told_so_and_takes_its_own_back() {
        for (first, second) in [("one", "two"), ("two", "one")] {
            let (faults, store, late) = weak();
            assert_eq!(store.create(&key("a"), vec![Bytes::from(first)]).unwrap(), Created::New);
            // It looked before the other had stored, and stores after the other was told.
            faults.script(When::next(Verb::List), Fault::Forget);
            assert_eq!(late.create(&key("a"), vec![Bytes::from(second)]).unwrap(), Created::Existing);
            assert_eq!(late.get(&key("a")).unwrap().unwrap(), first);
        }
    }

    #[test]
    fn two_contents_under_one_name_are_a_conflict_and_never_one_of_them() {
        let (faults, store, _) = weak();
        assert_eq!(store.create(&key("a"), vec![Bytes::from("one")]).unwrap(), Created::New);
        // As a writer leaves it that died between storing and looking again.
        let plain = Store::over(Arc::new(faults), "weak", RetryPolicy::brisk(1)).unwrap();
        let ghost = key(&format!("a@/{}-{}", "ab".repeat(32), "0".repeat(16)));
        plain.create(&ghost, vec![Bytes::from("two")]).unwrap();
        let reader = plain.by_contents();
        let error = reader.get(&key("a")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
        assert!(crate::error::chain(&error).to_string().contains(ghost.as_str()));
        assert_eq!(reader.create(&key("a"), vec![Bytes::from("one")]).unwrap(), Created::Existing);
        plain.delete(&ghost).unwrap();
        assert_eq!(reader.get(&key("a")).unwrap().unwrap(), "one");
    }

    #[test]
    fn the_same_contents_stored_twice_are_no_conflict() {
        let (faults, store, other) = weak();
        // Neither sees the other's before it stores its own.
        faults.script(When::every(Verb::List).times(1), Fault::Forget);
        assert_eq!(store.create(&key("a"), vec![Bytes::from("one")]).unwrap(), Created::New);
        faults.script(When::every(Verb::List).times(1), Fault::Forget);
        assert_eq!(other.create(&key("a"), vec![Bytes::from("one")]).unwrap(), Created::New);
        assert_eq!(other.get(&key("a")).unwrap().unwrap(), "one");
        assert_eq!(other.list(None).unwrap().len(), 1);
    }

    #[test]
    fn a_listing_that_hides_what_was_stored_is_no_success() {
        let (faults, store, _) = weak();
        faults.script(When::every(Verb::List), Fault::Forget);
        assert!(store.create(&key("a"), vec![Bytes::from("one")]).is_err());
    }
}
