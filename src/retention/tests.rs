//! Policies, one by one, and all together against the [model](super::model).

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Duration, Utc};

use super::decide::{decide, folders_of};
use super::model::{Backup, Chance, World, moment};
use super::*;
use crate::pg::timeline::TimelineId;
use crate::repo::{Object, ObjectName};

const DAY: i64 = 24;

#[test]
fn an_index_is_of_its_folder_and_a_gathered_one_of_all_from_the_first_to_the_last() {
    let folder = |timeline: u32, middle: &str| (TimelineId::new(timeline).unwrap(), middle.to_owned());
    let alone = folders_of(TimelineId::FIRST, "00000003");
    assert!(alone.contains(&folder(1, "00000003")) && !alone.contains(&folder(1, "00000004")));
    let gathered = folders_of(TimelineId::FIRST, "00000040-0000007F");
    for (timeline, middle, of) in [
        (1, "00000040", true),
        (1, "0000005A", true),
        (1, "0000007F", true),
        (1, "00000080", false),
        (2, "00000050", false),
    ] {
        assert_eq!(gathered.contains(&folder(timeline, middle)), of, "{timeline} {middle}");
    }
}

/// A lane with a backup at noon of each of so many days, and log between them; the last day is `days - 1`.
fn daily(system: u64, from: i64, days: i64) -> World {
    let mut world = World::new(system, moment(from * DAY));
    for day in from..from + days {
        let now = moment(day * DAY + 12);
        let timeline = &mut world.timelines[0];
        let number = timeline.end / (16 << 20);
        let start = number * (16 << 20) + 40;
        for number in number..number + 3 {
            timeline.segments.insert(number, now + Duration::hours((number % 3) as i64));
        }
        timeline.end = (number + 3) * (16 << 20);
        let id = format!("day{day:03}");
        world.packs.insert((id.clone(), 1), now);
        world.backups.push(Backup {
            packs: BTreeSet::from([(id.clone(), 1)]),
            id,
            timeline: 0,
            start,
            stop: start + 1000,
            stopped_at: now,
        });
        world.last_sign = now + Duration::hours(2);
    }
    world
}

/// Removes what goes, and returns the backups that are left and the plan.
fn expire(worlds: &mut [&mut World], policy: &Policy, now: DateTime<Utc>) -> (Vec<Vec<String>>, Vec<LanePlan>) {
    let holdings: Vec<LaneHoldings> = worlds.iter().map(|world| world.holdings()).collect();
    let plans = decide(&holdings, policy, &BTreeSet::new(), now);
    for ((world, lane), plan) in worlds.iter_mut().zip(&holdings).zip(&plans) {
        assert_eq!(lane.objects.len(), plan.verdicts.len());
        for (object, verdict) in lane.objects.iter().zip(&plan.verdicts).filter(|(_, verdict)| verdict.goes()) {
            assert!(plan.blocked.is_none(), "{verdict:?}");
            world.remove(&object.name);
        }
    }
    let ids = |world: &&mut World| world.backups.iter().map(|backup| backup.id.clone()).collect();
    (worlds.iter().map(ids).collect(), plans)
}

fn days(of: impl IntoIterator<Item = i64>) -> Vec<String> {
    of.into_iter().map(|day| format!("day{day:03}")).collect()
}

#[test]
fn by_count_the_newest_stay_with_their_log_and_nothing_else() {
    let mut world = daily(7, 0, 10);
    let policy = Policy { backups: 3, ..Policy::default() };
    let (left, _) = expire(&mut [&mut world], &policy, moment(10 * DAY));
    assert_eq!(left[0], days(7..10));
    assert_eq!(world.packs.len(), 3);
    let first = world.timelines[0].segments.keys().next().unwrap();
    assert_eq!(*first, world.backups[0].start / (16 << 20));
    assert_eq!(world.timelines[0].segments.len(), 9);
}

#[test]
fn without_a_policy_nothing_goes() {
    let mut world = daily(7, 0, 10);
    let (left, plans) = expire(&mut [&mut world], &Policy { wal_days: 1, ..Policy::default() }, moment(1000 * DAY));
    assert_eq!(left[0], days(0..10));
    assert!(plans[0].verdicts.iter().all(|verdict| !verdict.goes()));
}

#[test]
fn a_window_keeps_the_backup_before_it() {
    let mut world = daily(7, 0, 10);
    let policy = Policy { days: 3, ..Policy::default() };
    // The window begins at noon of day 7, less an hour of slack.
    let (left, plans) = expire(&mut [&mut world], &policy, moment(10 * DAY + 12));
    assert_eq!(left[0], days(6..10));
    assert!(plans[0].backups["day006"].keeps.contains(&Keep::WindowStart));
}

