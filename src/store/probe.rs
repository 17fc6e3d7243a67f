//! Whether a store keeps its word: create-only, tried with creates that race.

use std::sync::Barrier;
use std::thread;

use bytes::Bytes;

use super::{Created, Key, Obstacle, Store, StoreError};

/// How objects are created once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// The store refuses a name that is taken.
    Conditional,
    /// The store does not; each create has a name of its own. See `docs/format.md`, section 2.1.
    ContentAddressed,
}

impl CreateMode {
    /// Returns the word for it in `repository.json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conditional => "conditional",
            Self::ContentAddressed => "content-addressed",
        }
    }

    /// Returns the mode of a word in `repository.json`.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Conditional, Self::ContentAddressed].into_iter().find(|mode| mode.as_str() == word)
    }
}

const NAMES: usize = 4;
const WRITERS: usize = 8;

/// Tries a store out in `folder`, which must be empty and is left so.
///
/// # Errors
/// [`StoreError`] if the store could not be tried; what was stored may be left then.
pub(super) fn create_mode(store: &Store, folder: &Key) -> Result<CreateMode, StoreError> {
    let keys: Vec<Key> = (0..NAMES).filter_map(|name| folder.join(&name.to_string()).ok()).collect();
    let start = Barrier::new(NAMES * WRITERS);
    let text = |writer: usize| Bytes::from(format!("writer {writer}"));
    let race = |key: &Key, writer: usize| {
        start.wait();
        store.create(key, vec![text(writer)])
    };
    let (race, keys_ref) = (&race, &keys);
    let outcomes: Vec<(usize, usize, Result<Created, StoreError>)> = thread::scope(|scope| {
        let racers = (0..NAMES).flat_map(|name| (0..WRITERS).map(move |writer| (name, writer)));
        let racers: Vec<_> =
            racers.map(|(name, writer)| scope.spawn(move || (name, writer, race(&keys_ref[name], writer)))).collect();
        racers.into_iter().map(|racer| racer.join().expect("a create does not panic")).collect()
    });
    let mut winners = vec![Vec::new(); NAMES];
    let not_offered = |error: &StoreError| error.obstacle() == Some(Obstacle::NotOffered);
    if outcomes.iter().any(|(.., outcome)| outcome.as_ref().is_err_and(not_offered)) {
        // It says itself that it knows no conditions, and so has stored nothing.
        return Ok(CreateMode::ContentAddressed);
    }
    for (name, writer, outcome) in outcomes {
        if outcome? == Created::New {
            winners[name].push(writer);
        }
    }
    let mut keeps = true;
    for (key, winners) in keys.iter().zip(&winners) {
        // None is no breach: its reply may have been lost.
        keeps &= winners.len() <= 1 && store.create(key, vec![text(WRITERS)])? == Created::Existing;
        let stored = store.get(key)?;
        keeps &= winners.first().is_none_or(|winner| stored == Some(text(*winner)));
    }
    for key in &keys {
        store.delete(key)?;
    }
    Ok(if keeps { CreateMode::Conditional } else { CreateMode::ContentAddressed })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::RetryPolicy;
    use crate::store::Verb;
    use crate::store::fault::{Fault, FaultStore, When};
    use std::sync::Arc;

    fn tried(faults: FaultStore) -> CreateMode {
        // More attempts than faults: all of these may befall one writer.
        let store = Store::over(Arc::new(faults), "m", RetryPolicy::brisk(9)).unwrap();
        let mode = create_mode(&store, &"probe".parse().unwrap()).unwrap();
        assert_eq!(store.list(None).unwrap(), []);
        mode
    }

    #[test]
    fn a_store_is_believed_when_it_keeps_its_word_even_if_a_reply_is_lost() {
        assert_eq!(tried(FaultStore::in_memory()), CreateMode::Conditional);
        let faults = FaultStore::in_memory();
        faults.script(When::every(Verb::Create).times(8), Fault::After(std::io::ErrorKind::ConnectionReset));
        assert_eq!(tried(faults), CreateMode::Conditional);
        assert_eq!(tried(FaultStore::in_memory().overwriting()), CreateMode::ContentAddressed);
    }
}
