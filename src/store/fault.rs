//! A store that fails on demand, for tests of everything above it.
//!
//! [`FaultStore`] stands between a [`Store`](super::Store) and a real backend. It numbers every operation from 1, notes
//! it, and lets it fail as scripted: so a test can run a journey once to count its operations, and then once for each
//! of them with that one lost, delayed, damaged, or followed by the death of the process.
//!
//! Operations are what reaches the backend: a verb that is tried twice is two operations. Multipart uploads and copies
//! are not offered, because [`Store`](super::Store) makes none.

use std::fmt;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::Verb;
use super::retry::mix;

/// What goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error of the operating system and was not carried out.
    Before(io::ErrorKind),
    /// It is carried out and its reply is lost: the caller sees this error.
    After(io::ErrorKind),
    /// It is not carried out and no answer ever comes.
    Hang,
    /// It is carried out and no answer ever comes.
    HangAfter,
    /// It is carried out after a while.
    Delay(Duration),
    /// The body, of a read as received or of a create as stored, keeps only its first bytes; the reply says nothing.
    Truncate {
        /// Bytes kept.
        to: u64,
    },
    /// One bit of the body, of a read as received or of a create as stored, is turned; the reply says nothing.
    FlipBit {
        /// The bit, counted from the lowest of the first byte, modulo the body's length.
        bit: u64,
    },
    /// A read or lookup answers that there is no such object, a listing that there is nothing, although there is.
    Forget,
    /// It is not carried out, and neither is anything after it: the process died.
    Die,
    /// It is carried out, and nothing after it is, nor does its reply arrive: the process died.
    DieAfter,
}

/// Returns the faults to try at an operation: `all` of them in the long run (`make soak`), in turn a third in the short one.
#[cfg(test)]
pub(crate) fn in_turn(faults: &[Fault], operation: u64, all: bool) -> Vec<Fault> {
    let chosen = |place: &usize| all || (operation as usize + place).is_multiple_of(3);
    (0..faults.len()).filter(chosen).map(|place| faults[place]).collect()
}

/// Which operations a fault is meant for.
#[derive(Clone, Debug, Default)]
pub struct When {
    /// Only this verb; `None` means any.
    pub verb: Option<Verb>,
    /// Only keys that contain this text; listings are asked of their folder.
    pub key: String,
    /// How many fitting operations go well first.
    pub skip: u64,
    /// How many fail then; `None` means all.
    pub times: Option<u64>,
}

impl When {
    /// Returns the next operation with this verb.
    pub fn next(verb: Verb) -> Self {
        Self { verb: Some(verb), times: Some(1), ..Self::default() }
    }

    /// Returns every operation with this verb.
    pub fn every(verb: Verb) -> Self {
        Self { verb: Some(verb), ..Self::default() }
    }

    /// Returns the `number`-th operation from now on, from 1, whatever it is.
    pub fn nth(number: u64) -> Self {
        Self { skip: number.saturating_sub(1), times: Some(1), ..Self::default() }
    }

    /// Narrows it to keys that contain `text`.
    pub fn on(self, text: &str) -> Self {
        Self { key: text.to_owned(), ..self }
    }

    /// Narrows it to `times` operations.
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Takes note of an operation; returns whether it is one of those meant.
    fn meets(&mut self, verb: Verb, key: &str) -> bool {
        if self.verb.is_some_and(|only| only != verb) || !key.contains(&self.key) || self.times == Some(0) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times = self.times.map(|times| times - 1);
        true
    }
}

/// One operation that reached the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number, from 1.
    pub number: u64,
    /// What was asked.
    pub verb: Verb,
    /// Of which object or folder; empty for the root.
    pub key: String,
    /// What went wrong with it.
    pub fault: Option<Fault>,
}

/// A backend that carries out what a real one does, except where a test says otherwise.
///
/// A clone is the same store with the same script.
#[derive(Clone)]
pub struct FaultStore {
    backend: Arc<dyn ObjectStore>,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    rules: Vec<(When, Fault)>,
    chance: Option<Chance>,
    overwrites: bool,
    dead: bool,
    seen: Vec<Seen>,
}

