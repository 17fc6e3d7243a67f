//! The command line: the only place for stdout, exit statuses and the environment.

mod agent;
mod backup;
mod backup_source;
mod check;
mod config_files;
mod conflict;
mod context;
mod demo;
pub mod exit;
mod expire;
mod helper;
mod init;
mod install;
mod interrupt;
mod lane;
mod list;
mod log;
mod manual;
mod output;
mod plan;
mod quick;
mod report;
mod restore;
mod status;
mod timelines;
mod verify;
mod wal_backfill;
mod wal_beside;
mod wal_fetch;
mod wal_index;
mod wal_list;
mod wal_push;
mod wal_skip;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::view;
use context::CommandError;
use exit::{Fault, Role};

/// Longest line that `wal push` and `wal fetch` write: it ends in the server's log, every second while things are bad.
const LINE_BYTES: usize = 500;

const FIRST_STEPS: &str = "\
First steps: write the repository's URL into /etc/walvault/<cluster>.toml, then `walvault --cluster <cluster> init`, and \
`check`, which says what the server still needs. `walvault demo` shows a backup and a recovery on a scratch server.";

/// Backup, WAL archiving and point-in-time recovery for PostgreSQL
#[derive(Parser, Debug)]
#[command(name = "walvault", version, max_term_width = 100, after_help = FIRST_STEPS)]
struct Cli {
    /// Repository: file:///directory, s3://bucket/folder or gs://bucket/folder [else WALVAULT_REPO, then the file's repo]
    #[arg(long, global = true, value_name = "URL", help_heading = "Repository")]
    repo: Option<String>,
    /// Name of the cluster, in the repository and of its configuration file [else WALVAULT_CLUSTER]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Repository")]
    cluster: Option<String>,
    /// Configuration file [default: /etc/walvault/<cluster>.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Repository")]
    config: Option<PathBuf>,
    /// Lane to use where the cluster has more than one
    #[arg(long, global = true, value_name = "LANE", help_heading = "Repository")]
    lane: Option<String>,
    /// Print JSON on stdout
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// Say on stderr how many requests were made of the store, and the bytes of them
    #[arg(long, short, global = true, help_heading = "Output")]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Init(init::InitArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Backup(backup::BackupArgs),
    List(list::ListArgs),
    Show(list::ShowArgs),
    Timelines(timelines::TimelinesArgs),
    Plan(plan::PlanArgs),
    Restore(Box<restore::RestoreArgs>),
    Config(config_files::ConfigArgs),
    Report(report::ReportArgs),
    Verify(verify::VerifyArgs),
    Expire(expire::ExpireArgs),
    Pin(expire::PinArgs),
    Unpin(expire::UnpinArgs),
    Forget(expire::ForgetArgs),
    /// Archive, fetch and list WAL
    #[command(subcommand)]
    Wal(WalCommand),
    #[command(subcommand)]
    Lane(lane::LaneArgs),
    #[command(subcommand)]
    Conflict(conflict::ConflictArgs),
    Agent(agent::AgentArgs),
    Demo(demo::DemoArgs),
    Install(install::InstallArgs),
    Completions(manual::CompletionsArgs),
    // For whoever packages walvault.
    #[command(hide = true)]
    Man(manual::ManArgs),
    // For `wal push` and `wal fetch`.
    #[command(hide = true)]
    Helper(helper::HelperArgs),
}

#[derive(Subcommand, Debug)]
enum WalCommand {
    Push(wal_push::PushArgs),
    Fetch(wal_fetch::FetchArgs),
    List(wal_list::ListArgs),
    Show(wal_list::ShowArgs),
    Skip(wal_skip::SkipArgs),
    Index(wal_index::IndexArgs),
}

/// Returns the command line's definition: what may be written, without running it.
pub fn definition() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs one command and returns its exit status.
pub fn main(arguments: Vec<OsString>) -> i32 {
    // First of all, so that whatever fails below is reported in the words of whoever called.
    let role = Role::of(&arguments);
    quiet_panics();
    survive_signals(role);
    let outcome = std::panic::catch_unwind(|| run(&arguments, role));
    let status = match outcome {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            output::error(&error, role);
            exit::failure(role, error.fault)
        }
        Err(_) => exit::failure(role, Fault::Panic),
    };
    i32::from(status)
}

fn run(arguments: &[OsString], role: Role) -> Result<u8, CommandError> {
    let parsed = quick::parse(arguments).map_or_else(|| Cli::try_parse_from(arguments), Ok);
    let cli = match parsed {
        Ok(cli) => cli,
        // `--help` and `--version` are errors to clap and a success to whoever asked.
        Err(shown) if !shown.use_stderr() => {
            output::print(&shown.render().to_string());
            return Ok(if matches!(role, Role::Fetch(_)) { exit::failure(role, Fault::Usage) } else { 0 });
        }
        Err(error) => return Err(CommandError::usage(&error)),
    };
    let outcome = dispatch(&cli);
    if cli.verbose {
        output::complain(&format!("walvault: {}", view::requests::text(&context::requests(), &context::traffic())));
    }
    outcome
}

fn dispatch(cli: &Cli) -> Result<u8, CommandError> {
    match &cli.command {
        Command::Init(args) => init::run(cli, args),
        Command::Check(args) => check::run(cli, args),
        Command::Status(args) => status::run(cli, args),
        Command::Wal(WalCommand::Push(args)) => wal_push::run(cli, args),
        Command::Wal(WalCommand::Fetch(args)) => wal_fetch::run(cli, args),
        Command::Wal(WalCommand::List(args)) => wal_list::list(cli, args),
        Command::Wal(WalCommand::Show(args)) => wal_list::show(cli, args),
        Command::Wal(WalCommand::Index(args)) => wal_index::run(cli, args),
        Command::Wal(WalCommand::Skip(args)) => wal_skip::run(cli, args),
        Command::Conflict(args) => conflict::run(cli, args),
        Command::Lane(args) => lane::run(cli, args),
        Command::Backup(args) => backup::run(cli, args),
        Command::List(args) => list::list(cli, args),
        Command::Show(args) => list::show(cli, args),
        Command::Config(args) => config_files::run(cli, args),
        Command::Timelines(args) => timelines::run(cli, args),
        Command::Verify(args) => verify::run(cli, args),
        Command::Expire(args) => expire::expire(cli, args),
        Command::Pin(args) => expire::pin(cli, args),
        Command::Unpin(args) => expire::unpin(cli, args),
        Command::Forget(args) => expire::forget(cli, args),
        Command::Plan(args) => plan::run(cli, args),
        Command::Report(args) => report::run(cli, args),
        Command::Restore(args) => restore::run(cli, args),
        Command::Agent(args) => agent::run(cli, args),
        Command::Demo(args) => demo::run(cli, args),
        Command::Install(args) => install::run(cli, args),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
        Command::Helper(args) => helper::run(cli, args),
    }
}

/// Leaves with a status where dying of a signal would say more than it should. An abort counts too: no memory is left, or a
/// panic met another.
fn survive_signals(role: Role) {
    use signal_hook::consts::{SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let Some(status) = exit::on_signal(role) else { return };
    let always = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    for signal in [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGABRT] {
        let always = std::sync::Arc::clone(&always);
        if let Err(error) = signal_hook::flag::register_conditional_shutdown(signal, i32::from(status), always) {
            output::complain(&format!("walvault: warning: signal {signal} is not caught: {error}"));
        }
    }
}

/// A panic is one line, like every other failure.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
        let line = format!("walvault: error: internal error{place}: {text}; please report it");
        output::complain(&crate::error::cut(line, LINE_BYTES - 1));
    }));
}
