//! What a glance rules out, against a search that looks at every segment's facts.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::*;
use crate::catalog::{IndexJob, perform_indexing};
use crate::pg::pg_time::PgTime;
use crate::repo::lane_fixture::lane_without;
use crate::restore::glance::Glance;

/// Asks the same of a survey that took a glance at the chain first, and of one that is new and so looks at everything;
/// returns whether anything was found.
fn same<T: Debug + PartialEq>(
    lane: &Lane,
    catalog: &LaneCatalog,
    glancing: &Survey<'_>,
    ask: impl Fn(&Survey<'_>) -> T,
) -> T {
    let found = ask(glancing);
    assert_eq!(found, ask(&Survey::new(lane, catalog)));
    found
}

fn index_all(lane: &Lane, catalog: &LaneCatalog) {
    for timeline in &catalog.timelines {
        let segments = timeline.segments.clone();
        let job = IndexJob { timeline: timeline.timeline, middle: "00000000".to_owned(), segments, again: false };
        perform_indexing(lane, catalog, &job).unwrap();
    }
}

#[test]
fn a_glance_rules_out_nothing_that_is_there() {
    for indexed in [false, true] {
        let lane = lane_without(&[]);
        let catalog = LaneCatalog::load(&lane).unwrap();
        if indexed {
            index_all(&lane, &catalog);
        }
        for branch in catalog.branches() {
            let first = catalog.timelines[0].segments[0].number(catalog.segment_size()).unwrap();
            let chain = branch.chain(&catalog, first).segments;
            let glancing = Survey::new(&lane, &catalog);
            glancing.prepare(&chain).unwrap();
            let all: Vec<Rc<WalFacts>> = chain.iter().map(|name| glancing.facts(*name).unwrap()).collect();
            let least = all.iter().filter_map(|facts| facts.min_xid).min().unwrap();
            let most = all.iter().filter_map(|facts| facts.max_xid).max().unwrap();
            let mut found = 0;
            // Some of them, on two processors in good time, and all at the edges.
            for xid in (least - 1..=most + 1).step_by(7).chain([least, most]) {
                let one = same(&lane, &catalog, &glancing, |survey| survey.end_of_transaction(&chain, xid).unwrap());
                found += usize::from(one.is_some());
            }
            assert!(found > 0, "no transaction was found");
            let times: BTreeSet<PgTime> =
                all.iter().flat_map(|facts| [facts.min_time, facts.max_time]).flatten().collect();
            for time in times {
                let past = |one| one > time;
                same(&lane, &catalog, &glancing, |survey| survey.first_past(&chain, past).unwrap());
                let at = |one| one >= time;
                assert!(same(&lane, &catalog, &glancing, |survey| survey.first_past(&chain, at).unwrap()).is_some());
            }
            let names: BTreeSet<String> =
                all.iter().flat_map(|facts| facts.restore_points.iter().map(|point| point.name.clone())).collect();
            for name in names.into_iter().chain(["nowhere".to_owned()]) {
                same(&lane, &catalog, &glancing, |survey| survey.restore_points(&chain, &name).unwrap());
            }
            for end in 1..=chain.len() {
                let part = &chain[..end];
                same(&lane, &catalog, &glancing, |survey| survey.last_transaction(part, |_| true).unwrap());
                same(&lane, &catalog, &glancing, |survey| survey.latest_time(part).unwrap());
                same(&lane, &catalog, &glancing, |survey| survey.last_record(part).unwrap());
                same(&lane, &catalog, &glancing, |survey| survey.readable(part).unwrap());
            }
            same(&lane, &catalog, &glancing, |survey| {
                format!("{:?}", survey.demands(&chain, Lsn::INVALID, Lsn::new(u64::MAX)).unwrap())
            });
            let removals = same(&lane, &catalog, &glancing, |survey| survey.removals(&chain, |_, _| true).unwrap());
            for (_, ended) in removals {
                same(&lane, &catalog, &glancing, |survey| survey.created_by(&chain, &ended).unwrap());
            }
        }
    }
}

#[test]
fn a_glance_spares_looking_at_most() {
    let lane = lane_without(&[]);
    let catalog = LaneCatalog::load(&lane).unwrap();
    let chain = &catalog.timelines[0].segments;
    let survey = Survey::new(&lane, &catalog);
    assert_eq!(survey.worth(chain, &[1], |_| false).len(), chain.len(), "nothing is known yet");
    survey.prepare(chain).unwrap();
    assert!(survey.worth(chain, &[1], |_| false).len() < chain.len() / 2);
    assert_eq!(survey.worth(chain, &[1], |_| true).len(), chain.len());
    // What a segment leaves open counts in the one after it, and at the beginning of a chain nothing is left open.
    let open: Vec<usize> = survey.worth(chain, &[0, 1, 2, 4, 5], |_| false);
    for at in 1..chain.len() {
        let leaves = survey.facts(chain[at - 1]).unwrap().end.may_leave_open_what_matters();
        assert_eq!(open.contains(&at), leaves, "{}", chain[at]);
    }
}

#[test]
fn a_glance_says_no_more_than_the_facts() {
    assert!(Glance::default().is_blank() && !Glance::default().is_whole() && Glance::default().may_leave_open(&[]));
    let stopped = FactsEnd::Stopped { at: Lsn::new(8), why: "zeros".to_owned() };
    let facts = WalFacts { indexer: 2, end: stopped, ..WalFacts::default() };
    let plain = Glance::of(&facts, false, false);
    assert!(!plain.is_blank() && !plain.is_whole() && !plain.may_leave_open(&[1]));
    assert!(!plain.may_end() && !plain.may_end_transaction(3) && !plain.may_remove() && !plain.may_hold_points());
    // A list that was cut short, and an indexer that knew less, deny nothing.
    let cut = Glance::of(&WalFacts { truncated: true, ..facts.clone() }, true, false);
    assert!(cut.may_end_transaction(3) && cut.may_hold_points() && cut.may_ask() && cut.may_lose());
    assert!(cut.may_remove() && cut.may_make_files() && cut.may_be_past(|_| false));
    // Before transactions were known by number, any could have been any.
    let old = Glance::of(&WalFacts { commits: 1, ..facts }, true, false);
    assert!(old.may_end_transaction(3) && old.may_end());
}
