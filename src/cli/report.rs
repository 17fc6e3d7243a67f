//! `walvault report`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::Cli;
use super::context::{self, CommandError, PATIENT, repository, settings};
use super::exit::Fault;
use super::output;
use crate::clock;
use crate::error::{self, ErrorKind};
use crate::restore::{SurveyError, chronicle, reach};
use crate::view;
use crate::view::report::{LaneReport, MARK, Report};

/// Write a page that shows what can be restored, and when what happened
///
/// One HTML file that needs nothing else: timelines on an axis of time, the stretches that can be restored, backups, holes,
/// restore points, dropped and truncated tables. Exits 0, or 1 if the repository cannot be read, if something in it is not
/// known, or if FILE holds something else than a report.
#[derive(clap::Args, Debug)]
pub(super) struct ReportArgs {
    /// File to write, over an older report if there is one [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(cli: &Cli, args: &ReportArgs) -> Result<u8, CommandError> {
    let settings = settings(cli)?;
    if let Some(file) = &args.output {
        may_be_written(file)?;
    }
    let repository = repository(&settings, PATIENT)?;
    let mut lanes = Vec::new();
    for catalogue in context::catalogues(cli, &repository)? {
        let Some(lane) = repository.lane(catalogue.lane)? else { continue };
        let mut problems = Vec::new();
        let mut known = |what: &str, problem: SurveyError| {
            let problem = format!("{what} is unknown: {}", error::chain(&problem));
            output::complain(&problem);
            problems.push(problem);
        };
        let reached = reach(&lane, &catalogue).map_err(|problem| known("what can be restored", problem)).ok();
        let told = chronicle(&lane, &catalogue).map_err(|problem| known("what happened", problem)).unwrap_or_default();
        let contested = lane.contested()?;
        lanes.push(LaneReport { catalogue, reached, chronicles: told, contested, problems });
    }
    let report = Report {
        cluster: settings.cluster.clone(),
        repository: settings.url.to_string(),
        made_at: clock::now(),
        lanes,
    };
    let text = match cli.json {
        true => format!("{:#}\n", view::report::json(&report)),
        false => view::report::html(&report),
    };
    match &args.output {
        Some(file) => put(file, &text).map_err(|problem| failed(file, &problem))?,
        None => output::print(&text),
    }
    Ok(u8::from(report.lanes.iter().any(|lane| !lane.problems.is_empty())))
}

/// Refuses a file that is not a report of ours: a slip of the hand must not cost one.
fn may_be_written(file: &Path) -> Result<(), CommandError> {
    let mut start = Vec::new();
    let read = File::open(file).and_then(|file| file.take(MARK.len() as u64).read_to_end(&mut start));
    match read {
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(problem) => Err(failed(file, &problem)),
        Ok(_) if start == MARK.as_bytes() || start.is_empty() || start.starts_with(JSON_MARK) => Ok(()),
        Ok(_) => {
            let text = format!("{} holds something else than a report, and is left as it is", file.display());
            Err(CommandError::new(Fault::Failed(ErrorKind::Conflict), text).hint("give another --output"))
        }
    }
}

/// How a report for programs begins.
const JSON_MARK: &[u8] = b"{\n  \"cluster\": ";

/// Writes a file whole or not at all: whoever reads it meanwhile has the old one.
fn put(file: &Path, text: &str) -> io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = OpenOptions::new().write(true).create_new(true).open(&beside).and_then(|mut new| {
        new.write_all(text.as_bytes())?;
        new.sync_all()
    });
    let placed = written.and_then(|()| std::fs::rename(&beside, file));
    if placed.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    placed
}

fn failed(file: &Path, problem: &io::Error) -> CommandError {
    let kind = match problem.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::StorageFull => ErrorKind::Full,
        _ => ErrorKind::Unavailable,
    };
    CommandError::new(Fault::Failed(kind), format!("write {}: {problem}", file.display()))
}