#[test]
fn grandfathers_keep_one_of_each_part_of_the_calendar_and_their_own_log_only() {
    let mut world = daily(7, 0, 400);
    let policy = Policy { daily: 3, weekly: 2, monthly: 3, yearly: 5, ..Policy::default() };
    let (left, plans) = expire(&mut [&mut world], &policy, moment(400 * DAY));
    let of = |part| {
        let kept = plans[0].backups.iter().filter(|(_, one)| one.keeps.contains(&Keep::Calendar(part)));
        kept.map(|(id, _)| id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(of(Calendar::Day), days(397..400));
    let (weeks, months, years) = (of(Calendar::Week), of(Calendar::Month), of(Calendar::Year));
    assert_eq!((weeks.len(), months.len()), (2, 3));
    // The history spans two years, and one more.
    assert_eq!(years.len(), (moment(399 * DAY).year() - moment(0).year() + 1) as usize);
    assert!(left[0].len() < 11);
    // Only the daily ones have the log that follows them.
    let by_class: BTreeMap<&String, bool> = plans[0].backups.iter().map(|(id, one)| (id, one.continuous)).collect();
    let continuous: Vec<&&String> = by_class.iter().filter(|(_, yes)| **yes).map(|(id, _)| id).collect();
    assert_eq!(continuous, days(397..400).iter().collect::<Vec<_>>().iter().collect::<Vec<_>>());
    assert!(world.backups.iter().all(|backup| world.restorable(backup)));
    // One segment for each that stands alone, three for each of the three last days.
    assert_eq!(world.timelines[0].segments.len(), left[0].len() - 3 + 9);
}

#[test]
fn the_worked_example_of_the_operations_page_is_right() {
    let mut world = daily(7, 0, 500);
    let policy = Policy { days: 14, monthly: 12, ..Policy::default() };
    let (left, plans) = expire(&mut [&mut world], &policy, moment(499 * DAY + 13));
    let alone = left[0].iter().filter(|id| !plans[0].backups[*id].continuous).count();
    assert_eq!((left[0].len() - alone, alone), (15, 11));
}

#[test]
fn the_window_of_the_log_is_apart_from_that_of_the_backups() {
    let mut world = daily(7, 0, 30);
    let policy = Policy { backups: 20, wal_days: 5, ..Policy::default() };
    let (left, _) = expire(&mut [&mut world], &policy, moment(30 * DAY));
    assert_eq!(left[0], days(10..30));
    assert!(world.backups.iter().all(|backup| world.restorable(backup)));
    // The window begins on day 25; the backup before it is that of day 24.
    let after = |day: i64| world.timelines[0].segments.contains_key(&((day * 3 + 2) as u64));
    assert_eq!([22, 23, 24, 25, 29].map(after), [false, false, true, true, true]);
}

#[test]
fn a_backup_that_cannot_be_restored_counts_for_nothing() {
    let mut world = daily(7, 0, 6);
    // Days 5 and 3 lost their log, and day 4 a pack.
    world.timelines[0].segments.remove(&16).unwrap();
    world.timelines[0].segments.remove(&10).unwrap();
    world.packs.remove(&("day004".to_owned(), 1)).unwrap();
    let policy = Policy { backups: 2, ..Policy::default() };
    let (left, plans) = expire(&mut [&mut world], &policy, moment(6 * DAY));
    assert_eq!(left[0], days(1..6), "{:#?}", plans[0].backups);
    // And none is given up if none can be restored.
    world.packs.clear();
    let (left, _) = expire(&mut [&mut world], &policy, moment(600 * DAY));
    assert_eq!(left[0], days(1..6));
}

#[test]
fn packs_that_a_younger_backup_shares_stay_when_their_own_backup_goes() {
    let mut world = daily(7, 0, 4);
    world.packs.insert(("day000".to_owned(), 2), moment(12));
    world.backups[0].packs.insert(("day000".to_owned(), 2));
    world.backups[3].packs.insert(("day000".to_owned(), 2));
    world.backups[3].packs.insert(("day001".to_owned(), 1));
    let policy = Policy { backups: 1, ..Policy::default() };
    let (left, _) = expire(&mut [&mut world], &policy, moment(4 * DAY));
    assert_eq!(left[0], days([3]));
    let packs: Vec<String> = world.packs.keys().map(|(owner, number)| format!("{owner}/{number}")).collect();
    assert_eq!(packs, ["day000/2", "day001/1", "day003/1"]);
}

#[test]
fn an_old_lane_stays_until_its_successor_fulfils_the_policy_and_then_goes_whole() {
    let (mut old, mut new) = (daily(7, 0, 10), daily(8, 10, 0));
    let policy = Policy { backups: 3, days: 4, ..Policy::default() };
    let mut at = |new: &mut World, day: i64| expire(&mut [&mut old, new], &policy, moment(day * DAY + 6)).0;
    // The new one has nothing yet, however long that takes.
    assert_eq!(at(&mut new, 60)[0], days(7..10));
    let mut new = daily(8, 60, 2);
    assert_eq!(at(&mut new, 62), [days(7..10), days(60..62)]);
    // Three backups, but not four days yet.
    let mut new = daily(8, 60, 4);
    assert_eq!(at(&mut new, 64), [days(7..10), days(60..64)]);
    let mut new = daily(8, 60, 6);
    let left = at(&mut new, 66);
    assert_eq!((left[0].len(), left[1].last()), (0, days([65]).last()));
    assert_eq!((old.timelines[0].segments.len(), old.packs.len()), (0, 0));
}

#[test]
fn a_clone_that_backs_up_beside_its_original_takes_nothing_from_it() {
    let (mut original, mut clone) = (daily(7, 0, 30), daily(8, 5, 25));
    let policy = Policy { backups: 2, days: 2, ..Policy::default() };
    let (left, plans) = expire(&mut [&mut original, &mut clone], &policy, moment(30 * DAY));
    assert_eq!(left, [days(27..30), days(27..30)]);
    assert!(plans.iter().all(|plan| plan.successor.is_none()));
}

#[test]
fn what_cannot_be_read_or_is_not_listed_stops_everything() {
    let world = daily(7, 0, 6);
    let policy = Policy { backups: 1, ..Policy::default() };
    let mut lane = world.holdings();
    lane.unreadable.insert("day002".to_owned(), "damaged".to_owned());
    lane.backups.retain(|backup| backup.id != "day002");
    let judged = |lane: &LaneHoldings, forgotten: &[&str]| {
        let forgotten = forgotten.iter().map(|id| (*id).to_owned()).collect();
        decide(std::slice::from_ref(lane), &policy, &forgotten, moment(6 * DAY)).remove(0)
    };
    let plan = judged(&lane, &[]);
    assert!(matches!(&plan.blocked, Some(Blocked::Unreadable { backup, .. }) if backup == "day002"));
    assert!(plan.verdicts.iter().all(|verdict| !verdict.goes()));
    // Until an operator gives it up.
    let plan = judged(&lane, &["day002"]);
    assert_eq!(plan.blocked, None);
    assert!(plan.verdicts.iter().any(Verdict::goes));
    lane.backups.clear();
    lane.unreadable.clear();
    assert_eq!(judged(&lane, &[]).blocked, Some(Blocked::NoBackup));
}

#[test]
fn a_timeline_without_a_history_and_young_log_without_a_backup_stay() {
    let mut world = daily(7, 0, 10);
    let at = 3 << 24;
    let timeline = |parent, stored: DateTime<Utc>| super::model::Timeline {
        parent,
        end: 6 << 24,
        segments: BTreeMap::from([(3, stored), (4, stored)]),
        partials: BTreeMap::new(),
    };
    // One that was left long ago, and one that began just now from as early a moment.
    world.timelines.push(timeline(Some((0, at)), moment(2 * DAY)));
    world.timelines.push(timeline(Some((0, at)), moment(9 * DAY + 20)));
    let policy = Policy { backups: 2, ..Policy::default() };
    let mut lane = world.holdings();
    let stays = |lane: &LaneHoldings, timeline: u32| {
        let plan = decide(std::slice::from_ref(lane), &policy, &BTreeSet::new(), moment(10 * DAY)).remove(0);
        let own = lane
            .objects
            .iter()
            .zip(plan.verdicts)
            .filter(|(object, _)| object.segment().is_some_and(|segment| segment.timeline().number() == timeline));
        own.map(|(_, verdict)| !verdict.goes()).collect::<Vec<_>>()
    };
    assert_eq!((stays(&lane, 2), stays(&lane, 3)), (vec![false; 2], vec![true; 2]));
    lane.branches.retain(|branch| branch.timeline().number() != 2);
    assert_eq!(stays(&lane, 2), vec![true; 2]);
}

/// What an oracle without knowledge of the code says must still be possible after an expiry.
fn expect_promises(before: &World, after: &World, policy: &Policy, plan: &LanePlan, now: DateTime<Utc>, story: &str) {
    let mut restorable: Vec<&Backup> = before.backups.iter().filter(|backup| before.restorable(backup)).collect();
    restorable.sort_by(|a, b| (b.stopped_at, &b.id).cmp(&(a.stopped_at, &a.id)));
    let still = |backup: &Backup| after.backups.iter().any(|one| one.id == backup.id) && after.restorable(backup);
    // Whatever stays works as it did.
    for backup in &after.backups {
        assert_eq!(before.restorable(backup), after.restorable(backup), "{story}: {}", backup.id);
    }
    for backup in restorable.iter().filter(|backup| before.pins.contains(&backup.id)) {
        assert!(still(backup), "{story}: pinned {}", backup.id);
    }
    for reading in before.readings.iter().filter(|reading| before.is_readable(reading)) {
        assert!(after.is_readable(reading), "{story}: somebody reads {reading:?}");
    }
    let mut wanted: BTreeSet<&str> = before.pins.iter().map(String::as_str).collect();
    wanted.extend(before.readings.iter().map(|reading| reading.backup.as_str()));
    if plan.successor.is_some() {
        return;
    }
    let counted: Vec<&&Backup> = restorable.iter().take((policy.backups as usize).max(1)).collect();
    for backup in &counted {
        wanted.insert(&backup.id);
        assert!(still(backup), "{story}: one of the newest, {}", backup.id);
    }
    type Part = fn(DateTime<Utc>) -> String;
    let parts: [(u64, Part); 4] = [
        (policy.daily, |at| at.format("%Y-%m-%d").to_string()),
        (policy.weekly, |at| at.format("%G-%V").to_string()),
        (policy.monthly, |at| at.format("%Y-%m").to_string()),
        (policy.yearly, |at| at.format("%Y").to_string()),
    ];
    for (count, part) in parts {
        let mut last: BTreeMap<String, &Backup> = BTreeMap::new();
        restorable.iter().rev().for_each(|backup| {
            last.insert(part(backup.stopped_at), backup);
        });
        for (part, backup) in last.iter().rev().take(count as usize) {
            wanted.insert(&backup.id);
            assert!(still(backup), "{story}: the last of {part}, {}", backup.id);
        }
    }
    let (could, can) = (before.reach(&restorable), after.reach(&after.backups.iter().collect::<Vec<_>>()));
    let log_is_cut = policy.wal_days > 0;
    if policy.days > 0 && !log_is_cut {
        let begin = now - Duration::days(policy.days as i64);
        for moment in could.iter().filter(|moment| before.archived_at(**moment).is_some_and(|at| at >= begin)) {
            assert!(can.contains(moment), "{story}: {moment:?} lies in the window");
        }
    }
    if policy.backups > 0 && !log_is_cut {
        let counted: Vec<&Backup> = counted.into_iter().copied().collect();
        for moment in before.reach(&counted) {
            assert!(can.contains(&moment), "{story}: {moment:?} follows one of the newest");
        }
    }
    if log_is_cut {
        let begin = now - Duration::days(policy.wal_days as i64);
        let kept: Vec<&Backup> = after.backups.iter().collect();
        for moment in before.reach(&kept) {
            let recent = before.archived_at(moment).is_some_and(|at| at >= begin);
            assert!(!recent || can.contains(&moment), "{story}: {moment:?} lies in the window of the log");
        }
    }
    // And nothing is kept without a reason.
    for backup in &after.backups {
        let begin = now - Duration::days(policy.days as i64) - Duration::hours(2);
        let in_window = policy.days > 0 && backup.stopped_at > begin;
        let starts_window = plan.backups[&backup.id].keeps.contains(&Keep::WindowStart);
        let reason = wanted.contains(backup.id.as_str()) || in_window || starts_window || !before.restorable(backup);
        assert!(reason, "{story}: {} is kept: {:?}", backup.id, plan.backups[&backup.id]);
    }
    let named: BTreeSet<&(String, u32)> = after.backups.iter().flat_map(|backup| &backup.packs).collect();
    for (pack, stored_at) in &after.packs {
        let young = now - *stored_at < Duration::from_std(policy.grace).unwrap();
        assert!(young || named.contains(pack), "{story}: {pack:?} is kept");
    }
}

fn live(seed: u64) -> usize {
    let mut chance = Chance::new(seed);
    let mut hours = 0;
    let mut world = World::new(7, moment(0));
    let mut other: Option<World> = None;
    let mut expiries = 0;
    let several = [0, 0, 0, 1, 2, 3];
    let drawn = |chance: &mut Chance, most: u64| several[chance.below(6) as usize].min(most);
    let policy = Policy {
        backups: drawn(&mut chance, 3),
        days: drawn(&mut chance, 3) * 5,
        daily: drawn(&mut chance, 3),
        weekly: drawn(&mut chance, 3),
        monthly: drawn(&mut chance, 2),
        yearly: drawn(&mut chance, 1),
        wal_days: drawn(&mut chance, 3) * 4,
        grace: std::time::Duration::from_secs(3600 * chance.below(48)),
    };
    let policy = if policy.is_set() { policy } else { Policy { backups: 2, ..policy } };
    for step in 0..30 + chance.below(40) {
        hours += 1 + chance.below(30) as i64;
        let now = moment(hours);
        match &mut other {
            // The old one is silent.
            Some(new) => new.step(&mut chance, now),
            None if chance.one_in(80) => other = Some(World::new(8, now)),
            None => world.step(&mut chance, now),
        }
        if !chance.one_in(6) {
            continue;
        }
        expiries += 1;
        let story = format!("WALVAULT_SEED={seed} step {step}, {policy:?}");
        let before = (world.clone(), other.clone());
        let mut worlds: Vec<&mut World> = [&mut world].into_iter().chain(other.as_mut()).collect();
        let (_, plans) = expire(&mut worlds, &policy, now);
        let pairs = [(Some(&before.0), Some(&world)), (before.1.as_ref(), other.as_ref())];
        for ((before, after), plan) in pairs.into_iter().zip(&plans) {
            let (Some(before), Some(after)) = (before, after) else { continue };
            if plan.blocked.is_some() {
                assert!(before.backups.is_empty(), "{story}");
                continue;
            }
            if plan.successor.is_some() {
                assert!(before.archived_last().is_none_or(|last| now - last >= Duration::days(7)), "{story}");
                let new = other.as_ref().unwrap();
                assert!(new.backups.iter().any(|backup| new.restorable(backup)), "{story}");
            }
            expect_promises(before, after, &policy, plan, now, &story);
        }
    }
    expiries
}

#[test]
#[allow(clippy::print_stderr, reason = "the test run shows it when the test fails")]
fn after_any_expiry_of_any_history_everything_promised_can_be_restored() {
    let given = std::env::var("WALVAULT_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let soaking = std::env::var_os("WALVAULT_SOAK").is_some();
    // The same ones every time, and new ones in the long run.
    let seed = given.unwrap_or_else(|| if soaking { getrandom::u64().unwrap() >> 1 } else { 20_261_121 });
    eprintln!("WALVAULT_SEED={seed}");
    let wanted = std::env::var("WALVAULT_HISTORIES").ok().and_then(|count| count.parse::<u64>().ok());
    let histories = wanted.unwrap_or(if soaking { 1_000_000 } else { 1_000 });
    let threads = 4;
    let expiries: usize = std::thread::scope(|scope| {
        let work = |thread: u64| move || (thread..histories).step_by(threads).map(|n| live(seed + n)).sum::<usize>();
        let workers: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(work(thread))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(expiries as u64 > histories, "only {expiries} expiries");
}

#[test]
fn of_the_signs_of_life_each_writers_newest_stays_and_who_gives_them_has_no_successor() {
    let sign = |(timeline, writer, number): (u32, &str, u32), at: i64| {
        let timeline = TimelineId::new(timeline).unwrap();
        let name = ObjectName::Sign { timeline, writer: writer.to_owned(), number };
        Object::sample(&format!("s/{timeline}/{writer}/{number}"), name, 10, moment(at))
    };
    let (mut lane, policy) = (daily(7, 0, 10).holdings(), Policy { backups: 3, ..Policy::default() });
    let others = lane.objects.len();
    let signs = [(1, "a", 9), (1, "a", 10), (1, "b", 3), (2, "a", 2), (1, "a", 8)];
    lane.objects.extend(signs.map(|one| sign(one, 0)));
    let plan = decide(&[lane], &policy, &BTreeSet::new(), moment(10 * DAY)).remove(0);
    let goes: Vec<bool> = plan.verdicts[others..].iter().map(|verdict| verdict.goes()).collect();
    assert_eq!(goes, [true, false, false, false, true]);

    let policy = Policy { backups: 3, days: 4, ..Policy::default() };
    for (signs, taken_over) in [(vec![], true), (vec![sign((1, "a", 1), 65 * DAY)], false)] {
        let (mut old, new) = (daily(7, 0, 10).holdings(), daily(8, 60, 6).holdings());
        old.objects.extend(signs);
        let plans = decide(&[old, new], &policy, &BTreeSet::new(), moment(66 * DAY + 6));
        assert_eq!(plans[0].successor.is_some(), taken_over);
    }
}
