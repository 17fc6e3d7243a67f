//! How retention of a lane stands, in a few numbers: for a check, and for whoever watches expiry.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::RetentionError;
use super::decide::{Blocked, LanePlan, decide};
use super::holdings::LaneHoldings;
use super::perform::{Request, condemned, plan_at};
use super::policy::{Policy, words_of};
use crate::repo::{Lane, Purpose};

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// How large, together.
    pub bytes: u64,
}

/// A backup that an operator keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedBackup {
    /// The backup.
    pub backup: String,
    /// The pin, in words.
    pub words: String,
    /// When it was pinned; `None` if the pin cannot be read.
    pub since: Option<DateTime<Utc>>,
    /// Whether nothing but an operator ends it.
    pub endless: bool,
}

/// How an expiry went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastExpiry {
    /// Its last sign, by the store's clock.
    pub at: DateTime<Utc>,
    /// Where.
    pub host: String,
    /// Whether it neither came to an end nor is at work.
    pub broke_off: bool,
}

/// How retention of one lane stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Whether anything goes by a policy.
    pub policy: bool,
    /// Backups that can be read.
    pub backups: usize,
    /// Those of them that are kept and can be restored.
    pub kept: usize,
    /// Those of them that can be restored.
    pub restorable: usize,
    /// The end of the oldest backup that is kept and can be restored.
    pub oldest: Option<DateTime<Utc>>,
    /// The end of the newest one.
    pub newest: Option<DateTime<Utc>>,
    /// Why nothing can be judged, if so.
    pub blocked: Option<String>,
    /// What is to go, condemned or not.
    pub going: Amount,
    /// What of it is condemned.
    pub condemned: Amount,
    /// What would go too, were it not for pins.
    pub pinned: Amount,
    /// Pins that hold.
    pub pins: Vec<PinnedBackup>,
    /// Who reads.
    pub readers: Vec<String>,
    /// The last run.
    pub last: Option<LastExpiry>,
}

impl Overview {
    /// Looks at a lane, and writes nothing: the store's clock is not asked. A lane without a backup has nothing that could
    /// go.
    ///
    /// # Errors
    /// [`RetentionError`] if what the lane holds cannot be found out, or cannot be believed.
    pub fn look(lane: &Lane, policy: &Policy, now: DateTime<Utc>) -> Result<Self, RetentionError> {
        let last = lane.last_lease(Purpose::Expire)?;
        let request = Request { policy: *policy, ..Request::default() };
        let mut overview = match plan_at(lane, &request, now) {
            Ok(Some((held, plan))) => Self::of(&held, &plan, policy, now),
            Ok(None) | Err(RetentionError::NoBackup) => Self { policy: policy.is_set(), ..Self::default() },
            Err(error) => return Err(error),
        };
        overview.last = last.map(|last| LastExpiry {
            at: last.stored_at,
            broke_off: !last.record.as_ref().is_some_and(|record| record.released) && !last.is_live(now),
            host: last.record.map_or_else(|| "an unknown host".to_owned(), |record| record.host),
        });
        Ok(overview)
    }

    /// Counts what was decided.
    pub fn of(held: &LaneHoldings, plan: &LanePlan, policy: &Policy, now: DateTime<Utc>) -> Self {
        let restorable = || held.backups.iter().filter(|backup| plan.backups[&backup.id].restorable);
        let kept = || restorable().filter(|backup| plan.backups[&backup.id].is_kept());
        let stone = condemned(held);
        let going = || held.objects.iter().zip(&plan.verdicts).filter(|(_, verdict)| verdict.goes());
        let amount = |objects: &mut dyn Iterator<Item = u64>| {
            objects.fold(Amount::default(), |sum, bytes| Amount { objects: sum.objects + 1, bytes: sum.bytes + bytes })
        };
        let pins: Vec<PinnedBackup> = held
            .pins
            .iter()
            .filter(|(id, pin)| pin.holds(now) && held.backups.iter().any(|backup| backup.id == **id))
            .map(|(id, pin)| PinnedBackup {
                backup: id.clone(),
                words: pin.words(),
                since: pin.pin.as_ref().map(|pin| pin.decided_at),
                endless: pin.pin.as_ref().is_none_or(|pin| pin.until.is_none()),
            })
            .collect();
        Self {
            policy: policy.is_set(),
            backups: held.backups.len(),
            kept: kept().count(),
            restorable: restorable().count(),
            oldest: kept().map(|backup| backup.stopped_at).min(),
            newest: kept().map(|backup| backup.stopped_at).max(),
            blocked: plan.blocked.as_ref().map(|blocked| match blocked {
                Blocked::NoBackup => "no backup is listed".to_owned(),
                Blocked::Unreadable { backup, problem } => format!("backup {backup} cannot be read: {problem}"),
            }),
            going: amount(&mut going().map(|(object, _)| object.bytes)),
            condemned: amount(&mut going().filter(|(object, _)| stone(object)).map(|(object, _)| object.bytes)),
            pinned: if pins.is_empty() { Amount::default() } else { without_pins(held, plan, policy, now) },
            pins,
            readers: held.readings.iter().map(words_of).collect(),
            last: None,
        }
    }
}

