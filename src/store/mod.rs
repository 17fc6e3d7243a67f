//! Bytes by key, in a place that survives this host.
//!
//! [`Store`] is the whole interface: five verbs that create, read, look up, list and delete objects. An object is created
//! once, durably, and never changed; there is no verb that overwrites. This layer knows keys and bytes; what a key means
//! and whether bytes are the right ones is known above it.
//!
//! The rest of the program is synchronous, so these verbs block; this is the one bridge to the asynchronous backends.
//! Every verb ends in time: an attempt that hangs is abandoned, what may pass is tried again, and both have a limit in
//! [`RetryPolicy`]. What comes back is an outcome (new, existing, absent) or a [`StoreError`], and "absent" is never
//! made of an error.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::path::Path as Location;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload};
use tokio::time::timeout;

mod access;
mod bridge;
mod bucket;
pub mod conformance;
mod contents;
mod error;
pub mod fault;
mod gcs;
mod http;
mod key;
pub mod mount;
mod opening;
mod probe;
mod profile;
mod reading;
mod refusal;
mod retry;
mod s3;
mod tree;
mod url;
mod verb;
mod volume;
mod wide;

pub use access::Access;
pub use bucket::Place;
pub use error::{BackendError, Failure, StoreError};
pub use gcs::GcsAccess;
pub use http::{Network, Roots, Traffic};
pub use key::{Key, KeyError};
pub use probe::CreateMode;
pub use reading::Reading;
pub use refusal::Obstacle;
pub use retry::RetryPolicy;
pub use s3::{Addressing, S3Access};
pub use url::{StoreUrl, UrlError};
pub use verb::{Children, Created, Deleted, Meta, RequestCounts, Verb};

use crate::error::ErrorKind;
use bridge::Bridge;
use http::Meter;
use retry::Effort;

/// A place that holds objects.
///
/// A clone is the same store. Every verb blocks the calling thread, and several threads may call at once; none may be
/// called from an asynchronous task. Dropping the last clone does not wait for a request that hangs.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn ObjectStore>,
    bridge: Arc<Bridge>,
    name: Arc<str>,
    policy: RetryPolicy,
    meter: Arc<Meter>,
    /// What every URL of the bucket begins with; `None` for a volume.
    address: Option<Arc<str>>,
}

impl Store {
    /// Most bytes [`Store::get`] takes for a whole object: 64 MiB.
    pub const WHOLE_OBJECT: u64 = 64 << 20;

    /// Returns the same store, with another limit to the time of one verb.
    pub fn with_budget(&self, budget: Duration) -> Self {
        Self { policy: RetryPolicy { budget, ..self.policy.clone() }, ..self.clone() }
    }

    /// Returns the same store, with no more time for one verb than this.
    pub fn within(&self, limit: Duration) -> Self {
        self.with_budget(limit.min(self.policy.budget))
    }

    /// Returns the same store, in a way that needs no condition of it: [`CreateMode::ContentAddressed`].
    pub fn by_contents(&self) -> Self {
        let backend = Arc::new(contents::ByContents::new(Arc::clone(&self.backend)));
        Self { backend, ..self.clone() }
    }

    /// Finds out how objects can be created once, by creates that race in `folder`, which must be empty and is left so.
    /// A volume is not tried: its kernel keeps the word.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not be tried.
    pub fn create_mode(&self, folder: &Key) -> Result<CreateMode, StoreError> {
        if self.address.is_some() { self.race(folder) } else { Ok(CreateMode::Conditional) }
    }

    /// As [`Store::create_mode`], with a volume tried as well: what is mounted there may not keep the kernel's word.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not be tried.
    pub fn race(&self, folder: &Key) -> Result<CreateMode, StoreError> {
        probe::create_mode(self, folder)
    }

    /// Returns the store's name, as messages say it: its URL.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what every URL of the bucket begins with, so where it is asked; `None` for a volume.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Returns the attempts made since the store was opened, through any of its clones.
    pub fn requests(&self) -> RequestCounts {
        self.bridge.requests()
    }

    /// Returns what went over the network since the store was opened, through any of its clones; nothing for a volume.
    pub fn traffic(&self) -> Traffic {
        self.meter.read()
    }

    /// Returns how many of these attempts were made because an earlier one had failed.
    pub fn retries(&self) -> u64 {
        self.bridge.retries()
    }

    /// Creates an object of these chunks, one after the other; durable when it returns, whichever way it ended.
    ///
    /// Chunks are not copied, and every attempt sends all of them.
    ///
    /// # Errors
    /// After [`ErrorKind::Unavailable`] the object may exist, or come to exist later; it is whole if it does.
    pub fn create(&self, key: &Key, body: Vec<Bytes>) -> Result<Created, StoreError> {
        self.create_holding(key, None, body)
    }

