//! What can be seen of a history: events by name and time, and the page that shows them in a real browser.

use std::fs;

use serde_json::Value;

use crate::support::browser::Browser;
use crate::support::{Ledger, Major, Scratch, Site, TestServer};

/// A name that would be a part of the page, were it not taken for text.
const TYPED: &str = "<script>document.title = 1</script>";

/// Everything that a page shows: two backups, a fork, a hole, restore points, tables and a database that went.
fn history(major: Major) -> (Site, String) {
    let site = Site::of(TestServer::builder(major).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    site.server.sql(
        "create table doomed as select g as n from generate_series(1, 100) g; create schema shop;
         create table shop.emptied as select g as n from generate_series(1, 100) g;
         create table rewritten (n int primary key, words text); create table swapped (n int);
         insert into rewritten select g, 'x' from generate_series(1, 100) g; create table fine (n int)",
    );
    site.server.sql("create database gone");
    site.backup();
    let fork = ledger.commit(&site.server, 5).clone();
    site.server.sql("select pg_create_restore_point('twice')");
    site.server.sql("truncate shop.emptied");
    site.server.sql("vacuum full rewritten");
    site.server.sql("create temp table passing (n int); drop table passing");
    // Of a subtransaction's work only the record itself says whose it was.
    site.server.sql("begin; savepoint s; truncate swapped; release s; commit");
    site.server.sql("drop table doomed");
    site.server.sql("drop database gone");
    site.server.sql("create table late (n int)");
    site.server.sql("drop table late");
    site.server.sql(&format!("select pg_create_restore_point('twice'); select pg_create_restore_point('{TYPED}')"));
    ledger.commit(&site.server, 5);
    site.server.archive_all();
    let mut second = site.restore(&["--to-lsn", &fork.lsn, "--as", "primary", "--target-action", "promote"]);
    Ledger::over(second.promoted()).commit(&second.server, 5);
    second.server.archive_all();
    ledger.commit(&site.server, 5);
    let missing = site.server.archive_all();
    ledger.commit(&site.server, 5);
    site.server.archive_all();
    site.backup();
    ledger.commit(&site.server, 5);
    site.server.archive_all();
    site.repo.remove(&site.repo.find(&format!("main/*/{missing}*")));
    (site, missing)
}

fn of_kind<'a>(events: &'a Value, kind: &str, member: &str) -> Vec<&'a str> {
    let events = events.as_array().expect("an array").iter().filter(|event| event["kind"] == kind);
    events.map(|event| event[member].as_str().unwrap_or_else(|| panic!("{event:#}"))).collect()
}

#[test]
fn a_page_shows_the_whole_history_in_a_browser_and_loads_nothing() {
    let (site, missing) = history(Major::V17);
    let events = site.walvault.run(["timelines", "--events", "--json"]).expect_ok().json()["events"].clone();
    assert_eq!(of_kind(&events, "restore_point", "name"), ["twice", "twice", TYPED]);
    assert_eq!(of_kind(&events, "truncate", "relation"), ["shop.emptied", "public.swapped"]);
    assert_eq!(of_kind(&events, "drop", "relation"), ["public.doomed"]);
    assert_eq!(of_kind(&events, "rewrite", "relation"), ["public.rewritten"]);
    assert_eq!(of_kind(&events, "drop_database", "database"), ["gone"]);
    let times = of_kind(&events, "restore_point", "time");
    assert!(times.is_sorted(), "{times:?}");
    let listed = site.walvault.run(["timelines", "--events"]).expect_ok().stdout;
    let lines = |words: &str| listed.lines().filter(|line| line.contains(words)).count();
    assert_eq!(
        (lines("restore point \"twice\""), lines("table public.doomed of database postgres dropped")),
        (2, 1),
        "{listed}"
    );

    let place = Scratch::new();
    let file = place.create_dir("out").join("report.html");
    let to_file = ["report", "--output", file.to_str().expect("plain text")];
    site.walvault.run(to_file).expect_ok();
    let page = fs::read_to_string(&file).expect("the report is there");
    for foreign in ["src=", "href=", "url(", "http:", "https:", "@import"] {
        assert!(!page.contains(foreign), "{foreign} could load something");
    }
    if let Some(keep) = std::env::var_os("WALVAULT_TEST_REPORT") {
        fs::write(keep, &page).expect("a place that somebody named");
    }
    let browser = Browser::new();
    let dom = browser.dom(&page);
    assert!(dom.contains("<title>main: what can be restored</title>"), "a name became a part of the page");
    assert!(dom.contains("&lt;script&gt;document.title"), "{dom}");
    for words in ["Timeline 1", "Timeline 2", "timeline 2 forked off timeline 1", "segments are missing from", &missing]
    {
        assert!(dom.contains(words), "{words:?} is not in\n{dom}");
    }
    let count = |class: &str| dom.matches(&format!("class=\"{class}\"")).count();
    // Each once more in the key.
    assert_eq!((count("backup"), count("point"), count("gap"), count("forked")), (3, 4, 2, 2), "{dom}");

    // Nothing stands out on a desk or on a phone; letters keep their size, and the script runs under the page's policy.
    let asked = "[w.document.documentElement.scrollWidth <= w.innerWidth, \
                 Math.min(...[...w.document.querySelectorAll('svg text, td, p')].filter((one) => one.getClientRects().length) \
                 .map((one) => parseFloat(w.getComputedStyle(one).fontSize))) >= 11, \
                 [...w.document.querySelectorAll('svg.chart text')].filter((one) => one.getClientRects().length) \
                 .every((one) => one.getBoundingClientRect().right <= w.innerWidth + 1), \
                 w.getComputedStyle(w.document.body).backgroundColor, \
                 (() => { const chart = w.document.querySelector('svg.chart'), box = chart.getBoundingClientRect(); \
                 chart.dispatchEvent(new w.PointerEvent('pointermove', { clientX: box.left + box.width / 2, clientY: box.top + 60 })); \
                 return /^20..-..-.. ..:..:..Z . timeline 1/.test(w.document.querySelector('output').textContent); })()].join(' ')";
    for (width, scheme, paper) in
        [(360, "light", "rgb(253, 252, 249)"), (1200, "light", "rgb(253, 252, 249)"), (360, "dark", "rgb(17, 22, 29)")]
    {
        assert_eq!(
            browser.ask(&page, width, scheme, asked),
            format!("true true true {paper} true"),
            "{width} {scheme}"
        );
    }

    // A newer report takes the place of an older one, and of nothing else.
    site.walvault.run(to_file).expect_ok();
    fs::write(&file, "a letter").expect("a file of ours");
    let refused = site.walvault.run(to_file).expect_code(1);
    assert!(refused.stderr.contains("holds something else than a report"), "{}", refused.story());
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "a letter");
    let report = site.walvault.run(["report", "--json"]).expect_ok().json();
    let lane = &report["lanes"][0];
    assert_eq!((&lane["events"], lane["backups"].as_array().map(Vec::len)), (&events, Some(2)));
    assert_eq!(lane["holes"][0]["first"], missing.as_str());
}
