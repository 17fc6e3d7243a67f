#![allow(clippy::unwrap_used)]

use super::*;
use crate::catalog::TimelineCatalog;
use crate::pg::lsn::Lsn;
use crate::pg::pg_time::PgTime;
use crate::pg::timeline::History;
use crate::repo::LaneFacts;
use crate::restore::{Happening, ReachEnd, Restorable};

const TYPED: &str = "</script><script>alert(1)</script>";

fn time(text: &str) -> PgTime {
    text.parse().unwrap()
}

fn lane() -> LaneReport {
    let number = |number| TimelineId::new(number).unwrap();
    let timeline = |at: u32, text: &str| TimelineCatalog {
        timeline: number(at),
        history: (!text.is_empty()).then(|| History::parse(number(at), text).unwrap()),
        segments: Vec::new(),
        owner: None,
        waits_for: None,
    };
    let reason = format!("1\t0/3000000\tat restore point \"{TYPED}\"\n");
    let catalogue =
        LaneCatalog::of("7-1".parse().unwrap(), LaneFacts::sample(), vec![timeline(1, ""), timeline(2, &reason)]);
    let (first, last) = (time("2026-11-21T13:00:00Z"), time("2026-11-21T15:00:00Z"));
    let point = |name: &str, at: u64| Event {
        at: Lsn::new(at),
        end: None,
        time: Some(last),
        exact: true,
        xid: None,
        what: Happening::RestorePoint { name: name.to_owned() },
    };
    let told = |at, events| Chronicle {
        timeline: number(at),
        clock: vec![(Lsn::new(0x200_0000), first), (Lsn::new(0x400_0000), last)],
        gaps: Vec::new(),
        events,
        unread: 0,
        unnamed: 0,
        incomplete: false,
    };
    let restorable = Restorable {
        backup: "x".to_owned(),
        backups: 1,
        from: Lsn::new(0x200_0000),
        from_time: first.to_utc(),
        to: Lsn::new(0x400_0000),
        to_time: Some(last),
        end: ReachEnd::Newest,
    };
    let reached = |at| Reach { timeline: number(at), restorable: vec![restorable.clone()], incomplete: Vec::new() };
    LaneReport {
        catalogue,
        reached: Some(vec![reached(1), reached(2)]),
        chronicles: vec![
            told(1, vec![point("twice", 0x210_0000), point("twice", 0x220_0000)]),
            told(2, vec![point(TYPED, 0x350_0000)]),
        ],
        contested: Vec::new(),
        problems: vec![TYPED.to_owned()],
    }
}

fn report() -> Report {
    Report {
        cluster: TYPED.to_owned(),
        repository: format!("file:///{TYPED}"),
        made_at: "2026-11-21T16:00:00Z".parse().unwrap(),
        lanes: vec![lane()],
    }
}

#[test]
fn nothing_that_somebody_typed_becomes_a_part_of_the_page() {
    let page = html(&report());
    assert!(page.starts_with(MARK));
    assert!(page.contains("&lt;script&gt;alert(1)"));
    // The page's own script and each drawing's numbers.
    assert_eq!(page.matches("<script").count(), 2, "{page}");
    assert_eq!(page.matches("</script").count(), 2);
    for foreign in ["src=", "href=", "url(", "http://", "https://", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(!page.bytes().any(|byte| byte < 32 && byte != b'\n'));
}

#[test]
fn a_name_that_was_given_twice_is_there_twice() {
    let page = html(&report());
    let rows: Vec<&str> =
        page.lines().filter(|line| line.starts_with("<tr>") && line.contains("restore point")).collect();
    assert_eq!(rows.iter().filter(|row| row.contains("&quot;twice&quot;")).count(), 2, "{rows:?}");
    assert!(rows.iter().any(|row| row.contains("0/2100000")) && rows.iter().any(|row| row.contains("0/2200000")));
    let value = json(&report());
    assert_eq!(value["lanes"][0]["events"].as_array().unwrap().len(), 3);
    assert_eq!(value["lanes"][0]["restorable_to"], "2026-11-21T15:00:00Z");
}

#[test]
fn a_repository_without_anything_has_a_page_too() {
    let page = html(&Report { lanes: Vec::new(), ..report() });
    assert!(page.contains("Nothing is archived") && page.ends_with("</html>\n"));
    let empty = LaneReport { chronicles: Vec::new(), reached: None, ..lane() };
    let page = html(&Report { lanes: vec![empty], ..report() });
    assert!(!page.contains("<figure>") && page.contains("unknown"));
}
