//! `walvault install`.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Cli;
use super::context::CommandError;
use super::exit::Fault;
use super::output;
use crate::workflow::{InstallError, Installed, PROGRAM, install};

/// Put a copy of this program into a directory
///
/// The copy is DIR/walvault, with mode 0755. It appears whole or not at all, also where a server is using an older one, and
/// may be repeated: the same copy is left as it is. The directory must exist. No setting is read. Exits 0 if the copy is
/// there afterwards, 1 if not.
#[derive(clap::Args, Debug)]
pub(super) struct InstallArgs {
    /// Where to, such as a volume that the server's container shares
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(cli: &Cli, args: &InstallArgs) -> Result<u8, CommandError> {
    let program = running_program().map_err(|source| InstallError::Unreadable { source })?;
    let installed = install(program, &args.directory)?;
    let place = args.directory.join(PROGRAM);
    let (word, text) = match installed {
        Installed::Created => ("created", "installed"),
        Installed::Replaced => ("replaced", "replaced"),
        Installed::AlreadyThere => ("already there", "already there:"),
    };
    let version = env!("CARGO_PKG_VERSION");
    if cli.json {
        output::print_json(&serde_json::json!({ "path": place, "version": version, "outcome": word }));
    } else {
        output::print(&format!("{text} {} (walvault {version})\n", place.display()));
    }
    Ok(0)
}

/// Opens the file that this process runs.
fn running_program() -> io::Result<File> {
    // The link leads to the file itself, wherever its name has gone; without /proc the kernel's own word is left.
    File::open("/proc/self/exe").or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            File::open(Path::new(std::ffi::OsStr::from_bytes(rustix::param::linux_execfn().to_bytes())))
        }
        _ => Err(error),
    })
}

impl From<InstallError> for CommandError {
    fn from(error: InstallError) -> Self {
        let hint = match &error {
            InstallError::NoDirectory { .. } => Some("is the volume mounted? walvault does not create it"),
            InstallError::NotADirectory { .. } => Some("name the directory that the copy goes into"),
            InstallError::Taken { .. } => Some("remove it, or name another directory"),
            InstallError::Unreadable { .. } | InstallError::Io { .. } => None,
        };
        Self { fault: Fault::Failed(error.kind()), error: Box::new(error), hint: hint.map(str::to_owned) }
    }
}
