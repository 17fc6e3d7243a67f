//! Large files round the page cache: every byte, whatever their length and whatever refuses; and on this machine's disk.

#![allow(clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fstatfs};

use super::super::{Kernel, Volume};
use super::*;
use crate::error::ErrorKind;
use crate::store::mount::writes_past_memory;
use crate::store::tests::Scratch;
use crate::store::{Created, Key, RetryPolicy, Store};

/// A disk that takes direct writes as strictly as any, on whatever file system: it goes by what was asked of it last.
#[derive(Clone, Debug, Default)]
struct Strict(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    past_memory: bool,
    /// Bytes that went past memory, and through it.
    direct: Vec<usize>,
    buffered: Vec<usize>,
    refuses_at_all: bool,
    /// How many direct writes go well, how many bytes of the next one do, and then this error comes.
    fail: Option<(usize, usize, i32)>,
}

impl Disk for Strict {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let mut notes = self.0.lock().unwrap();
        if !notes.past_memory {
            notes.buffered.push(bytes.len());
            return file.write_all(bytes);
        }
        let fail = notes.fail.filter(|(well, ..)| *well == notes.direct.len());
        if let Some((_, some, error)) = fail {
            file.write_all(&bytes[..some])?;
            return Err(io::Error::from_raw_os_error(error));
        }
        let place = file.stream_position()? as usize;
        assert!([bytes.as_ptr() as usize, bytes.len(), place].iter().all(|number| number % BLOCK == 0));
        notes.direct.push(bytes.len());
        file.write_all(bytes)
    }

    fn direct(&self, _: &File, past: bool) -> io::Result<()> {
        let mut notes = self.0.lock().unwrap();
        if past && notes.refuses_at_all {
            return Err(io::Error::from_raw_os_error(EINVAL));
        }
        notes.past_memory = past;
        Ok(())
    }

    fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        Kernel.sync(file, path)
    }

    fn link(&self, file: &Path, path: &Path) -> io::Result<()> {
        Kernel.link(file, path)
    }

    fn enter(&self, path: &Path) -> io::Result<()> {
        Kernel.enter(path)
    }
}

const EIO: i32 = 5;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;

/// Bytes of which no two stretches are alike.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| ((n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) ^ (n >> 12)) as u8).collect()
}

/// The same bytes in one part, and in parts of all sizes.
fn divided(contents: &[u8]) -> [PutPayload; 2] {
    let (mut parts, mut rest) = (vec![], contents);
    for size in [1, 0, 4095, 70_000, 4096, 300_001].into_iter().cycle() {
        let (part, after) = rest.split_at(rest.len().min(size));
        parts.push(Bytes::copy_from_slice(part));
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    [Bytes::copy_from_slice(contents).into(), parts.into_iter().collect()]
}

/// Writes to a new file and returns what it holds.
fn written(disk: &dyn Disk, body: &PutPayload) -> io::Result<Vec<u8>> {
    let place = tempfile::NamedTempFile::new().unwrap();
    let mut file = OpenOptions::new().write(true).open(place.path()).unwrap();
    write(disk, &mut file, body)?;
    assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT), "the file is left so that nothing may be appended");
    Ok(fs::read(place.path()).unwrap())
}

#[test]
fn files_of_every_length_come_back_byte_for_byte() {
    let around = |len: usize| [len - 1, len, len + 1];
    let lengths = [vec![0, 1], around(BLOCK).into(), around(WORTHWHILE).into(), around(WORTHWHILE + BLOCK).into()];
    let longer = [around(STRETCH).into(), around(STRETCH + BLOCK).into(), vec![2 * STRETCH, 3 * STRETCH + 1]];
    for len in lengths.into_iter().chain(longer).flatten() {
        let contents = noise(len);
        for body in divided(&contents) {
            assert!(written(&Kernel, &body).unwrap() == contents, "{len} bytes on this machine's disk");
            let disk = Strict::default();
            assert!(written(&disk, &body).unwrap() == contents, "{len} bytes");
            let notes = disk.0.lock().unwrap();
            let past = if len < WORTHWHILE { 0 } else { len / BLOCK * BLOCK };
            assert_eq!(notes.direct.iter().sum::<usize>(), past, "{len} bytes");
            assert_eq!(notes.buffered.iter().sum::<usize>(), len - past, "{len} bytes");
            assert!(notes.direct.len() <= past.div_ceil(STRETCH), "{len} bytes in {:?}", notes.direct);
        }
    }
}

#[test]
fn what_a_disk_does_not_take_past_memory_goes_through_it() {
    let contents = noise(3 * STRETCH + 5000);
    for body in divided(&contents) {
        let disk = Strict::default();
        disk.0.lock().unwrap().refuses_at_all = true;
        assert!(written(&disk, &body).unwrap() == contents);
        assert!(disk.0.lock().unwrap().direct.is_empty());
        for (well, some, error) in [
            (0, 0, EINVAL),
            (0, 0, EOPNOTSUPP),
            (1, 0, EINVAL),
            (3, 0, EINVAL),
            // A write that was cut short leaves the rest where the disk does not take it.
            (0, 512, EINVAL),
            (2, 70_001, EINVAL),
            (2, STRETCH - 1, EOPNOTSUPP),
        ] {
            let disk = Strict::default();
            disk.0.lock().unwrap().fail = Some((well, some, error));
            assert!(written(&disk, &body).unwrap() == contents, "error {error} after {well} writes and {some} bytes");
            let notes = disk.0.lock().unwrap();
            assert_eq!(notes.direct.len(), well);
            assert!(!notes.past_memory);
            assert_eq!(notes.buffered.iter().sum::<usize>(), contents.len() - well * STRETCH - some);
        }
    }
}

