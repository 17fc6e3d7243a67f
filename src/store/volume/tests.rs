//! What a volume asks of the kernel, in which order, and what it leaves behind when the kernel refuses.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;

use super::*;
use crate::error::{ErrorKind, chain};
use crate::store::error::BackendError;
use crate::store::tests::Scratch;
use crate::store::{Created, Deleted, RetryPolicy, Store};

/// Notes every call, with paths relative to the root, and fails or misreports those a test names.
#[derive(Clone, Debug, Default)]
struct Watched(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    calls: Vec<String>,
    root: PathBuf,
    /// A call that begins with this fails with the error.
    fail: Option<(&'static str, io::ErrorKind)>,
    lose_link_reply: bool,
    /// What appears below the root as soon as the root is entered.
    appears: Option<&'static str>,
}

impl Watched {
    fn note(&self, doing: &str, path: &Path) -> io::Result<()> {
        let mut notes = self.0.lock().unwrap();
        let path = path.strip_prefix(&notes.root).unwrap().to_str().unwrap();
        // The random end of an unfinished name is not worth a comparison.
        let call = format!("{doing} /{}", path.split_inclusive('#').next().unwrap_or_default());
        let fails = notes.fail.filter(|(start, _)| call.starts_with(start));
        notes.calls.push(call);
        fails.map_or(Ok(()), |(_, kind)| Err(kind.into()))
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    fn fail(&self, call: &'static str, kind: io::ErrorKind) {
        self.0.lock().unwrap().fail = Some((call, kind));
    }

    fn heal(&self) {
        self.0.lock().unwrap().fail = None;
    }
}

impl Disk for Watched {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let root = self.0.lock().unwrap().root.clone();
        self.note("write", &root)?;
        file.write_all(bytes)
    }

    fn direct(&self, file: &File, past: bool) -> io::Result<()> {
        Kernel.direct(file, past)
    }

    fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.note("sync", path)?;
        file.sync_all()
    }

    fn link(&self, file: &Path, path: &Path) -> io::Result<()> {
        self.note("link", path)?;
        fs::hard_link(file, path)?;
        if self.0.lock().unwrap().lose_link_reply {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn enter(&self, path: &Path) -> io::Result<()> {
        let notes = self.0.lock().unwrap();
        if let Some(name) = notes.appears.filter(|_| path == notes.root) {
            fs::create_dir_all(notes.root.join(name).parent().unwrap())?;
            fs::write(notes.root.join(name), "theirs")?;
        }
        File::open(path).map(drop)
    }
}

fn watched(scratch: &Scratch) -> (Watched, Store) {
    let watched = Watched::default();
    watched.0.lock().unwrap().root = scratch.path().to_owned();
    let volume = Volume::open_on(scratch.path(), Box::new(watched.clone())).unwrap();
    (watched, Store::over(Arc::new(volume), "volume", RetryPolicy::brisk(1)).unwrap())
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn body() -> Vec<bytes::Bytes> {
    vec!["one".into(), "two".into()]
}

const NEW_FILE: [&str; 5] = ["write /", "write /", "sync /a/b/c#", "link /a/b/c", "sync /a/b"];

#[test]
fn an_object_is_synced_before_it_has_its_name_and_its_directories_up_to_the_root_with_it() {
    let scratch = Scratch::new();
    let (watched, store) = watched(&scratch);
    assert_eq!(store.create(&key("a/b/c"), body()).unwrap(), Created::New);
    let directories = ["sync /", "sync /a"];
    assert_eq!(watched.calls(), [&directories[..], &NEW_FILE].concat());
    assert_eq!(scratch.files(), ["a", "a/b", "a/b/c"]);

    store.create(&key("a/b/d"), body()).unwrap();
    assert!(!watched.calls().contains(&"sync /a".to_owned()), "once a process is enough");
}

#[test]
fn a_large_object_is_synced_once_all_of_it_was_written_like_any_other() {
    let scratch = Scratch::new();
    let (watched, store) = watched(&scratch);
    // Past memory, where the disk does that, and the end of it through memory.
    store.create(&key("a"), vec![vec![1; 600_000].into(), vec![2; 700_001].into()]).unwrap();
    let calls = watched.calls();
    let (writes, others) = calls.split_at(calls.len() - 3);
    assert!(writes.len() > 1 && writes.iter().all(|call| call == "write /"), "{calls:?}");
    assert_eq!(others, ["sync /a#", "link /a", "sync /"]);
}

#[test]
fn directories_of_a_process_that_died_are_synced_again() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path().join("a/b")).unwrap();
    let (watched, store) = watched(&scratch);
    store.create(&key("a/b/c"), body()).unwrap();
    assert_eq!(watched.calls()[..2], ["sync /", "sync /a"]);
}

#[test]
fn an_existing_object_is_synced_before_it_is_acknowledged() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("a")).unwrap();
    fs::write(scratch.path().join("a/b"), "theirs").unwrap();
    let (watched, store) = watched(&scratch);
    assert_eq!(store.create(&key("a/b"), body()).unwrap(), Created::Existing);
    assert_eq!(watched.calls(), ["sync /", "sync /a/b", "sync /a"]);
    for call in ["sync /a/b", "sync /a"] {
        watched.fail(call, io::ErrorKind::Other);
        assert!(store.create(&key("a/b"), body()).is_err(), "acknowledged although {call} failed");
    }
}

