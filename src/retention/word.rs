//! An operator's word about one backup: kept whatever the policy says, no longer kept so, or to be gone.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::RetentionError;
use super::holdings::survey;
use super::perform::{LaneOutcome, Request, perform};
use super::policy::Policy;
use crate::clock;
use crate::format::tables::PackSource;
use crate::repo::{Lane, PIN_VERSION, Pin, Purpose};
use crate::store::Created;

/// Records that a backup is kept, or no longer.
///
/// # Errors
/// [`RetentionError::NoSuchBackup`] if it is not, or no longer, there; [`RetentionError::AtWork`] if it is being removed
/// right now.
pub fn pin(
    lane: &Lane,
    backup: &str,
    pinned: bool,
    reason: Option<String>,
    until: Option<DateTime<Utc>>,
    host: &str,
) -> Result<Pin, RetentionError> {
    expect_there(lane, backup)?;
    let pin = Pin { version: PIN_VERSION, pinned, reason, until, host: host.to_owned(), decided_at: clock::now() };
    loop {
        let number = lane.pins()?.get(backup).map_or(1, |last| last.number.saturating_add(1));
        if lane.record_pin(backup, number, &pin)? == Created::New {
            break;
        }
    }
    // Whoever condemned it reads the pins once more before anything is removed, unless that is over.
    let condemned = lane.tombstones()?.iter().any(|stone| stone.tombstone.condemns(backup));
    if pinned && condemned && lane.live_lease(Purpose::Expire)?.is_some() {
        return Err(RetentionError::AtWork { backup: backup.to_owned() });
    }
    expect_there(lane, backup)?;
    Ok(pin)
}

fn expect_there(lane: &Lane, backup: &str) -> Result<(), RetentionError> {
    match lane.backups()?.iter().any(|one| one.id == backup) {
        true => Ok(()),
        false => Err(RetentionError::NoSuchBackup { backup: backup.to_owned() }),
    }
}

/// Condemns one backup, whatever the policy says, or removes it if that was done long enough ago.
///
/// # Errors
/// [`RetentionError::Pinned`]; [`RetentionError::LastOne`] unless `force`; else as [`perform`].
pub fn forget(
    lane: &Lane,
    backup: &str,
    force: bool,
    grace: std::time::Duration,
    host: &str,
) -> Result<LaneOutcome, RetentionError> {
    let (holdings, now) = survey(std::slice::from_ref(lane))?;
    let holdings = &holdings[0];
    let there = holdings.backups.iter().any(|one| one.id == backup) || holdings.unreadable.contains_key(backup);
    let was_there =
        holdings.tombstones.last().is_some_and(|last| last.tombstone.kept.iter().any(|kept| kept == backup));
    if !there && !was_there {
        return Err(RetentionError::NoSuchBackup { backup: backup.to_owned() });
    }
    if let Some(pin) = holdings.pins.get(backup).filter(|pin| pin.holds(now)) {
        return Err(RetentionError::Pinned { backup: backup.to_owned(), words: pin.words() });
    }
    let restorable = holdings.restorable();
    let last = restorable.iter().any(|one| one.id == backup) && restorable.len() == 1;
    if last && !force {
        return Err(RetentionError::LastOne { backup: backup.to_owned() });
    }
    let request = Request {
        policy: Policy { grace, ..Policy::default() },
        forget: Some((lane.id(), backup.to_owned())),
        host: host.to_owned(),
    };
    let mut outcomes = perform(std::slice::from_ref(lane), &request)?;
    Ok(outcomes.remove(0))
}

/// What backups share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Packs of other backups that one needs, by their backups.
    pub needs: BTreeMap<String, u64>,
    /// Packs of its own that others need, by these.
    pub needed_by: BTreeMap<String, u64>,
}

/// Returns what a backup shares with others of its lane, as far as these can be read.
///
/// # Errors
/// [`RetentionError::Repository`] if a listing fails.
pub fn shares(lane: &Lane, backup: &str) -> Result<Shares, RetentionError> {
    let mut shares = Shares::default();
    for stored in lane.backups()? {
        let Ok((_, tables)) = lane.manifest_whole(&stored) else { continue };
        for pack in tables.packs.iter() {
            let PackSource::Lane { backup: owner, .. } = &pack.source;
            match (stored.id == backup, **owner == *backup) {
                (true, false) => *shares.needs.entry(owner.to_string()).or_default() += 1,
                (false, true) => *shares.needed_by.entry(stored.id.clone()).or_default() += 1,
                _ => {}
            }
        }
    }
    Ok(shares)
}
