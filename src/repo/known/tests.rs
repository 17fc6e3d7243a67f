#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::{Access, RetryPolicy, S3Access, StoreUrl};

const WRITER: &str = "0123456789abcdef";
const ENDPOINT: &str = "http://127.0.0.1:9";

/// A bucket that is asked nothing.
fn bucket_at(endpoint: &str, url: &str) -> Store {
    let s3 = S3Access { endpoint: Some(endpoint.to_owned()), ..S3Access::default() };
    let keys = [("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let environment = keys.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let access = Access { s3, environment, ..Access::default() };
    Store::open(&url.parse::<StoreUrl>().unwrap(), &access, RetryPolicy::brisk(1)).unwrap()
}

fn bucket() -> Store {
    bucket_at(ENDPOINT, "s3://bucket/pg")
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn seconds(count: u64) -> chrono::Duration {
    chrono::Duration::seconds(count as i64)
}

/// A directory in which a push has left that it owns timeline 1.
struct Left(tempfile::TempDir);

impl Left {
    fn new() -> Self {
        let left = Self(tempfile::tempdir().unwrap());
        let known = left.take_up(&bucket(), "main", now());
        assert_eq!(known.facts, None);
        known.keep(&lane());
        left
    }

    fn take_up(&self, store: &Store, cluster: &str, now: DateTime<Utc>) -> Known {
        Known::take_up(Some(self.0.path()), store, cluster, LaneFacts::sample().system_id, now)
    }

    fn counts(&self) -> bool {
        self.take_up(&bucket(), "main", now() + seconds(1)).facts.is_some()
    }

    fn file(&self) -> PathBuf {
        self.take_up(&bucket(), "main", now()).file.unwrap()
    }
}

/// A lane whose owner is known.
fn lane() -> Lane {
    let document = RepositoryDocument {
        format: 1,
        minimum_reader: 1,
        suffix: ".zst".to_owned(),
        create: "conditional".to_owned(),
        sealing: "none".to_owned(),
    };
    let repository = Repository::written_as(bucket(), "main", document).unwrap();
    let lane = Lane::new(repository, LaneId::first(LaneFacts::sample().system_id), LaneFacts::sample());
    lane.remember_owner(TimelineId::FIRST, WRITER, now());
    lane
}

#[test]
fn what_a_push_learnt_the_next_one_knows_without_a_request() {
    let left = Left::new();
    let store = bucket();
    let known = left.take_up(&store, "main", now() + seconds(1));
    let repository = known.repository(store.clone(), "main").unwrap();
    let lane = known.lane_for(&repository, &LaneFacts::sample()).unwrap();
    let is_known = |timeline: u32, writer: &str, grace: u64, after: u64| {
        let timeline = TimelineId::new(timeline).unwrap();
        lane.is_known_to_be_of(timeline, writer, Duration::from_secs(grace), now() + seconds(after))
    };
    assert!(is_known(1, WRITER, 900, 1));
    assert!(!is_known(2, WRITER, 900, 1));
    assert!(!is_known(1, "another writer", 900, 1));
    // Before anybody may have taken over, it asks again.
    assert_eq!([29, 30, 31].map(|after| is_known(1, WRITER, 60, after)), [true, false, false]);
    assert!(!is_known(1, WRITER, 0, 0), "who is never waited for asks each time");
    assert_eq!(store.requests().total(), 0);
}

#[test]
fn it_counts_for_a_time_from_the_first_reading_however_often_it_is_added_to() {
    let left = Left::new();
    let later = now() + seconds(FRESH.as_secs() - 1);
    let known = left.take_up(&bucket(), "main", later);
    let added = lane();
    added.remember_owner(TimelineId::new(2).unwrap(), WRITER, later);
    known.keep(&added);
    assert!(left.take_up(&bucket(), "main", later).facts.unwrap().claims.len() == 2);
    for wrong in [later + seconds(1), now() + seconds(1_000_000), now() - seconds(1)] {
        assert_eq!(left.take_up(&bucket(), "main", wrong).facts, None, "{wrong}");
    }
}

#[test]
fn another_place_or_server_knows_nothing_of_it() {
    let left = Left::new();
    let same = || left.take_up(&bucket(), "main", now()).facts.is_some();
    assert!(same());
    let elsewhere = bucket_at("http://127.0.0.1:10", "s3://bucket/pg");
    assert_eq!(left.take_up(&elsewhere, "main", now()).facts, None);
    assert_eq!(left.take_up(&bucket_at(ENDPOINT, "s3://bucket/other"), "main", now()).facts, None);
    assert_eq!(left.take_up(&bucket(), "other", now()).facts, None);
    let other = SystemId::new(8);
    assert_eq!(Known::take_up(Some(left.0.path()), &bucket(), "main", other, now()).facts, None);
    // A name says nothing: what is written in the file decides.
    let theirs = Known::take_up(Some(left.0.path()), &bucket(), "main", other, now()).file.unwrap();
    fs::copy(left.file(), &theirs).unwrap();
    assert_eq!(Known::take_up(Some(left.0.path()), &bucket(), "main", other, now()).facts, None);
    let place = left.take_up(&elsewhere, "main", now()).file.unwrap();
    fs::copy(left.file(), &place).unwrap();
    assert_eq!(left.take_up(&elsewhere, "main", now()).facts, None);
    assert!(same());
}

#[test]
fn a_lane_made_for_other_facts_is_asked_of_the_store() {
    let left = Left::new();
    let store = bucket();
    let known = left.take_up(&store, "main", now());
    let repository = known.repository(store, "main").unwrap();
    let other = LaneFacts { segment_size: 1 << 20, ..LaneFacts::sample() };
    // Nobody answers there.
    assert!(matches!(known.lane_for(&repository, &other), Err(RepoError::Store(_))));
}

#[test]
fn a_file_that_is_not_whole_or_that_another_may_have_written_is_not_believed() {
    let left = Left::new();
    let (file, whole) = (left.file(), fs::read(left.file()).unwrap());
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..cut]).unwrap();
        assert!(!left.counts(), "cut to {cut}");
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&file, &flipped).unwrap();
    assert!(!left.counts());
    fs::write(&file, &whole).unwrap();
    assert!(left.counts());
    let facts = left.take_up(&bucket(), "main", now()).facts.unwrap();
    fs::write(&file, document::encode(&Facts { program: "0.0.0".to_owned(), ..facts })).unwrap();
    assert!(!left.counts());
    fs::write(&file, &whole).unwrap();

    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for open in [0o620, 0o602] {
        mode(&file, open);
        assert!(!left.counts(), "{open:o}");
    }
    mode(&file, 0o600);
    for open in [0o770, 0o707] {
        mode(file.parent().unwrap(), open);
        assert!(!left.counts(), "{open:o}");
    }
    mode(file.parent().unwrap(), 0o700);
    assert!(left.counts());
    // A link leads to what somebody else wrote.
    let aside = left.0.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &file).unwrap();
    assert!(!left.counts());
}

#[test]
fn a_failure_or_init_ends_it_and_a_volume_is_never_remembered() {
    let left = Left::new();
    left.take_up(&bucket(), "main", now()).forget();
    assert!(!left.counts());
    let left = Left::new();
    Known::forget_all(left.0.path(), &bucket(), "other");
    assert!(left.counts());
    Known::forget_all(left.0.path(), &bucket(), "main");
    assert!(!left.counts());

    let volume = tempfile::tempdir().unwrap();
    let url: StoreUrl = format!("file://{}", volume.path().display()).parse().unwrap();
    let volume = Store::open(&url, &Access::default(), RetryPolicy::brisk(1)).unwrap();
    assert_eq!(left.take_up(&volume, "main", now()).file, None);
    // Where nothing can be kept, nothing is known, and nothing fails.
    let nowhere = Known::take_up(Some(Path::new("/nonexistent")), &bucket(), "main", SystemId::new(7), now());
    nowhere.keep(&lane());
    assert_eq!(nowhere.facts, None);
}