#[test]
fn a_link_whose_reply_was_lost_is_recognised() {
    let scratch = Scratch::new();
    let (watched, store) = watched(&scratch);
    watched.0.lock().unwrap().lose_link_reply = true;
    assert_eq!(store.create(&key("a"), body()).unwrap(), Created::New);
    assert_eq!(watched.calls().last().unwrap(), "sync /");
    assert_eq!(scratch.files(), ["a"]);
}

#[test]
fn a_refused_create_leaves_nothing_behind_and_says_why() {
    for (call, kind) in [("write", io::ErrorKind::StorageFull), ("write", io::ErrorKind::QuotaExceeded)] {
        let scratch = Scratch::new();
        let (watched, store) = watched(&scratch);
        watched.fail(call, kind);
        let error = store.create(&key("a"), body()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full);
        assert_eq!(scratch.files(), Vec::<String>::new());
    }
    for call in ["sync /a#", "link /a"] {
        let scratch = Scratch::new();
        let (watched, store) = watched(&scratch);
        watched.fail(call, io::ErrorKind::Other);
        assert_eq!(store.create(&key("a"), body()).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(scratch.files(), Vec::<String>::new(), "after {call}");
        watched.heal();
        assert_eq!(store.create(&key("a"), body()).unwrap(), Created::New);
    }
}

#[test]
fn an_object_whose_directory_could_not_be_synced_is_not_acknowledged() {
    let scratch = Scratch::new();
    let (watched, store) = watched(&scratch);
    watched.fail("sync /", io::ErrorKind::Other);
    fs::create_dir(scratch.path().join("a")).unwrap();
    assert!(store.create(&key("a/b"), body()).is_err(), "its folder is not durable");
    watched.fail("sync /a", io::ErrorKind::Other);
    assert!(store.create(&key("a/b"), body()).is_err(), "its name is not durable");
}

#[test]
fn a_delete_is_synced_also_when_there_was_nothing_left_to_delete() {
    let scratch = Scratch::new();
    let (watched, store) = watched(&scratch);
    store.create(&key("a/b"), body()).unwrap();
    watched.calls();
    assert_eq!(store.delete(&key("a/b")).unwrap(), Deleted::Gone);
    assert_eq!(store.delete(&key("a/b")).unwrap(), Deleted::WasAbsent);
    assert_eq!(watched.calls(), ["sync /a", "sync /a"]);
    watched.fail("sync /a", io::ErrorKind::Other);
    assert!(store.delete(&key("a/b")).is_err());
    assert_eq!(store.delete(&key("no/folder/either")).unwrap(), Deleted::WasAbsent);
}

#[test]
fn a_directory_removed_behind_our_back_is_made_again() {
    let scratch = Scratch::new();
    let store = scratch.store(RetryPolicy::brisk(2));
    store.create(&key("a/b"), body()).unwrap();
    fs::remove_dir_all(scratch.path().join("a")).unwrap();
    assert_eq!(store.create(&key("a/b"), body()).unwrap(), Created::New);
}

#[test]
fn a_volume_that_went_away_knows_nothing_and_gets_nothing() {
    let scratch = Scratch::new();
    let root = scratch.path().join("mount");
    fs::create_dir(&root).unwrap();
    let store = Store::over(Arc::new(Volume::open(&root).unwrap()), "volume", RetryPolicy::brisk(1)).unwrap();
    store.create(&key("a/b"), body()).unwrap();
    let unavailable = |what: &str| {
        let failures = [
            store.get(&key("a/b")).map(drop),
            store.get_range(&key("a/b"), 0..1).map(drop),
            store.head(&key("a/b")).map(drop),
            store.list(None).map(drop),
            store.list(Some(&key("a"))).map(drop),
            store.list_children(None).map(drop),
            store.delete(&key("a/b")).map(drop),
            store.create(&key("a/b"), body()).map(drop),
        ];
        for failure in failures {
            let error = failure.expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {}", chain(&error));
        }
    };
    fs::rename(&root, scratch.path().join("elsewhere")).unwrap();
    unavailable("the directory is missing");
    assert!(!root.exists(), "the root was made anew");
    // What an unmounted volume looks like: its mount point, empty.
    fs::create_dir(&root).unwrap();
    unavailable("another directory is in its place");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn what_another_host_created_a_moment_ago_is_seen() {
    let reads: [fn(&Store) -> bool; 4] = [
        |store| store.get(&key("a/b/c")).unwrap().is_some(),
        |store| store.head(&key("a/b/c")).unwrap().is_some(),
        |store| store.list(Some(&key("a/b"))).unwrap().len() == 1,
        |store| store.list_children(Some(&key("a/b"))).unwrap().objects.len() == 1,
    ];
    for sees in reads {
        let scratch = Scratch::new();
        let (watched, store) = watched(&scratch);
        watched.0.lock().unwrap().appears = Some("a/b/c");
        assert!(sees(&store));
    }
}

#[test]
fn unfinished_hidden_and_strange_entries_are_invisible() {
    let scratch = Scratch::new();
    let store = scratch.store(RetryPolicy::brisk(1));
    store.create(&key("a/b"), body()).unwrap();
    for name in ["a/b#0123456789abcdef", "a/c#1", "a/.nfs0001", ".snapshot", "a/not ours", "a/naïve"] {
        fs::write(scratch.path().join(name), "").unwrap();
    }
    std::os::unix::net::UnixListener::bind(scratch.path().join("a/socket")).unwrap();
    symlink("nowhere", scratch.path().join("a/dangling")).unwrap();
    let listed: Vec<_> = store.list(None).unwrap().into_iter().map(|meta| meta.key).collect();
    assert_eq!(listed, [key("a/b")]);
    let children = store.list_children(Some(&key("a"))).unwrap();
    assert_eq!((children.folders.len(), children.objects.len()), (0, 1));
}

#[test]
fn an_entry_that_cannot_be_examined_fails_the_listing() {
    let scratch = Scratch::new();
    let store = scratch.store(RetryPolicy::brisk(1));
    store.create(&key("a/b"), body()).unwrap();
    symlink("loop", scratch.path().join("a/loop")).unwrap();
    assert_eq!(store.list(None).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.list_children(Some(&key("a"))).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn a_listing_longer_than_its_channel_is_complete() {
    let scratch = Scratch::new();
    for n in 0..3000 {
        fs::write(scratch.path().join(format!("{n:04}")), "").unwrap();
    }
    let listed = scratch.store(RetryPolicy::default()).list(None).unwrap();
    assert_eq!(listed.len(), 3000);
    assert_eq!((listed[0].key.as_str(), listed[2999].key.as_str()), ("0000", "2999"));
}

#[test]
fn nobody_outside_owner_and_group_may_look() {
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    assert!(create_root(&root).unwrap());
    Volume::open(&root).unwrap().0.create(&key("a/b"), &PutPayload::from_static(b"x")).unwrap();
    for (path, most) in [("", 0o750), ("a", 0o750), ("a/b", 0o640)] {
        let mode = fs::metadata(root.join(path)).unwrap().mode() & 0o777;
        assert_eq!(mode & !most, 0, "{path:?} has mode {mode:o}");
    }
}

#[test]
fn a_key_below_an_object_is_refused_and_not_absent() {
    let scratch = Scratch::new();
    let store = scratch.store(RetryPolicy::brisk(1));
    store.create(&key("a"), body()).unwrap();
    assert_eq!(store.create(&key("a/b"), body()).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(store.get(&key("a/b")).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(store.list(Some(&key("a"))).unwrap(), []);
}

#[test]
fn overwriting_is_not_offered() {
    let scratch = Scratch::new();
    let volume = Volume::open(scratch.path()).unwrap();
    let location = Location::from("a");
    let overwrite = volume.put_opts(&location, PutPayload::new(), PutOptions::default());
    let error = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(overwrite).unwrap_err();
    assert_eq!(BackendError::from(error).kind(), ErrorKind::Invalid);
}

/// A restore as root leaves what `expire`, as the server's user, has to read and remove.
#[test]
fn what_root_makes_belongs_to_whom_the_root_belongs() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (user, group) = (65_534, 65_533);
    let scratch = Scratch::new();
    std::os::unix::fs::chown(scratch.path(), Some(user), Some(group)).unwrap();
    // What a call before this rule left.
    fs::create_dir(scratch.path().join("a")).unwrap();
    let volume = Arc::new(Volume::open(scratch.path()).unwrap());
    let store = Store::over(volume, "volume", RetryPolicy::brisk(1)).unwrap();
    store.create(&"a/b/c".parse().unwrap(), vec!["contents".into()]).unwrap();
    for name in ["a", "a/b", "a/b/c"] {
        let found = fs::metadata(scratch.path().join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (user, group), "{name}");
    }
}
