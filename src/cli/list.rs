//! `walvault list` and `walvault show`.

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::catalog::LaneCatalog;
use crate::clock;
use crate::error::ErrorKind;
use crate::format::manifest::Manifest;
use crate::retention::{self, Shares};
use crate::view;

/// List backups
///
/// Every backup that is listed is committed: its packs and its WAL were complete when it was. Exits 0, or 1 if the
/// repository cannot be read.
#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {}

/// Show one backup
///
/// Exits 0, or 1 if there is no such backup or its manifest is damaged.
#[derive(clap::Args, Debug)]
pub(super) struct ShowArgs {
    /// Name of the backup
    id: String,
}

pub(super) fn list(cli: &Cli, _: &ListArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let catalogues = context::catalogues(cli, &repository(&settings, PATIENT)?)?;
    if cli.json {
        output::print_json(&view::backups::list_json(&catalogues));
    } else {
        output::print(&view::backups::list_text(&catalogues));
    }
    Ok(0)
}

pub(super) fn show(cli: &Cli, args: &ShowArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let repository = repository(&settings, PATIENT)?;
    let catalogues = context::catalogues(cli, &repository)?;
    let (catalogue, manifest) = backup(&catalogues, &args.id)?;
    let (mut shares, mut pin, mut condemned) = (Shares::default(), None, false);
    if let Some(lane) = repository.lane(catalogue.lane)? {
        shares = retention::shares(&lane, &args.id)?;
        pin = lane.pins()?.remove(&args.id).filter(|pin| pin.holds(clock::now())).map(|pin| pin.words());
        condemned = lane.tombstones()?.iter().any(|stone| stone.tombstone.condemns(&args.id));
    }
    if cli.json {
        let mut value = view::backups::show_json(manifest);
        value["pin"] = serde_json::json!(pin);
        value["condemned"] = serde_json::json!(condemned);
        value["needs_packs_of"] = serde_json::json!(shares.needs);
        value["needed_by"] = serde_json::json!(shares.needed_by);
        output::print_json(&value);
    } else {
        output::print(&view::backups::show_text(manifest));
        output::print(&view::expire::ties_text(pin.as_deref(), condemned, &shares));
    }
    Ok(0)
}

/// Finds a backup by name, and the lane it is in.
pub(super) fn backup<'a>(
    catalogues: &'a [LaneCatalog],
    id: &str,
) -> Result<(&'a LaneCatalog, &'a Manifest), CommandError> {
    if let Some(found) = catalogues.iter().find_map(|catalogue| Some((catalogue, catalogue.backup(id)?))) {
        return Ok(found);
    }
    let mut unreadable = catalogues.iter().flat_map(|catalogue| &catalogue.unreadable);
    Err(match unreadable.find(|backup| backup.id == id) {
        Some(backup) => {
            let text = format!("backup {} cannot be read: {}", backup.id, backup.problem);
            CommandError::new(Fault::Failed(ErrorKind::Corrupt), text)
        }
        None => CommandError::new(Fault::Failed(ErrorKind::NotFound), format!("there is no backup {id}"))
            .hint("see `walvault list`"),
    })
}
