//! `walvault conflict`.

use clap::Subcommand;

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::archive::decide_on;
use crate::error::ErrorKind;
use crate::repo::{Contested, Decision, Lane};
use crate::view;

/// Files kept apart because another writer has, or may have, their names
#[derive(Subcommand, Debug)]
pub(super) enum ConflictArgs {
    List(ListArgs),
    Show(ShowArgs),
    Adopt(AdoptArgs),
    Discard(DiscardArgs),
}

/// List the files that are kept apart
///
/// Exits 0, or 1 if the repository cannot be read.
#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {
    /// Also those that were adopted or discarded
    #[arg(long)]
    all: bool,
}

/// Compare a file that is kept apart with what is archived under its name
///
/// Reads and verifies both. Exits 0; 1 if there is no such file, or it is damaged.
#[derive(clap::Args, Debug)]
pub(super) struct ShowArgs {
    /// The file, as conflict list names it; the beginning is enough if there is but one
    conflict: String,
}

/// Store files that were kept apart under their names
///
/// Nothing is overwritten: a name that has other bytes is refused. Exits 0 once all are stored and recorded; 1 otherwise.
#[derive(clap::Args, Debug)]
pub(super) struct AdoptArgs {
    /// The file, as conflict list names it; all whose names begin so, such as all of one writer
    conflict: String,
}

/// Record that files that were kept apart are of no use
///
/// Their bytes stay in the repository; check and status speak of them no more. Exits 0 once it is recorded; 1 otherwise.
#[derive(clap::Args, Debug)]
pub(super) struct DiscardArgs {
    /// The file, as conflict list names it; all whose names begin so, such as all of one writer
    conflict: String,
}

pub(super) fn run(cli: &Cli, args: &ConflictArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    let lane = context::lane(cli, &repository(&settings, PATIENT)?)?;
    match args {
        ConflictArgs::List(args) => list(cli, &lane, args.all),
        ConflictArgs::Show(args) => show(cli, &lane, &args.conflict),
        ConflictArgs::Adopt(args) => decide(cli, &lane, &args.conflict, Decision::Adopted),
        ConflictArgs::Discard(args) => decide(cli, &lane, &args.conflict, Decision::Discarded),
    }
}

fn list(cli: &Cli, lane: &Lane, all: bool) -> Result<u8, CommandError> {
    let mut found = Vec::new();
    for contested in lane.contested()?.into_iter().filter(|contested| all || !contested.resolved) {
        let resolution = if contested.resolved { lane.resolution(&contested)? } else { None };
        found.push((contested, resolution));
    }
    if cli.json {
        output::print_json(&view::owners::conflicts_json(&found));
    } else {
        output::print(&view::owners::conflicts_text(&found));
    }
    Ok(0)
}

/// Returns the files whose names begin with these words; there must be one.
fn named(lane: &Lane, words: &str) -> Result<Vec<Contested>, CommandError> {
    let mut found = lane.contested()?;
    found.retain(|contested| contested.id().starts_with(words));
    if found.is_empty() {
        let failure = CommandError::new(Fault::Failed(ErrorKind::NotFound), format!("there is no conflict {words:?}"));
        return Err(failure.hint("see `walvault conflict list --all`"));
    }
    Ok(found)
}

fn show(cli: &Cli, lane: &Lane, words: &str) -> Result<u8, CommandError> {
    let found = named(lane, words)?;
    let [contested] = found.as_slice() else {
        let text = format!("{} conflicts begin with {words:?}", found.len());
        return Err(CommandError::misuse(text));
    };
    let kept = lane.read_contested(contested)?;
    let archived = lane.read_wal(&contested.name)?;
    let resolution = lane.resolution(contested)?;
    let shown =
        view::owners::Compared { contested, kept: &kept, archived: archived.as_ref(), resolution, lane: lane.facts() };
    if cli.json {
        output::print_json(&shown.json());
    } else {
        output::print(&shown.text());
    }
    Ok(0)
}

fn decide(cli: &Cli, lane: &Lane, words: &str, decision: Decision) -> Result<u8, CommandError> {
    let mut done = Vec::new();
    for contested in named(lane, words)? {
        decide_on(lane, &contested, decision, &context::host())?;
        done.push(contested.id());
    }
    let word = view::owners::decision(decision);
    if cli.json {
        output::print_json(&serde_json::json!({ "decision": word, "conflicts": done }));
    } else {
        done.iter().for_each(|id| output::print(&format!("{word} {id}\n")));
    }
    Ok(0)
}
