//! `walvault demo`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::Cli;
use super::context::CommandError;
use super::exit::Fault;
use super::output;
use crate::error::ErrorKind;
use crate::view;
use crate::view::demo::Paint;
use crate::workflow::demo::{DemoError, DemoOptions, Scene, demo};

/// Watch backup, accident, recovery and a standby on a scratch server
///
/// Makes a small PostgreSQL server of its own, takes it through a dropped table and back, and proves every step by its
/// rows; nothing else on this machine is touched. Takes less than a minute and leaves nothing behind, also when it is
/// interrupted. Exits 0 only if every proof held, 1 otherwise.
#[derive(clap::Args, Debug)]
pub(super) struct DemoArgs {
    /// Folder of PostgreSQL's programs [default: what pg_config says, then where Debian puts them, then PATH]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Keep the scratch directory, with data directories, logs and repository
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(cli: &Cli, args: &DemoArgs) -> Result<u8, CommandError> {
    if cli.repo.is_some() || cli.cluster.is_some() || cli.config.is_some() || cli.lane.is_some() {
        let text = "demo makes a repository of its own: leave out --repo, --cluster, --config and --lane";
        return Err(CommandError::misuse(text));
    }
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupt))
            .map_err(|error| CommandError::new(Fault::Failed(ErrorKind::Internal), error))?;
    }
    let say = |text: &str| if cli.json { output::complain(text.trim_end_matches('\n')) } else { output::print(text) };
    let paint = paint(if cli.json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() });
    let mut directory = None;
    let told = demo(&options(args)?, &interrupt, &mut |scene| {
        if let Scene::Opening { directory: scratch, .. } = scene {
            directory = Some(scratch.to_owned());
        }
        say(&view::demo::text(&scene, paint));
    });
    let kept = directory.filter(|_| args.keep);
    match told {
        Ok(summary) => {
            say(&view::demo::summary_text(&summary, kept.as_deref(), paint));
            if cli.json {
                output::print_json(&view::demo::summary_json(&summary));
            }
            Ok(0)
        }
        Err(failure) => {
            let interrupted = matches!(failure.source, DemoError::Interrupted);
            if !interrupted {
                output::complain(view::demo::failure_text(&failure, paint).trim_end());
            }
            let hint = match (&failure.source, &kept) {
                (DemoError::Programs(_), _) => Some(
                    "install PostgreSQL (Debian: apt-get install postgresql), or say where it is with --pg-bin".into(),
                ),
                (DemoError::NoPlace { .. }, _) => Some("set TMPDIR to a directory that every user can reach".into()),
                (_, Some(kept)) => Some(format!("everything is kept in {}", kept.display())),
                _ if interrupted => Some("servers and files are gone".into()),
                _ => Some("`walvault demo --keep` leaves servers' logs and files to look at".into()),
            };
            let fault = Fault::Failed(failure.kind());
            Err(CommandError { fault, error: Box::new(failure), hint })
        }
    }
}

fn options(args: &DemoArgs) -> Result<DemoOptions, CommandError> {
    let program = std::env::current_exe().and_then(std::fs::canonicalize);
    let program = program.map_err(|error| CommandError::new(Fault::Failed(ErrorKind::Internal), error))?;
    // A server of the caller's must not be reached by mistake, nor a setting change the story.
    let theirs = |(name, _): &(OsString, OsString)| {
        let name = name.to_string_lossy();
        name.starts_with("PG") || name.starts_with("WALVAULT_") || name.starts_with("LC_")
    };
    Ok(DemoOptions {
        program,
        pg_bin: args.pg_bin.clone(),
        path: std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect(),
        parents: vec![std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")],
        environment: std::env::vars_os().filter(|variable| !theirs(variable)).collect(),
        keep: args.keep,
    })
}

fn paint(terminal: bool) -> Paint {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if terminal && !plain { Paint::Colours } else { Paint::Plain }
}