#[test]
fn a_direct_write_that_fails_leaves_nothing_behind_and_says_why() {
    let key: Key = "packs/a/b".parse().unwrap();
    let contents = noise(2 * STRETCH + 1);
    for (error, kind) in [(ENOSPC, ErrorKind::Full), (EIO, ErrorKind::Unavailable)] {
        for (well, some) in [(0, 0), (1, 0), (1, 4096), (1, 100)] {
            let (scratch, disk) = (Scratch::new(), Strict::default());
            let volume = Volume::open_on(scratch.path(), Box::new(disk.clone())).unwrap();
            let store = Store::over(Arc::new(volume), "volume", RetryPolicy::brisk(1)).unwrap();
            disk.0.lock().unwrap().fail = Some((well, some, error));
            let refused = store.create(&key, vec![contents.clone().into()]).unwrap_err();
            assert_eq!(refused.kind(), kind, "{}", crate::error::chain(&refused));
            assert_eq!(scratch.files(), ["packs", "packs/a"], "error {error}");
            *disk.0.lock().unwrap() = Notes::default();
            assert_eq!(store.create(&key, vec![contents.clone().into()]).unwrap(), Created::New);
            assert!(store.get_up_to(&key, u64::MAX).unwrap().unwrap() == contents);
        }
    }
}

#[test]
fn files_in_memory_are_not_written_past_it() {
    let Ok(file) = tempfile::tempfile_in("/dev/shm") else { return };
    if writes_past_memory(fstatfs(&file).unwrap().f_type as u32) {
        // A directory like any other.
        return;
    }
    assert_eq!(Kernel.direct(&file, true).unwrap_err().kind(), io::ErrorKind::Unsupported);
    assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
}

/// A directory on a disk that direct writes are made on; `None`, and a word about it, if no likely place is.
#[allow(clippy::print_stderr, reason = "who reads the test's output wants to know what it did not test")]
fn on_a_disk() -> Option<PathBuf> {
    let places = [std::env::temp_dir(), "/var/tmp".into(), env!("CARGO_MANIFEST_DIR").into()];
    let kind = |place: &PathBuf| Some(fstatfs(File::open(place).ok()?).ok()?.f_type as u32);
    let found = places.into_iter().find(|place| kind(place).is_some_and(writes_past_memory));
    if found.is_none() {
        eprintln!("no ext4 or XFS here: direct writes are tested on a disk that is made up");
    }
    found
}

/// Whether the page of a file in which a byte lies is in the page cache; `None` where the kernel does not say. To read with
/// `RWF_NOWAIT` would not do: it has the kernel read ahead, and on a quick disk finds what it brought itself.
fn is_in_memory(path: &Path, at: usize) -> Option<bool> {
    let file = File::open(path).unwrap();
    let (page, mut told) = (rustix::param::page_size(), [0u8]);
    let start = libc::off_t::try_from(at / page * page).unwrap();
    // SAFETY: nothing reads or writes through the mapping, which is unmapped at once; it has one page, and `told` a byte.
    let answered = unsafe {
        let mapped = libc::mmap(std::ptr::null_mut(), page, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), start);
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let answered = libc::mincore(mapped, page, told.as_mut_ptr().cast());
        libc::munmap(mapped, page);
        answered
    };
    (answered == 0).then_some(told[0] & 1 != 0)
}

#[test]
fn a_large_file_on_a_disk_does_not_stay_in_memory() {
    let Some(place) = on_a_disk() else { return };
    let directory = tempfile::tempdir_in(place).unwrap();
    // Some file systems take direct writes and keep them in memory: with the data in the journal, or encrypted.
    let control = directory.path().join("control");
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    let mut file = OpenOptions::new().write(true).create_new(true).custom_flags(direct).open(&control).unwrap();
    let mut stretch = Stretch::new(STRETCH);
    stretch.take(&noise(STRETCH), STRETCH);
    let honest = file.write_all(stretch.bytes()).is_ok() && is_in_memory(&control, 300_000) == Some(false);
    let volume = Volume::open(directory.path()).unwrap();
    let contents = noise(STRETCH + 500_001);
    for body in divided(&contents) {
        let name: Key = format!("wal/{}", body.iter().count()).parse().unwrap();
        volume.0.create(&name, &body).unwrap();
        let path = directory.path().join(name.as_str());
        assert!(!honest || is_in_memory(&path, 300_000) == Some(false), "it was not written past memory");
        assert!(fs::read(&path).unwrap() == contents);
    }
}
