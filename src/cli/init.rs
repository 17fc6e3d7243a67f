//! `walvault init`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, settings};
use super::exit::Fault;
use super::output;
use crate::error::ErrorKind;
use crate::repo::{Initialised, Known, Repository};
use crate::store::{CreateMode, Store, mount};

/// Create the repository
///
/// May be repeated: a repository that is there is left as it is. The directory above the repository must exist, so that
/// a volume that is not mounted does not get a repository beside it, and a mount point of /etc/fstab must be mounted.
/// Exits 0 if the repository is there afterwards.
#[derive(clap::Args, Debug)]
pub(super) struct InitArgs {}

pub(super) fn run(cli: &Cli, _: &InitArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let policy = settings.retry_policy(PATIENT);
    if let Some(point) = settings.url.directory().and_then(mount::unmounted) {
        let text = format!("nothing is mounted on {}, and /etc/fstab says that something should be", point.display());
        return Err(CommandError::new(Fault::Configuration, text).hint(format!("mount {}", point.display())));
    }
    Store::create_root(&settings.url, &policy).map_err(|error| match error.kind() {
        ErrorKind::Unavailable => {
            CommandError::from(error).hint("the directory above must be there: is the volume mounted?")
        }
        _ => CommandError::from(error),
    })?;
    let store = Store::open(&settings.url, &settings.access, policy)?;
    context::remember(&store);
    if let Some(directory) = settings.state_directory() {
        Known::forget_all(&directory, &store, &settings.cluster);
    }
    let (repository, initialised) = Repository::init(store, &settings.cluster)?;
    let place = format!("{} for cluster {}", settings.url, repository.cluster());
    let text = match initialised {
        Initialised::Created => format!(
            "created the repository {place}\n`walvault check` says what the server still needs, such as its archive_command\n"
        ),
        Initialised::AlreadyThere => format!("the repository {place} is there already\n"),
    };
    let weak = repository.create_mode() == CreateMode::ContentAddressed;
    if weak && !cli.json {
        output::complain(
            "walvault: warning: the store does not refuse a name that is taken; objects are stored by their contents \
             (create: content-addressed), with two more requests for each, and writers must be allowed to delete",
        );
    }
    if cli.json {
        output::print_json(&serde_json::json!({
            "repository": settings.url.to_string(),
            "cluster": repository.cluster(),
            "create": repository.create_mode().as_str(),
            "created": initialised == Initialised::Created,
        }));
    } else {
        output::print(&text);
    }
    Ok(0)
}
