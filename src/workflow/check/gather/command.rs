//! What a server's command runs, taken apart without running it.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Inputs;
use crate::pg::shell_command::{self, ShellLine, SimpleCommand};
use crate::workflow::check::facts::{Binary, CommandFacts, Joined, WalvaultCall};
use crate::workflow::check::{EXAMPLE_FILE, EXAMPLE_PATH};

/// Reads a command as a server with this environment, in this directory, would run it; `None` stands for what is not
/// ours to know.
pub(super) fn read(
    text: &str,
    inputs: &Inputs<'_>,
    environment: Option<BTreeMap<String, String>>,
    directory: Option<&Path>,
) -> CommandFacts {
    if text.trim().is_empty() {
        return CommandFacts::Unset;
    }
    let line = shell_command::parse(&shell_command::fill_in(text, EXAMPLE_PATH, EXAMPLE_FILE));
    let joined = match &line {
        ShellLine::Opaque(reason) => return CommandFacts::Opaque(reason),
        ShellLine::Simple(_) => Joined::Alone,
        ShellLine::Joined { hides_failure: true, .. } => Joined::Hiding,
        ShellLine::Joined { hides_failure: false, .. } => Joined::Honest,
    };
    let path = environment.as_ref().and_then(|variables| variables.get("PATH")).map_or("/usr/bin:/bin", String::as_str);
    let find = |word: &str| locate(word, path, directory);
    let is_ours = |word: &String| {
        Path::new(word).file_name().is_some_and(|name| name == "walvault")
            || find(word).is_some_and(|path| is_same(&path, &inputs.program))
    };
    let found = line.commands().iter().find_map(|command| Some((command, command.words.iter().position(is_ours)?)));
    let Some((command, at)) = found else { return other(line.commands(), find) };

    let mut variables = environment.clone().unwrap_or_default();
    variables.extend(command.assignments.iter().cloned());
    let wrapper = wrapper(&command.words[..at], &mut variables);
    let understood = (inputs.understand)(&command.words[at..], &variables);
    if environment.is_none() && understood.as_ref().is_ok_and(|understood| understood.destination.is_err()) {
        return CommandFacts::Opaque("it takes its repository from the server's environment, which cannot be read");
    }
    let program = command.words[at].clone();
    let binary = match find(&program) {
        None => Binary::Missing,
        Some(path) if is_same(&path, &inputs.program) => Binary::This,
        Some(path) if !is_executable(&path) => Binary::NotExecutable,
        Some(path) => Binary::Other { path },
    };
    CommandFacts::Walvault(WalvaultCall { program, binary, wrapper, joined, understood })
}

/// Returns the program that runs walvault, if it is one whose own failures could be taken for walvault's. `exec` and `env`
/// give way to what they run.
fn wrapper(before: &[String], variables: &mut BTreeMap<String, String>) -> Option<String> {
    let name = |word: &String| Path::new(word).file_name().map(|name| name.to_string_lossy().into_owned());
    let mut words = before.iter().filter(|word| !matches!(name(word).as_deref(), Some("exec" | "env")));
    let rest: Vec<&String> = words
        .by_ref()
        .filter(|word| match word.split_once('=') {
            Some((variable, value)) if !variable.contains('/') && !variable.starts_with('-') => {
                variables.insert(variable.to_owned(), value.to_owned());
                false
            }
            _ => true,
        })
        .collect();
    rest.first().map(|word| (*word).clone())
}

/// Says what runs in walvault's place; a script may run anything.
fn other(commands: &[SimpleCommand], find: impl Fn(&str) -> Option<PathBuf>) -> CommandFacts {
    let programs = || commands.iter().filter_map(|command| command.words.first());
    if programs().any(|program| find(program).is_some_and(|path| is_script(&path))) {
        return CommandFacts::Opaque("it runs a script");
    }
    match programs().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => CommandFacts::Opaque("it only sets variables"),
        programs => CommandFacts::Other { program: programs.join(", ") },
    }
}

fn locate(word: &str, path: &str, directory: Option<&Path>) -> Option<PathBuf> {
    if word.contains('/') {
        let path = directory.map_or_else(|| PathBuf::from(word), |directory| directory.join(word));
        return path.exists().then_some(path);
    }
    path.split(':').map(|folder| Path::new(folder).join(word)).find(|path| path.is_file() && is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"#!"
}

/// Whether two paths are one file, or files of the same bytes that can both be run.
fn is_same(one: &Path, other: &Path) -> bool {
    let (Ok(a), Ok(b)) = (std::fs::metadata(one), std::fs::metadata(other)) else { return false };
    if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
        return true;
    }
    a.len() == b.len() && is_executable(one) && same_bytes(one, other).unwrap_or(false)
}

fn same_bytes(one: &Path, other: &Path) -> std::io::Result<bool> {
    let (mut one, mut other) = (std::fs::File::open(one)?, std::fs::File::open(other)?);
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = one.read(&mut a)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..read])?;
        if a[..read] != b[..read] {
            return Ok(false);
        }
    }
}
