//! `walvault check`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::context::{self, CommandError, libpq_environment};
use super::{Cli, Command, WalCommand, exit, output};
use crate::config::{Given, Settings};
use crate::error;
use crate::instance::ConnectionSettings;
use crate::view;
use crate::workflow::check::{
    CalledVerb, ConfigFacts, Destination, Inputs, Understood, Unknown, decide, gather, worst,
};

/// Check archiving, backups and restores, and say how to mend what is wrong
///
/// Runs on the server's host, as the server's user; also on a standby and with the server down. Writes a few scratch
/// objects into the repository and deletes them; ends a WAL segment and reads it back, unless --no-switch is given.
/// Exits 0 if all is well, 1 if something wants mending, 2 if something fails, 64 for a wrong command line. What
/// could not be checked does not count.
#[derive(clap::Args, Debug)]
pub(super) struct CheckArgs {
    /// Data directory [default: the setting pgdata, then where the server says]
    #[arg(long, value_name = "DIR")]
    pgdata: Option<PathBuf>,
    /// Connection string or URI [default: libpq's variables, then the server in --pgdata]
    #[arg(long, value_name = "CONN")]
    dbname: Option<String>,
    /// End no WAL segment
    #[arg(long)]
    no_switch: bool,
    /// Seconds to wait for the segment to be archived
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Give every sound finding a line of its own
    #[arg(long)]
    all: bool,
}

pub(super) fn run(cli: &Cli, args: &CheckArgs) -> Result<u8, CommandError> {
    let settings = context::lenient_settings(cli);
    let config = match &settings {
        Ok(settings) => Ok(ConfigFacts {
            file: settings.file.clone(),
            destination: destination(settings),
            call: call(cli, settings),
            unknown: settings.unknown.clone(),
        }),
        Err(error) => Err(Unknown::failed(error::chain(error.error.as_ref()).to_string())),
    };
    let settings = settings.ok();
    let data_directory = args.pgdata.clone().or_else(|| settings.as_ref().and_then(Settings::data_directory));
    let environment = libpq_environment();
    let said = args.dbname.is_some() || environment.host.is_some() || data_directory.is_none();
    let connection = ConnectionSettings::resolve(args.dbname.as_deref(), &environment, data_directory.as_deref());
    let inputs = Inputs {
        config,
        store: settings
            .as_ref()
            .map(|settings| (settings.url.clone(), settings.access.clone(), settings.retry_policy(context::PATIENT))),
        data_directory,
        connection: connection.map(|found| (found, said)).map_err(|error| error::chain(&error).to_string()),
        program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
        uid: rustix::process::geteuid().as_raw(),
        user_name: &context::user_name,
        writer: &|server| settings.as_ref().map(|settings| context::writer(server, settings)),
        agent: &|| settings.as_ref().map(|settings| context::agent(settings).listener()),
        understand: &understand,
        standby_agent: settings.as_ref().is_some_and(agent_pushes_from_standby),
        policy: settings.as_ref().map(Settings::retention),
        round_trip: (!args.no_switch).then(|| Duration::from_secs(args.timeout)),
        opened: &context::remember,
    };
    let findings = decide(&gather(&inputs));
    if cli.json {
        output::print_json(&view::check::json(&findings));
    } else {
        output::print(&view::check::text(&findings, output::width(), args.all));
    }
    Ok(exit::judged(worst(&findings)))
}

/// Whether an agent answers that knows, by the same settings, of a data directory.
fn agent_pushes_from_standby(settings: &Settings) -> bool {
    settings.data_directory().is_some() && context::agent(settings).finds_resident()
}

/// This program with the options that were given, for mends to repeat.
fn call(cli: &Cli, settings: &Settings) -> String {
    let program = std::env::current_exe().map_or_else(|_| "walvault".to_owned(), |path| path.display().to_string());
    let options = [("--repo", cli.repo.clone()), ("--cluster", Some(settings.cluster.clone()))];
    let config = ("--config", cli.config.as_ref().map(|path| path.display().to_string()));
    let words = options.into_iter().chain([config]).filter_map(|(option, value)| Some([option.to_owned(), value?]));
    let words = std::iter::once(program).chain(words.flatten());
    words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
}

/// Writes a word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+=@,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("\"{}\"", word.replace(['\\', '"', '$', '`'], "?")),
    }
}

fn destination(settings: &Settings) -> Destination {
    Destination { repository: settings.url.to_string(), cluster: settings.cluster.clone() }
}

/// Reads a command line as this program would if a server ran it with these variables.
fn understand(words: &[String], environment: &BTreeMap<String, String>) -> Result<Understood, String> {
    let called = Cli::try_parse_from(words).map_err(|error| {
        let text = CommandError::usage(&error).error.to_string();
        text.lines().next().unwrap_or_default().to_owned()
    })?;
    let (verb, files) = match &called.command {
        Command::Wal(WalCommand::Push(args)) => (CalledVerb::Push, args.files()),
        Command::Wal(WalCommand::Fetch(args)) => (CalledVerb::Fetch, args.files()),
        _ => (CalledVerb::Other, Vec::new()),
    };
    let own =
        |(name, value): (&String, &String)| Some((name.strip_prefix("WALVAULT_")?.to_ascii_lowercase(), value.clone()));
    let given = Given {
        repository: called.repo.as_deref(),
        cluster: called.cluster.as_deref(),
        file: called.config.as_deref(),
        environment: environment.iter().filter_map(own).collect(),
        clouds: environment.clone(),
    };
    let settings = Settings::gather(&given, false);
    let destination = settings.map(|settings| destination(&settings)).map_err(|error| error::chain(&error).to_string());
    Ok(Understood { verb, files, destination })
}
