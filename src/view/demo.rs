//! The demonstration, told line by line, at most a hundred columns wide.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::human;
use crate::workflow::demo::{DemoFailure, Proof, Scene, Step, Summary, archiving_lines};

/// Whether the reader is a terminal that likes colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Words only.
    Plain,
    /// Bold, dim and green.
    Colours,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        match self {
            Paint::Plain => text.to_owned(),
            Paint::Colours => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn cyan(self, text: &str) -> String {
        self.with("36", text)
    }

    fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    fn red(self, text: &str) -> String {
        self.with("31", text)
    }
}

const INDENT: &str = "  ";
/// What a command says stands under its first word.
const DEEPER: &str = "    ";
const WIDTH: usize = 100;

/// Returns what happened, as lines.
pub fn text(scene: &Scene<'_>, paint: Paint) -> String {
    match scene {
        Scene::Opening { version, programs, directory, user } => {
            let user = user.map_or_else(String::new, |user| format!(" as user {user}"));
            let title = paint.bold("walvault demo: a bank, an accident, and the way back");
            let server = format!("PostgreSQL {version} from {}", programs.display());
            let place = format!("runs{user} in {}", directory.display());
            format!("{title}\n{}\n{}\n", paint.dim(&server), paint.dim(&place))
        }
        Scene::Step(step) => format!("\n{}\n", paint.bold(&format!("{}. {}", step.number(), title(*step)))),
        Scene::Command(line) => typed(line, paint),
        Scene::Statement(statement) => format!("{INDENT}{}\n", paint.cyan(&format!("sql> {statement}"))),
        Scene::Output(output) => indented(output),
        Scene::Configured(lines) => {
            let named = format!("{INDENT}in postgresql.conf:\n");
            lines.iter().fold(named, |text, line| text + &format!("{DEEPER}{}\n", paint.cyan(line)))
        }
        Scene::Paid { payments, of } => {
            format!("{INDENT}{} payments made, {} in all\n", human::count(*payments), human::count(*of))
        }
        Scene::RestorePoint { name, at } => format!("{INDENT}restore point {name} at {at}\n"),
        Scene::Before { evidence, at } => format!(
            "{INDENT}{} payments worth {}; the log stands at {at}; then somebody types:\n",
            human::count(evidence.payments),
            human::amount(&evidence.total)
        ),
        Scene::Proven(proof) => format!("{INDENT}{} {}\n", paint.green("✓"), proven(proof)),
    }
}

fn title(step: Step) -> &'static str {
    match step {
        Step::Server => "A new server archives into a new repository",
        Step::Backup => "Business as usual, and a base backup",
        Step::Traffic => "More business; every full WAL segment goes to the archive",
        Step::Accident => "The accident",
        Step::Catalogue => "What does the repository hold, and what can be had back?",
        Step::Rescue => "Back to just before the accident",
        Step::Standby => "A standby, from the same repository",
    }
}

fn proven(proof: &Proof<'_>) -> String {
    match proof {
        Proof::Up { segment_bytes, elapsed } => format!(
            "the server is up, with checksums and segments of {}, after {}",
            human::bytes(*segment_bytes),
            human::duration(*elapsed)
        ),
        Proof::Archiving { segments } => {
            format!("{segments} files archived meanwhile, and archive_command has not failed once")
        }
        Proof::Archived { segments } => {
            format!("the server is stopped, and all it wrote is archived: {segments} segments, no hole")
        }
        Proof::Rows(evidence) => format!(
            "the table is back: {} payments worth {}, and row by row what they were",
            human::count(evidence.payments),
            human::amount(&evidence.total)
        ),
        Proof::Books { accounts } => {
            format!("the books agree: {} balances, each what its payments make it", human::count(*accounts))
        }
        Proof::Streaming => "the standby streams from the rescued server".to_owned(),
        Proof::Followed { payment, after } => format!(
            "payment {}, made on the primary, is on the standby after {}",
            human::count(*payment),
            milliseconds(*after)
        ),
        Proof::SameRows(evidence) => format!(
            "the same rows on both: {} payments worth {}",
            human::count(evidence.payments),
            human::amount(&evidence.total)
        ),
    }
}

/// Output under its command; what is wider than the page ends in `…`.
fn indented(output: &str) -> String {
    let fitting = |line: &str| match line.char_indices().nth(WIDTH - DEEPER.len() - 1) {
        Some((end, last)) if end + last.len_utf8() < line.len() => format!("{}…", &line[..end]),
        _ => line.to_owned(),
    };
    output.trim_end().lines().map(|line| format!("{DEEPER}{}\n", fitting(line))).collect()
}

/// A command, folded between its words as people fold long ones.
fn typed(line: &str, paint: Paint) -> String {
    let mut lines = vec![String::from("$")];
    for word in words(line) {
        let last = lines.last_mut().expect("never empty");
        if INDENT.len() + last.chars().count() + 1 + word.chars().count() + " \\".len() <= WIDTH {
            last.push_str(&format!(" {word}"));
        } else {
            last.push_str(" \\");
            lines.push(format!("{DEEPER}{word}"));
        }
    }
    lines.iter().map(|line| format!("{INDENT}{}\n", paint.cyan(line))).collect()
}