struct Chance {
    seed: u64,
    per_mille: u64,
    faults: Vec<Fault>,
}

impl FaultStore {
    /// Wraps a backend; without a script it changes nothing.
    pub fn new(backend: Arc<dyn ObjectStore>) -> Self {
        Self { backend, script: Arc::default() }
    }

    /// Wraps an empty store in memory.
    pub fn in_memory() -> Self {
        Self::new(Arc::new(object_store::memory::InMemory::new()))
    }

    /// Adds a fault. Of several rules that fit an operation the one added first is taken.
    pub fn script(&self, when: When, fault: Fault) {
        self.lock().rules.push((when, fault));
    }

    /// Lets `per_mille` of a thousand operations that no rule fits fail, each with one of `faults`.
    ///
    /// Which ones depends on the seed and the operation's number alone.
    pub fn seeded(&self, seed: u64, per_mille: u64, faults: &[Fault]) {
        self.lock().chance = Some(Chance { seed, per_mille, faults: faults.to_vec() });
    }

    /// Makes it ignore the condition of a create, as some stores do that claim to be like S3: creates overwrite.
    pub fn overwriting(self) -> Self {
        self.lock().overwrites = true;
        self
    }

    /// Removes every fault, and death with them; the numbers go on.
    pub fn heal(&self) {
        let mut script = self.lock();
        script.rules.clear();
        script.chance = None;
        script.dead = false;
    }

    /// Returns the operations that reached the store, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// Returns how many operations reached the store: the number of the last.
    pub fn operations(&self) -> u64 {
        self.lock().seen.len() as u64
    }

    /// Returns whether [`Fault::Die`] or [`Fault::DieAfter`] has struck.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an operation and lets happen what the script wants before it is carried out.
    ///
    /// Returns the fault its body is subject to, and [`after`] it.
    async fn before(&self, verb: Verb, key: &str) -> Result<Option<Fault>> {
        let fault = self.lock().meet(verb, key);
        match fault {
            Some(Fault::Before(kind)) => return Err(os(kind)),
            Some(Fault::Hang) => return pending().await,
            Some(Fault::Die) => return Err(died()),
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        Ok(fault)
    }
}

/// Lets happen what the script wants after an operation was carried out.
async fn after<T>(fault: Option<Fault>, answer: Result<T>) -> Result<T> {
    match fault {
        Some(Fault::After(kind)) => Err(os(kind)),
        Some(Fault::HangAfter) => pending().await,
        Some(Fault::DieAfter) => Err(died()),
        _ => answer,
    }
}

impl Script {
    fn meet(&mut self, verb: Verb, key: &str) -> Option<Fault> {
        let number = self.seen.len() as u64 + 1;
        let fault = if self.dead { Some(Fault::Die) } else { self.ruled(verb, key).or_else(|| self.chanced(number)) };
        self.dead |= matches!(fault, Some(Fault::Die | Fault::DieAfter));
        self.seen.push(Seen { number, verb, key: key.to_owned(), fault });
        fault
    }

    /// Every rule takes note of the operation, so that several can count the same ones.
    fn ruled(&mut self, verb: Verb, key: &str) -> Option<Fault> {
        let fitting = self.rules.iter_mut().filter_map(|(when, fault)| when.meets(verb, key).then_some(*fault));
        fitting.fold(None, |first, fault| first.or(Some(fault)))
    }

    fn chanced(&self, number: u64) -> Option<Fault> {
        let chance = self.chance.as_ref()?;
        let drawn = mix(chance.seed.wrapping_mul(0x1_0000_0001).wrapping_add(number));
        let strikes = drawn % 1000 < chance.per_mille && !chance.faults.is_empty();
        strikes.then(|| chance.faults[(drawn >> 32) as usize % chance.faults.len()])
    }
}

fn os(kind: io::ErrorKind) -> Error {
    Error::Generic { store: "fault", source: io::Error::from(kind).into() }
}

/// Of a kind that is not tried again: a dead process does nothing more.
fn died() -> Error {
    Error::Generic {
        store: "fault",
        source: io::Error::new(io::ErrorKind::PermissionDenied, "the process died").into(),
    }
}

fn absent(location: &Location) -> Error {
    let source = io::Error::from(io::ErrorKind::NotFound).into();
    Error::NotFound { path: location.to_string(), source }
}

fn not_offered(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "fault".to_owned() }
}

