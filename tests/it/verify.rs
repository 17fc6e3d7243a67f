//! What is missing or turned in a repository is found, and named.

use crate::support::{Ledger, Major, Site, TestServer};

#[test]
fn whatever_is_lost_or_turned_is_named() {
    let site = Site::of(TestServer::builder(Major::V18).segment_mib(1));
    let mut ledger = Ledger::create(&site.server);
    let backup = site.backup()["id"].as_str().expect("a name").to_owned();
    let later: Vec<String> = (0..3)
        .map(|_| {
            ledger.commit(&site.server, 5);
            site.server.archive_all()
        })
        .collect();
    let whole = site.walvault.run(["verify", "--read", "--json"]).expect_ok().json();
    let lane = &whole["lanes"][0];
    assert_eq!((&lane["backups"], &lane["problems"]), (&1.into(), &serde_json::json!([])), "{whole:#}");
    assert!(lane["packs"].as_u64() > Some(0) && lane["segments"].as_u64() > Some(3), "{whole:#}");
    assert!(site.walvault.run(["verify"]).expect_ok().stdout.contains("all of it is there"));

    let pack = site.repo.find_all(&format!("main/*/packs/{backup}/*")).swap_remove(0);
    let manifest = site.repo.find(&format!("main/*/backups/{backup}*"));
    let (before, middle) = (&later[0], &later[1]);
    let segment = |name: &str| site.repo.find(&format!("main/*/wal/*/{name}*"));
    // What, whether it is lost or has a bit turned, whether a listing shows it, and what it is called.
    for (key, lost, listed, kind) in [
        (&pack, false, false, "pack_damaged"),
        (&manifest, false, true, "manifest"),
        (&segment(before), false, false, "segment_damaged"),
        (&segment(middle), true, true, "hole"),
        (&pack, true, true, "pack_missing"),
    ] {
        if lost {
            site.repo.remove(key);
        } else {
            let middle = site.repo.read(key).len() as u64 * 4;
            site.repo.flip_bit(key, middle);
        }
        let kinds = |arguments: &[&str], code| -> Vec<String> {
            let found = site.walvault.run(arguments).expect_code(code).json();
            let problems = found["lanes"][0]["problems"].as_array().expect("an array").clone();
            problems.iter().map(|problem| problem["kind"].as_str().expect("a word").to_owned()).collect()
        };
        assert!(kinds(&["verify", "--read", "--json"], 1).contains(&kind.to_owned()), "{key}");
        if !lost {
            let shallow = kinds(&["verify", "--json"], i32::from(listed));
            assert_eq!(shallow.contains(&kind.to_owned()), listed, "{key}: {shallow:?}");
            let middle = site.repo.read(key).len() as u64 * 4;
            site.repo.flip_bit(key, middle);
        }
    }
    let said = site.walvault.run(["verify"]).expect_code(1).stdout;
    assert!(said.contains(&format!("segment {middle} is missing, since ")), "{said}");
}