/// The words of a command line; blanks within quotes do not part them, and an option keeps its value.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut quoted = false;
    for part in line.split(' ') {
        let is_value = !part.starts_with('-')
            && words.last().is_some_and(|last| last.starts_with("--") && !last.contains([' ', '=']));
        match words.last_mut() {
            Some(last) if quoted || is_value => last.push_str(&format!(" {part}")),
            _ => words.push(part.to_owned()),
        }
        quoted ^= part.matches('\'').count() % 2 == 1;
    }
    words
}

fn milliseconds(duration: Duration) -> String {
    match duration.as_millis() {
        few @ 0..1000 => format!("{} ms", few.max(1)),
        _ => human::duration(duration),
    }
}

/// Returns the closing lines; `kept` is the scratch directory if it stays.
pub fn summary_text(summary: &Summary, kept: Option<&Path>, paint: Paint) -> String {
    let (bytes, stored) = summary.wal;
    let rows = [
        (
            "backup",
            format!(
                "{} stored in {}, in {}",
                human::bytes(summary.backup.bytes),
                human::bytes(summary.backup.stored_bytes),
                human::duration(summary.backup.elapsed)
            ),
        ),
        (
            "archive",
            format!("{} segments: {} stored in {}", summary.segments, human::bytes(bytes), human::bytes(stored)),
        ),
        (
            "rescue",
            format!(
                "{} payments back, none lost, in {}",
                human::count(summary.rescued.payments),
                human::duration(summary.rescue)
            ),
        ),
        (
            "standby",
            format!("streaming in {}, {} behind", human::duration(summary.standby), milliseconds(summary.followed)),
        ),
    ];
    let done = format!("Every proof held, in {}", human::duration(summary.elapsed));
    let mut text = format!("\n{} {}\n", paint.green("✓"), paint.bold(&done));
    rows.iter().for_each(|(name, value)| text.push_str(&format!("{INDENT}{name:<10}{value}\n")));
    text.push_str(&take_away(summary, paint));
    text.push_str(&match kept {
        Some(directory) => format!("\nServers stopped, files kept in {}\n", directory.display()),
        None => "\nServers and files of this demonstration are gone.\n".to_owned(),
    });
    text
}

fn take_away(summary: &Summary, paint: Paint) -> String {
    const GLOBALS: &str = " --repo file:///backups --cluster main";
    let moment = summary.accident.format("%Y-%m-%d %H:%M:%S+00");
    let restore = format!("walvault{GLOBALS} restore DIR --to-time '{moment}' --as primary --start");
    let mut text = format!("\n{INDENT}For postgresql.conf, after `walvault{GLOBALS} init`:\n");
    for line in archiving_lines("/usr/bin/walvault", GLOBALS) {
        text.push_str(&format!("{DEEPER}{}\n", paint.cyan(&line)));
    }
    text + &format!("\n{INDENT}For the day of the accident:\n{}", typed(&restore, paint))
}

/// Returns the servers' last words, for a story that ended early.
pub fn failure_text(failure: &DemoFailure, paint: Paint) -> String {
    let mut text = String::new();
    if let Some(step) = failure.step {
        text.push_str(&format!("\n{}\n", paint.red(&format!("step {} failed: {}", step.number(), title(step)))));
    }
    for (name, log) in &failure.logs {
        text.push_str(&format!("{INDENT}last lines of the log of {name}:\n{}", indented(log)));
    }
    text
}

/// Returns the end for programs.
pub fn summary_json(summary: &Summary) -> Value {
    json!({
        "server_version": summary.version,
        "elapsed_ms": summary.elapsed.as_millis() as u64,
        "backup_bytes": summary.backup.bytes,
        "backup_stored_bytes": summary.backup.stored_bytes,
        "backup_ms": summary.backup.elapsed.as_millis() as u64,
        "wal_segments": summary.segments,
        "wal_bytes": summary.wal.0,
        "wal_stored_bytes": summary.wal.1,
        "rescue_ms": summary.rescue.as_millis() as u64,
        "rescued_payments": summary.rescued.payments,
        "standby_ms": summary.standby.as_millis() as u64,
        "standby_behind_ms": summary.followed.as_millis() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_folded_between_options_and_never_within_quotes() {
        let line = "walvault restore standby --as standby --primary-conninfo 'host=/tmp/walvault-demo-4711/run \
                    port=5432 user=postgres' --start";
        assert_eq!(
            typed(line, Paint::Plain),
            "  $ walvault restore standby --as standby \\\n      --primary-conninfo 'host=/tmp/walvault-demo-4711/run \
             port=5432 user=postgres' --start\n"
        );
        assert_eq!(typed("walvault list", Paint::Plain), "  $ walvault list\n");
    }

    #[test]
    fn wide_output_is_cut_at_the_page_and_no_character_is_split() {
        let fits = "ö".repeat(96);
        assert_eq!(indented(&fits), format!("    {fits}\n"));
        let cut = indented(&format!("{fits}ö"));
        assert_eq!((cut.chars().count(), cut.ends_with("ö…\n")), (101, true), "{cut}");
    }

    #[test]
    fn colours_are_for_terminals_only() {
        let scene = Scene::Step(Step::Accident);
        assert_eq!(text(&scene, Paint::Plain), "\n4. The accident\n");
        assert_eq!(text(&scene, Paint::Colours), "\n\x1b[1m4. The accident\x1b[0m\n");
    }
}