fn damage(body: Bytes, fault: Option<Fault>) -> Bytes {
    match fault {
        Some(Fault::Truncate { to }) => body.slice(..body.len().min(usize::try_from(to).unwrap_or(usize::MAX))),
        Some(Fault::FlipBit { bit }) if !body.is_empty() => {
            let mut changed = BytesMut::from(body.as_ref());
            let bit = bit % (changed.len() as u64 * 8);
            changed[(bit / 8) as usize] ^= 1 << (bit % 8);
            changed.freeze()
        }
        _ => body,
    }
}

fn damage_payload(payload: PutPayload, fault: Option<Fault>) -> PutPayload {
    match fault {
        Some(Fault::Truncate { .. } | Fault::FlipBit { .. }) => {
            let whole: BytesMut = payload.into_iter().flatten().collect();
            damage(whole.freeze(), fault).into()
        }
        _ => payload,
    }
}

async fn damage_reply(reply: Result<GetResult>, fault: Option<Fault>) -> Result<GetResult> {
    let reply = reply?;
    if !matches!(fault, Some(Fault::Truncate { .. } | Fault::FlipBit { .. })) {
        return Ok(reply);
    }
    let (meta, range, attributes) = (reply.meta.clone(), reply.range.clone(), reply.attributes.clone());
    let body = damage(reply.bytes().await?, fault);
    let payload = GetResultPayload::Stream(stream::once(async { Ok(body) }).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions: Default::default() })
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faults over {}", self.backend)
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({:?})", self.backend)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Location, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        if self.lock().overwrites {
            options.mode = PutMode::Overwrite;
        }
        let fault = self.before(Verb::Create, location.as_ref()).await?;
        after(fault, self.backend.put_opts(location, damage_payload(payload, fault), options).await).await
    }

    async fn put_multipart_opts(&self, _: &Location, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_offered("multipart upload"))
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        let verb = match &options {
            GetOptions { head: true, .. } => Verb::Head,
            GetOptions { range: Some(_), .. } => Verb::GetRange,
            _ => Verb::Get,
        };
        match self.before(verb, location.as_ref()).await? {
            Some(Fault::Forget) => Err(absent(location)),
            fault => after(fault, damage_reply(self.backend.get_opts(location, options).await, fault).await).await,
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        let store = self.clone();
        let delete = move |location: Location| {
            let store = store.clone();
            async move {
                let fault = store.before(Verb::Delete, location.as_ref()).await?;
                let one = stream::iter([Ok(location.clone())]).boxed();
                after(fault, store.backend.delete_stream(one).try_collect::<Vec<_>>().await).await?;
                Ok(location)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            let folder = prefix.as_ref().map_or("", Location::as_ref).to_owned();
            let objects: Vec<_> = match store.before(Verb::List, &folder).await? {
                Some(Fault::Forget) => vec![],
                fault => after(fault, store.backend.list(prefix.as_ref()).try_collect().await).await?,
            };
            Ok::<_, Error>(stream::iter(objects).map(Ok))
        };
        listing.into_stream().try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        match self.before(Verb::ListChildren, prefix.map_or("", Location::as_ref)).await? {
            Some(Fault::Forget) => {
                Ok(ListResult { common_prefixes: vec![], objects: vec![], extensions: Default::default() })
            }
            fault => after(fault, self.backend.list_with_delimiter(prefix).await).await,
        }
    }

    async fn copy_opts(&self, _: &Location, _: &Location, _: CopyOptions) -> Result<()> {
        Err(not_offered("copying"))
    }
}

#[cfg(test)]
mod tests;
