//! `walvault config`.

use std::path::PathBuf;

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings, user_named};
use super::exit::Fault;
use super::list;
use super::output;
use crate::error::ErrorKind;
use crate::format::manifest::Manifest;
use crate::instance::DataDirectory;
use crate::restore::{FilesError, KeptConfiguration, RestoreError, check_empty};
use crate::view;

/// Put up the configuration files of a backup that lay outside the data directory
///
/// Writes them into a new directory and touches nothing else. With --pgdata they are made to start the server in that
/// directory; without it they come as they were, but for the names of files that moved. Exits 0 once they are written, 64
/// and 78 for a wrong command line or configuration, and 1 for everything else.
#[derive(clap::Args, Debug)]
pub(super) struct ConfigArgs {
    /// Name of the backup
    id: String,
    /// New directory; must be empty or not exist
    directory: PathBuf,
    /// Restored data directory that the server is to run in
    #[arg(long, value_name = "DIR")]
    pgdata: Option<PathBuf>,
    /// User that the files are given to, for a call as root
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
}

pub(super) fn run(cli: &Cli, args: &ConfigArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let owner = match &args.owner {
        None => None,
        Some(name) => {
            let no_user = || CommandError::misuse(format!("--owner {name}: there is no such user"));
            Some(user_named(name).ok_or_else(no_user)?)
        }
    };
    let repository = repository(&settings, PATIENT)?;
    let catalogues = context::catalogues(cli, &repository)?;
    let (catalogue, manifest) = list::backup(&catalogues, &args.id)?;
    let failed = |text: String| CommandError::new(Fault::Failed(ErrorKind::NotFound), text);
    let lane = repository.lane(catalogue.lane)?.ok_or_else(|| failed(format!("lane {} is gone", catalogue.lane)))?;
    let tables = lane.tables(manifest)?;
    let kept = KeptConfiguration::load(&lane, manifest, &tables).map_err(RestoreError::from)?;
    let none = format!("all configuration of backup {} lies in the data directory and comes back with it", args.id);
    let kept = kept.ok_or_else(|| failed(none))?;
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let data_directory = args.pgdata.as_ref().map(absolute);
    if let Some(path) = &data_directory {
        belongs(&DataDirectory::open(path)?, manifest)?;
    }
    let directory = absolute(&args.directory);
    check_empty(&directory).map_err(RestoreError::from)?;
    let placed = kept
        .put_up(&directory, data_directory.as_deref(), owner)
        .map_err(|source| RestoreError::from(FilesError::Write { path: directory.clone(), source }))?;
    if cli.json {
        output::print_json(&view::restore::configuration_json(&placed));
    } else {
        output::print(&view::restore::configuration_text(&placed, data_directory.is_some()));
    }
    Ok(0)
}

/// A configuration is for its own cluster's data, and no other.
fn belongs(directory: &DataDirectory, manifest: &Manifest) -> Result<(), CommandError> {
    let (found, expected) = (directory.control.system_id, manifest.root.system_id);
    match found == expected {
        true => Ok(()),
        false => Err(CommandError::new(
            Fault::Configuration,
            format!("{} belongs to system {found}, the backup to system {expected}", directory.path.display()),
        )),
    }
}
