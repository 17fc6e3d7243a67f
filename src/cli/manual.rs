//! `walvault completions` and `walvault man`: what the command line says of itself, for shells and for `man`.

use std::path::PathBuf;

use super::context::CommandError;
use super::exit::Fault;
use super::output;
use crate::error::ErrorKind;

/// Print a shell's completions
///
/// For bash: `walvault completions bash > /usr/share/bash-completion/completions/walvault`. Exits 0.
#[derive(clap::Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Shells whose completions are tested.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Write the manual's pages, one a command
///
/// Exits 0 once all are written.
#[derive(clap::Args, Debug)]
pub(super) struct ManArgs {
    /// Where to; the directory must exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<u8, CommandError> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::definition(), "walvault", &mut script);
    output::print(&String::from_utf8_lossy(&script));
    Ok(0)
}

pub(super) fn man(args: &ManArgs) -> Result<u8, CommandError> {
    clap_mangen::generate_to(super::definition(), &args.directory).map_err(|source| {
        let error = format!("write the manual into {}: {source}", args.directory.display());
        CommandError::new(Fault::Failed(ErrorKind::Unavailable), error)
    })?;
    Ok(0)
}
