//! What settings come to, and what is refused.

use super::*;

fn given(pairs: &[(&str, &str)]) -> Given<'static> {
    let environment = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Given {
        repository: Some("file:///backups"),
        cluster: Some("main"),
        file: None,
        environment,
        clouds: BTreeMap::new(),
    }
}

#[test]
fn repository_and_cluster_are_enough() {
    let settings = Settings::gather(&given(&[]), true).expect("enough");
    assert_eq!(settings.compression_level(), 3);
    assert_eq!(settings.seconds("push_timeout"), Duration::from_secs(60));
    assert!(settings.threads() >= 1);
}

#[test]
fn every_number_has_a_default_in_its_range_and_refuses_what_is_outside() {
    for key in KEYS.iter().filter(|key| key.range.is_some()) {
        let (least, most) = key.range.expect("filtered");
        let default: u64 = key.default.parse().expect("a number");
        assert!((least..=most).contains(&default), "{}", key.name);
        for value in [(most + 1).to_string(), "-1".to_owned(), "x".to_owned(), String::new()] {
            let refused = Settings::gather(&given(&[(key.name, &value)]), true);
            assert!(matches!(refused, Err(ConfigError::Range { .. })), "{} = {value:?}", key.name);
        }
        assert!(Settings::gather(&given(&[(key.name, &most.to_string())]), true).is_ok(), "{}", key.name);
    }
}

#[test]
fn every_rule_of_retention_reaches_the_policy() {
    let policy = |pairs: &[(&str, &str)]| Settings::gather(&given(pairs), true).expect("numbers").retention();
    assert_eq!(policy(&[]), Policy { grace: Duration::from_secs(86400), ..Policy::default() });
    assert!(!policy(&[("retain_wal_days", "3")]).is_set());
    let names = ["backups", "days", "daily", "weekly", "monthly", "yearly", "wal_days"];
    let numbers: Vec<(String, String)> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (format!("retain_{name}"), (at + 1).to_string()))
        .chain([("expire_grace".to_owned(), "8".to_owned())])
        .collect();
    let pairs: Vec<(&str, &str)> = numbers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let grace = Duration::from_secs(8);
    let all = Policy { backups: 1, days: 2, daily: 3, weekly: 4, monthly: 5, yearly: 6, wal_days: 7, grace };
    assert_eq!(policy(&pairs), all);
}

#[test]
fn what_is_set_for_a_bucket_reaches_its_store() {
    let texts = [
        "s3_region",
        "s3_endpoint",
        "s3_storage_class",
        "s3_profile",
        "s3_access_key_id_file",
        "s3_secret_access_key_file",
        "gcs_endpoint",
        "gcs_credentials_file",
        "gcs_storage_class",
        "ca_file",
        "proxy",
    ];
    for name in texts {
        let settings = Settings::gather(&given(&[(name, "the value")]), true).expect("any text will do");
        let Access { s3, gcs, network, .. } = &settings.access;
        assert!(format!("{s3:?} {gcs:?} {network:?}").contains("the value"), "{name} goes nowhere");
    }
    for (value, addressing) in
        [("auto", Addressing::Auto), ("path", Addressing::Path), ("virtual-host", Addressing::VirtualHost)]
    {
        let settings = Settings::gather(&given(&[("s3_addressing", value)]), true).expect("one of them");
        assert_eq!(settings.access.s3.addressing, addressing);
    }
    let refused = Settings::gather(&given(&[("s3_addressing", "virtual")]), true).expect_err("none of them");
    assert!(refused.to_string().contains("auto, path, virtual-host"), "{refused}");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_or_passed_over() {
    let misspelt = given(&[("compresion_level", "3")]);
    let refused = Settings::gather(&misspelt, true).expect_err("no such key");
    assert!(refused.to_string().contains("did you mean compression_level?"), "{refused}");
    let settings = Settings::gather(&misspelt, false).expect("passed over");
    assert_eq!(settings.unknown.len(), 1);
}

#[test]
fn a_file_that_is_no_toml_is_named_by_its_line_and_not_by_what_stands_there() {
    let place = tempfile::tempdir().expect("a scratch directory");
    let file = place.path().join("main.toml");
    for wrong in [
        "proxy = http://me:hidden@proxy:3128\n",
        "proxy = \"http://me:hidden@proxy:3128\n",
        "proxy = \"http://me:hidden@proxy:3128\" and more\n",
        "proxy = \"a\"\nproxy = \"http://me:hidden@proxy:3128\"\n",
    ] {
        std::fs::write(&file, format!("cpus = 1\n{wrong}")).expect("a scratch file");
        let refused = Settings::gather(&Given { file: Some(&file), ..given(&[]) }, false).expect_err("no TOML");
        for said in [crate::error::chain(&refused).to_string(), format!("{refused:?}")] {
            assert!(said.contains("main.toml") && said.contains("line") && !said.contains("hidden"), "{said}");
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let nothing = Given::default();
    assert!(matches!(Settings::gather(&nothing, true), Err(ConfigError::NoCluster)));
    let no_repository = Given { cluster: Some("nosuchcluster"), ..Given::default() };
    let refused = Settings::gather(&no_repository, true).expect_err("no repository");
    assert!(refused.to_string().contains("/etc/walvault/nosuchcluster.toml"), "{refused}");
}

#[test]
fn a_misspelt_cluster_is_told_which_ones_have_settings() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["web.toml", "main.toml", "main.toml.old", "README"] {
        std::fs::write(directory.path().join(name), "").expect("a file");
    }
    let missing = ConfigError::NoRepository { file: directory.path().join("mian.toml") };
    let hint = missing.hint().expect("there are others");
    assert!(hint.ends_with("these clusters: main, web"), "{hint}");
    // Its file is there and says nothing of a repository: it is no other's that is meant.
    assert_eq!(ConfigError::NoRepository { file: directory.path().join("main.toml") }.hint(), None);
    assert_eq!(ConfigError::NoRepository { file: "/no/such/directory/main.toml".into() }.hint(), None);
}

#[test]
fn a_file_that_may_not_be_read_says_who_may() {
    let unreadable =
        |kind: std::io::ErrorKind| ConfigError::Unreadable { file: "main.toml".into(), source: kind.into() };
    let hint = unreadable(std::io::ErrorKind::PermissionDenied).hint().expect("a hint");
    assert!(hint.contains("the user that the server runs as"), "{hint}");
    assert_eq!(unreadable(std::io::ErrorKind::NotFound).hint(), None);
}

#[test]
fn a_text_without_quotes_is_told_how_texts_are_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("main.toml");
    std::fs::write(&file, "repo = file:///mnt/backup\n").expect("a file");
    let given = Given { cluster: Some("main"), file: Some(&file), ..Given::default() };
    let refused = Settings::gather(&given, true).expect_err("no TOML");
    assert!(refused.hint().is_some_and(|hint| hint.contains("texts in quotes")), "{refused}");
}