    /// Creates an object like [`Store::create`]; `contents` is the SHA-256 of what it holds. Two objects that hold the
    /// same under one name are the same object to a store by contents, however differently they are compressed.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_of(&self, key: &Key, contents: [u8; 32], body: Vec<Bytes>) -> Result<Created, StoreError> {
        self.create_holding(key, Some(contents::Contents(contents)), body)
    }

    /// Stores bytes that whoever else stores them stores alike, in a store that knows no conditions. The only write that
    /// could overwrite anything, and there is one such object: the repository's document.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn put_alike(&self, key: &Key, body: Bytes) -> Result<Created, StoreError> {
        if self.get(key)?.is_some() {
            return Ok(Created::Existing);
        }
        self.run(Verb::Create, Some(key), Effort::body(body.len() as u64), || async {
            let options = PutOptions { mode: PutMode::Overwrite, ..Default::default() };
            self.backend.put_opts(&location(key), body.clone().into(), options).await?;
            Ok(Created::New)
        })
    }

    fn create_holding(
        &self,
        key: &Key,
        contents: Option<contents::Contents>,
        body: Vec<Bytes>,
    ) -> Result<Created, StoreError> {
        let payload: PutPayload = body.into_iter().collect();
        let effort = Effort::body(payload.content_length() as u64);
        self.run(Verb::Create, Some(key), effort, || async {
            let mut options = PutOptions { mode: PutMode::Create, ..Default::default() };
            contents.map(|contents| options.extensions.insert(contents));
            match self.backend.put_opts(&location(key), payload.clone(), options).await {
                Ok(_) => Ok(Created::New),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::Existing),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Returns a whole object of at most [`Store::WHOLE_OBJECT`] bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is larger.
    pub fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        self.get_up_to(key, Self::WHOLE_OBJECT)
    }

    /// Returns a whole object of at most `limit` bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is larger.
    pub fn get_up_to(&self, key: &Key, limit: u64) -> Result<Option<Bytes>, StoreError> {
        self.run(Verb::Get, Some(key), Effort::up_to(limit), || async {
            let Some(reply) = present(self.ask(key, GetOptions::default()).await?)? else { return Ok(None) };
            let size = reply.meta.size;
            if size > limit {
                return Err(Failure::TooLarge { size, limit });
            }
            Ok(Some(body(reply, 0..size).await?))
        })
    }

    /// Returns the bytes of an object from `range.start` up to `range.end`, all of them; `None` if there is no object.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the object ends before `range.end`: whoever knows the range knew more bytes.
    pub fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        if range.is_empty() {
            return self.get_nothing(key, range);
        }
        self.run(Verb::GetRange, Some(key), Effort::up_to(range.end - range.start), || async {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..Default::default() };
            match self.ask(key, options).await? {
                Ok(reply) if reply.meta.size < range.end => Err(past_end(&range, reply.meta.size)),
                Ok(reply) => Ok(Some(body(reply, range.clone()).await?)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(self.range_refused(key, &range, error).await),
            }
        })
    }

    /// Backends disagree on how to refuse a range that begins past the end, so the size decides.
    async fn range_refused(&self, key: &Key, range: &Range<u64>, error: object_store::Error) -> Failure {
        match self.meta(key).await {
            Ok(Some(meta)) if meta.size < range.end => past_end(range, meta.size),
            _ => error.into(),
        }
    }

    /// Answers an empty range like any other: it must lie within an object.
    fn get_nothing(&self, key: &Key, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.run(Verb::GetRange, Some(key), Effort::SMALL, || async {
            match self.meta(key).await? {
                None => Ok(None),
                Some(meta) if range.start > range.end || range.end > meta.size => Err(past_end(&range, meta.size)),
                Some(_) => Ok(Some(Bytes::new())),
            }
        })
    }

    /// Returns what is known of an object without reading it; `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not tell.
    pub fn head(&self, key: &Key) -> Result<Option<Meta>, StoreError> {
        self.run(Verb::Head, Some(key), Effort::SMALL, || async {
            let found = self.meta(key).await?;
            Ok(found.map(|meta| Meta { key: key.clone(), size: meta.size, last_modified: meta.last_modified }))
        })
    }

    /// Returns every object below `folder` (in the whole store, if `None`), sorted by key. A folder nobody made is
    /// empty. Things whose name is not a [`Key`] are not ours and left out.
    ///
    /// # Errors
    /// [`StoreError`] if the listing could not be completed; there is no partial answer.
    pub fn list(&self, folder: Option<&Key>) -> Result<Vec<Meta>, StoreError> {
        self.run(Verb::List, folder, Effort::PIECES, || async {
            let mut entries = self.backend.list(folder.map(location).as_ref());
            let mut objects = Vec::new();
            while let Some(entry) = self.in_time(entries.next()).await? {
                objects.extend(ours(entry?));
            }
            objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            objects.dedup_by(|a, b| a.key == b.key);
            Ok(objects)
        })
    }

    /// Returns what is directly in `folder` (in the root, if `None`). Otherwise like [`Store::list`].
    ///
    /// # Errors
    /// [`StoreError`] if the listing could not be completed; there is no partial answer.
    pub fn list_children(&self, folder: Option<&Key>) -> Result<Children, StoreError> {
        self.run(Verb::ListChildren, folder, Effort::SMALL, || async {
            let found = self.backend.list_with_delimiter(folder.map(location).as_ref()).await?;
            let mut folders: Vec<Key> = found.common_prefixes.iter().filter_map(|l| l.as_ref().parse().ok()).collect();
            let mut objects: Vec<Meta> = found.objects.into_iter().filter_map(ours).collect();
            folders.sort_unstable();
            objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            Ok(Children { folders, objects })
        })
    }

    /// Deletes an object, durably when it returns.
    ///
    /// # Errors
    /// After [`ErrorKind::Unavailable`] it may or may not be there.
    pub fn delete(&self, key: &Key) -> Result<Deleted, StoreError> {
        self.run(Verb::Delete, Some(key), Effort::SMALL, || async {
            let one = stream::iter([Ok(location(key))]).boxed();
            match self.backend.delete_stream(one).next().await {
                Some(Ok(_)) => Ok(Deleted::Gone),
                Some(Err(object_store::Error::NotFound { .. })) => Ok(Deleted::WasAbsent),
                Some(Err(error)) => Err(error.into()),
                None => {
                    Err(BackendError::new(ErrorKind::Unavailable, "the store did not say whether it deleted").into())
                }
            }
        })
    }

    /// Deletes objects, durably when it returns; those that are absent already are no failure. A bucket of S3 takes a
    /// thousand with one request.
    ///
    /// # Errors
    /// After any error some may be gone and others not; it can be repeated.
    pub fn delete_all(&self, keys: &[Key]) -> Result<(), StoreError> {
        self.run(Verb::Delete, None, Effort::PIECES, || async {
            let all: Vec<_> = keys.iter().map(|key| Ok(location(key))).collect();
            let mut answers = self.backend.delete_stream(stream::iter(all).boxed());
            while let Some(answer) = self.in_time(answers.next()).await? {
                match answer {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        })
    }

    async fn meta(&self, key: &Key) -> Result<Option<ObjectMeta>, Failure> {
        let options = GetOptions { head: true, ..Default::default() };
        Ok(present(self.ask(key, options).await?)?.map(|reply| reply.meta))
    }

    /// Waits for the beginning of a reply, which has to come in an attempt's time however long its body may be.
    async fn ask(&self, key: &Key, options: GetOptions) -> Result<object_store::Result<GetResult>, Failure> {
        let place = location(key);
        self.in_time(self.backend.get_opts(&place, options)).await
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.policy.attempt, answer).await.map_err(|_| Failure::TimedOut(self.policy.attempt))
    }

    /// Carries one verb out: with [`Reading`] the only place where a request is made, counted, timed and made again.
    fn run<T, A>(
        &self,
        verb: Verb,
        key: Option<&Key>,
        effort: Effort,
        mut attempt: impl FnMut() -> A,
    ) -> Result<T, StoreError>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        let bridge = &*self.bridge;
        bridge.begin();
        let counted = || {
            bridge.count(verb);
            attempt()
        };
        self.run_uncounted(verb, key, effort, counted)
    }

    /// Carries a part of a verb out; whoever makes its requests counts them.
    fn run_uncounted<T, A>(
        &self,
        verb: Verb,
        key: Option<&Key>,
        effort: Effort,
        attempt: impl FnMut() -> A,
    ) -> Result<T, StoreError>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        let run = retry::run(&self.policy, self.bridge.next_seed(), effort, attempt);
        self.bridge.block_on(run).map_err(|gave_up| StoreError {
            verb,
            key: key.cloned(),
            store: Arc::clone(&self.name),
            attempts: gave_up.attempts,
            failure: gave_up.failure,
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.name).finish()
    }
}

fn location(key: &Key) -> Location {
    Location::from(key.as_str())
}

fn ours(meta: ObjectMeta) -> Option<Meta> {
    let key = meta.location.as_ref().parse().ok()?;
    Some(Meta { key, size: meta.size, last_modified: meta.last_modified })
}

fn past_end(range: &Range<u64>, size: u64) -> Failure {
    Failure::PastEnd { start: range.start, end: range.end, size }
}

/// Makes a typed not-found, and nothing else, the value `None`.
fn present(answer: object_store::Result<GetResult>) -> Result<Option<GetResult>, Failure> {
    match answer {
        Ok(reply) => Ok(Some(reply)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads a reply's body, which has to be `range` to its last byte.
async fn body(reply: GetResult, range: Range<u64>) -> Result<Bytes, Failure> {
    let expected = range.end - range.start;
    if reply.range != range {
        return Err(Failure::CutOff { expected, got: reply.range.end.saturating_sub(reply.range.start) });
    }
    let bytes = reply.bytes().await?;
    match bytes.len() as u64 {
        got if got == expected => Ok(bytes),
        got => Err(Failure::CutOff { expected, got }),
    }
}

#[cfg(test)]
mod tests;
