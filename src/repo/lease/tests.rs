//! Leases over a store in memory.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::repo::lane_fixture::lane_without;

fn record(holder: &str, first: u32) -> LeaseRecord {
    LeaseRecord {
        version: LEASE_VERSION,
        holder: holder.to_owned(),
        host: "db2".to_owned(),
        process: None,
        backup: Some("20261121T040000Z-abcdef".to_owned()),
        first,
        seconds: 600,
        released: false,
    }
}

fn put(lane: &Lane, number: u32, record: &LeaseRecord) {
    assert!(store_record(lane, Purpose::Backup, number, record).unwrap().is_some());
}

#[test]
fn a_live_lease_excludes_another_of_its_purpose_and_tells_whose_it_is() {
    let lane = lane_without(&[]);
    let lease = Lease::take(&lane, Purpose::Backup).unwrap();
    lease.name("b").unwrap();
    let refused = Lease::take(&lane, Purpose::Backup).unwrap_err();
    assert!(matches!(&refused, LeaseError::Held { by, .. } if by.backup.as_deref() == Some("b")), "{refused}");
    drop(Lease::take(&lane, Purpose::Expire).unwrap());
    lease.renew().unwrap();
    assert_eq!(lane.live_lease(Purpose::Backup).unwrap().unwrap().number, 3);
    drop(lease);
    assert_eq!(lane.live_lease(Purpose::Backup).unwrap(), None);
    drop(Lease::take(&lane, Purpose::Backup).unwrap());
}

#[test]
fn a_lease_of_another_host_holds_until_it_runs_out_by_the_stores_clock() {
    let lane = lane_without(&[]);
    put(&lane, 7, &record("them", 7));
    let refused = Lease::take(&lane, Purpose::Backup).unwrap_err().to_string();
    assert!(refused.contains("at work on db2 since"), "{refused}");
    let stored = lane.last_lease(Purpose::Backup).unwrap().unwrap();
    let after = |seconds| stored.is_live(stored.stored_at + chrono::Duration::seconds(seconds));
    assert_eq!([0, 600, 602, 603].map(after), [true, true, true, false]);
    // One that ran out is taken over, and its holder finds that out.
    put(&lane, 8, &LeaseRecord { seconds: 0, ..record("them", 7) });
    let over = lane.last_lease(Purpose::Backup).unwrap().unwrap();
    assert!(!over.is_live(over.stored_at + chrono::Duration::seconds(3)));
    put(&lane, 9, &LeaseRecord { released: true, ..record("them", 7) });
    let ours = Lease::take(&lane, Purpose::Backup).unwrap();
    assert!(store_record(&lane, Purpose::Backup, 10, &record("them", 7)).unwrap().is_none());
    drop(ours);
}

#[test]
fn a_lease_that_another_took_over_is_lost_for_good() {
    let lane = lane_without(&[]);
    let lease = Lease::take(&lane, Purpose::Backup).unwrap();
    put(&lane, 2, &record("them", 2));
    assert!(matches!(lease.renew(), Err(LeaseError::Lost { .. })));
    assert!(matches!(lease.name("b"), Err(LeaseError::Lost { .. })));
    drop(lease);
    // It gave nothing back that was not its own.
    assert_eq!(lane.last_lease(Purpose::Backup).unwrap().unwrap().number, 2);
}

#[test]
fn a_lease_that_was_not_renewed_in_time_by_the_stores_clock_is_lost() {
    let lane = lane_without(&[]);
    let lease = Lease::take(&lane, Purpose::Backup).unwrap();
    lease.inner.state().stored_at -= chrono::Duration::seconds(601);
    assert!(matches!(lease.renew(), Err(LeaseError::Lost { .. })));
    assert!(matches!(lease.renew(), Err(LeaseError::Lost { .. })));
}

#[test]
fn a_holder_that_certainly_died_is_not_waited_for() {
    let lane = lane_without(&[]);
    let own = Process::own();
    put(&lane, 1, &LeaseRecord { process: own.clone(), ..record("this process, which lost it", 1) });
    drop(Lease::take(&lane, Purpose::Backup).unwrap());
    let other = own.map(|own| Process { started: own.started + 1, ..own });
    put(&lane, 9, &LeaseRecord { process: other, ..record("a process that is gone", 9) });
    drop(Lease::take(&lane, Purpose::Backup).unwrap());
}

#[test]
fn a_damaged_record_holds_as_long_as_one_of_ours() {
    let lane = lane_without(&[]);
    let key = lane.repository.layout.lease(lane.id(), Purpose::Backup, 4).unwrap();
    lane.repository.store.create(&key, vec![Bytes::from_static(b"{}")]).unwrap();
    assert!(matches!(Lease::take(&lane, Purpose::Backup), Err(LeaseError::Held { .. })));
    let last = lane.last_lease(Purpose::Backup).unwrap().unwrap();
    assert!(!last.is_live(last.stored_at + chrono::Duration::seconds(603)));
}