/// What would go too, were nothing pinned.
fn without_pins(held: &LaneHoldings, plan: &LanePlan, policy: &Policy, now: DateTime<Utc>) -> Amount {
    let bare = LaneHoldings { pins: Default::default(), ..held.clone() };
    let forgotten: BTreeSet<String> =
        held.tombstones.iter().flat_map(|stone| stone.tombstone.forgotten.iter().cloned()).collect();
    let other = decide(std::slice::from_ref(&bare), policy, &forgotten, now);
    let verdicts = other.iter().flat_map(|other| &other.verdicts).zip(&plan.verdicts).zip(&held.objects);
    let by_pins = verdicts.filter(|((without, with), _)| without.goes() && !with.goes());
    by_pins.fold(Amount::default(), |sum, (_, object)| Amount {
        objects: sum.objects + 1,
        bytes: sum.bytes + object.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::model::{Backup, World, moment};

    /// A backup in a segment of its own, each with a pack.
    fn three() -> World {
        let mut world = World::new(7, moment(0));
        for day in 0..3_i64 {
            let (now, number) = (moment(day * 24), day.unsigned_abs() * 2 + 1);
            for number in [number, number + 1] {
                world.timelines[0].segments.insert(number, now);
            }
            let (id, start) = (format!("b{day}"), number * (16 << 20) + 40);
            let packs = BTreeSet::from([(id.clone(), 1)]);
            world.packs.insert((id.clone(), 1), now);
            world.backups.push(Backup { id, timeline: 0, start, stop: start + 100, stopped_at: now, packs });
        }
        world.timelines[0].end = 7 * (16 << 20);
        world
    }

    fn look(world: &World, policy: &Policy) -> Overview {
        let held = world.holdings();
        let plans = decide(std::slice::from_ref(&held), policy, &BTreeSet::new(), moment(100));
        Overview::of(&held, &plans[0], policy, moment(100))
    }

    #[test]
    fn what_goes_what_stays_and_what_only_a_pin_keeps_are_told_apart() {
        let mut world = three();
        let policy = Policy { backups: 1, ..Policy::default() };
        let bare = look(&world, &policy);
        assert_eq!((bare.backups, bare.restorable, bare.kept), (3, 3, 1));
        assert_eq!((bare.oldest, bare.newest), (Some(moment(48)), Some(moment(48))));
        // Two manifests, two packs, four segments.
        assert_eq!((bare.going, bare.pinned), (Amount { objects: 8, bytes: 80 }, Amount::default()));
        world.pins.insert("b0".to_owned());
        let pinned = look(&world, &policy);
        // Its manifest, its pack, and the segment that it lies in.
        assert_eq!((pinned.going.objects, pinned.pinned), (5, Amount { objects: 3, bytes: 30 }));
        assert_eq!((pinned.kept, pinned.pins.len(), pinned.pins[0].endless), (2, 1, true));
        assert_eq!(pinned.oldest, Some(moment(0)));
        let none = look(&world, &Policy::default());
        assert_eq!((none.policy, none.going, none.kept), (false, Amount::default(), 3));
    }
}
