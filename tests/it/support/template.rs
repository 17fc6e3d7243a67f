//! Fresh data directories at the price of a copy.
//!
//! `initdb` runs once in a test run for each [`Template`] that is asked for. Directories copied from one template have
//! the same system identifier; a test that needs two clusters takes two identities.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use super::major::Major;
use super::process::{command, run};
use super::scratch::shared_directory;

/// What a data directory is made with; checksums are always on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Template {
    /// Major version of the server.
    pub major: Major,
    /// Size of a WAL segment in MiB, as `initdb --wal-segsize` takes it.
    pub segment_mib: u32,
    /// Tells clusters apart: another number, another system identifier.
    pub identity: u32,
}

impl Template {
    /// Creates `data` as a fresh data directory that no server has run on.
    #[track_caller]
    pub fn copy_to(self, data: &Path) {
        let mut copy = command("/usr/bin/cp");
        copy.args(["-a", "--reflink=auto"]).arg(self.made()).arg(data);
        run(copy).expect_ok();
    }

    /// Returns the directory to copy; the first caller makes it while the others wait.
    fn made(self) -> PathBuf {
        static MADE: Mutex<Option<HashMap<Template, Arc<OnceLock<PathBuf>>>>> = Mutex::new(None);
        let cell = {
            let mut made = MADE.lock().expect("nothing panics while it holds this lock");
            Arc::clone(made.get_or_insert_default().entry(self).or_default())
        };
        cell.get_or_init(|| self.make()).clone()
    }

    fn make(self) -> PathBuf {
        let Self { major, segment_mib, identity } = self;
        let data = shared_directory("templates").join(format!("{major}-{segment_mib}-{identity}"));
        let mut initdb: Command = command(major.program("initdb"));
        initdb
            .args(["--no-sync", "--locale=C", "--encoding=UTF8", "--auth=trust", "--username=postgres"])
            .args(["--data-checksums", &format!("--wal-segsize={segment_mib}"), "-D"])
            .arg(&data);
        run(initdb).expect_ok();
        data
    }
}
