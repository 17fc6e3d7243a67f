//! Pins: backups that an operator keeps, whatever the policy says; by numbered records of which the last one counts.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::RepoError;
use super::lane::Lane;
use crate::format::document;
use crate::store::Created;

/// Version of a pin's document. Readers know every version, writers write the last.
/// - 1: first release.
pub const PIN_VERSION: u32 = 1;

/// That a backup is kept, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// [`PIN_VERSION`].
    pub version: u32,
    /// Whether it is kept.
    pub pinned: bool,
    /// Why, in the operator's words.
    #[serde(default)]
    pub reason: Option<String>,
    /// Until when, by the store's clock; for ever if it is not said.
    #[serde(default)]
    pub until: Option<DateTime<Utc>>,
    /// Where it was decided, for people.
    pub host: String,
    /// When, by that host's clock.
    pub decided_at: DateTime<Utc>,
}

/// The last record of a backup's pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPin {
    /// Its number, from 1.
    pub number: u32,
    /// What it says; `None` if it is damaged, or of a newer walvault: then the backup is kept.
    pub pin: Option<Pin>,
}

impl StoredPin {
    /// Returns whether the backup is kept at `now`.
    pub fn holds(&self, now: DateTime<Utc>) -> bool {
        self.pin.as_ref().is_none_or(|pin| pin.pinned && pin.until.is_none_or(|until| now <= until))
    }

    /// Returns what it says in words: why, and until when.
    pub fn words(&self) -> String {
        let Some(pin) = &self.pin else { return "pinned; the pin cannot be read".to_owned() };
        let reason = pin.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let until =
            pin.until.map_or_else(String::new, |until| format!(" until {}", until.format("%Y-%m-%d %H:%M:%SZ")));
        format!("pinned{until}{reason}")
    }
}

impl Lane {
    /// Returns the last record of every backup that was ever pinned.
    pub fn pins(&self) -> Result<BTreeMap<String, StoredPin>, RepoError> {
        let store = &self.repository.store;
        let mut last: BTreeMap<String, (u32, crate::store::Key)> = BTreeMap::new();
        for meta in store.list(Some(&self.repository.layout.pins(self.id())?))? {
            let Some(backup) = meta.key.parent().map(|folder| folder.name().to_owned()) else { continue };
            let Ok(number) = meta.key.name().parse::<u32>() else { continue };
            if last.get(&backup).is_none_or(|(known, _)| *known < number) {
                last.insert(backup, (number, meta.key));
            }
        }
        let mut pins = BTreeMap::new();
        for (backup, (number, key)) in last {
            let stored = store.get(&key)?;
            let pin = stored.and_then(|stored| document::decode::<Pin>(&stored, "pin").ok());
            let pin = pin.filter(|pin| pin.version <= PIN_VERSION);
            pins.insert(backup, StoredPin { number, pin });
        }
        Ok(pins)
    }

    /// Writes record `number` of a backup's pins; [`Created::Existing`] if another one came first, which stands.
    pub fn record_pin(&self, backup: &str, number: u32, pin: &Pin) -> Result<Created, RepoError> {
        let key = self.repository.layout.pin(self.id(), backup, number)?;
        Ok(self.repository.store.create(&key, vec![Bytes::from(document::encode(pin))])?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::repo::lane_fixture::lane_without;

    #[test]
    fn the_last_record_counts_and_what_cannot_be_read_keeps() {
        let lane = lane_without(&[]);
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let pin = |pinned, until| Pin {
            version: PIN_VERSION,
            pinned,
            reason: None,
            until,
            host: "db1".to_owned(),
            decided_at: now,
        };
        let holds = || lane.pins().unwrap().get("b").is_some_and(|pin| pin.holds(now));
        assert!(!holds());
        assert_eq!(lane.record_pin("b", 9, &pin(true, None)).unwrap(), Created::New);
        assert!(holds());
        assert_eq!(lane.record_pin("b", 10, &pin(false, None)).unwrap(), Created::New);
        assert!(!holds());
        assert_eq!(lane.record_pin("b", 10, &pin(true, None)).unwrap(), Created::Existing);
        lane.record_pin("b", 11, &pin(true, Some(now - chrono::Duration::seconds(1)))).unwrap();
        assert!(!holds());
        lane.record_pin("b", 12, &pin(true, Some(now))).unwrap();
        assert!(holds());
        let key = lane.repository.layout.pin(lane.id(), "b", 13).unwrap();
        lane.repository.store.create(&key, vec![Bytes::from_static(b"{}")]).unwrap();
        assert!(holds());
    }
}
