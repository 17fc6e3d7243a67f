//! `archive_command` and `restore_command`.

use super::with;
use crate::workflow::check::facts::{Binary, CalledVerb, CommandFacts, Facts, Joined, Understood, WalvaultCall};
use crate::workflow::check::finding::{Code, Finding};
use crate::workflow::check::{EXAMPLE_FILE, EXAMPLE_PATH};

/// One of the two settings.
struct Setting {
    code: Code,
    name: &'static str,
    verb: CalledVerb,
    command: &'static str,
    files: &'static [&'static str],
}

const ARCHIVE: Setting = Setting {
    code: Code::ArchiveCommand,
    name: "archive_command",
    verb: CalledVerb::Push,
    command: "wal push \"%p\"",
    files: &[EXAMPLE_PATH],
};

const RESTORE: Setting = Setting {
    code: Code::RestoreCommand,
    name: "restore_command",
    verb: CalledVerb::Fetch,
    command: "wal fetch %f \"%p\"",
    files: &[EXAMPLE_FILE, EXAMPLE_PATH],
};

impl Setting {
    /// The line that would be right.
    fn mend(&self, facts: &Facts) -> String {
        let call = facts.config.as_ref().map_or("/usr/bin/walvault --cluster <cluster>", |config| config.call.as_str());
        format!("{} = '{} {}'", self.name, call.replace('%', "%%").replace('\'', "''"), self.command)
    }

    fn fail(&self, facts: &Facts, text: impl Into<String>) -> Finding {
        Finding::fail(self.code, text, self.mend(facts))
    }

    fn warn(&self, facts: &Facts, text: impl Into<String>) -> Finding {
        Finding::warn(self.code, text, self.mend(facts))
    }
}

/// The line of `postgresql.conf` that archives with this program, here.
pub(super) fn archive_line(facts: &Facts) -> String {
    ARCHIVE.mend(facts)
}

pub(super) fn archive_command(facts: &Facts) -> Finding {
    with(Code::ArchiveCommand, &facts.archive_command, "connect as a role that may read it", |command| match command {
        CommandFacts::Unset => ARCHIVE.fail(facts, "archive_command is not set: WAL piles up in pg_wal"),
        CommandFacts::Opaque(reason) => {
            ARCHIVE.warn(facts, format!("archive_command cannot be looked into: {reason}; the round trip decides"))
        }
        CommandFacts::Other { program } => ARCHIVE.fail(facts, format!("archive_command runs {program}, not walvault")),
        CommandFacts::Walvault(call) => walvault(&ARCHIVE, call, facts),
    })
}

pub(super) fn restore_command(facts: &Facts) -> Finding {
    let standby = facts.server.as_ref().is_ok_and(|server| server.in_recovery);
    with(Code::RestoreCommand, &facts.restore_command, "connect as a role that may read it", |command| match command {
        CommandFacts::Unset if standby => {
            let text = "restore_command is not set: this standby cannot catch up from the archive";
            RESTORE.warn(facts, text)
        }
        CommandFacts::Unset => Finding::ok(Code::RestoreCommand, "restore_command not set; a restore writes its own"),
        CommandFacts::Opaque(reason) => {
            let text =
                format!("restore_command cannot be looked into: {reason}; a failure may look like the end of the log");
            RESTORE.warn(facts, text)
        }
        CommandFacts::Other { program } => {
            let text =
                format!("restore_command runs {program}, not walvault: its failures may look like the end of the log");
            RESTORE.warn(facts, text)
        }
        CommandFacts::Walvault(call) => walvault(&RESTORE, call, facts),
    })
}

/// Judges a command that runs walvault: the worst first.
fn walvault(setting: &Setting, call: &WalvaultCall, facts: &Facts) -> Finding {
    let name = setting.name;
    match &call.binary {
        Binary::Missing => return setting.fail(facts, format!("{name} runs {}, which is not there", call.program)),
        Binary::NotExecutable => {
            return setting.fail(facts, format!("{name} runs {}, which cannot be run", call.program));
        }
        Binary::This | Binary::Other { .. } => {}
    }
    let understood = match &call.understood {
        Ok(understood) => understood,
        Err(problem) => return setting.fail(facts, format!("{name} is a call that walvault refuses: {problem}")),
    };
    if let Some(problem) = wrong_call(setting, understood) {
        return setting.fail(facts, format!("{name} {problem}"));
    }
    if let Some(finding) = wrong_place(setting, understood, facts) {
        return finding;
    }
    if let Some(finding) = surroundings(setting, call, facts) {
        return finding;
    }
    match &call.binary {
        Binary::Other { path } => Finding::warn(
            setting.code,
            format!("{name} runs {}, another file than this walvault {}", path.display(), env!("CARGO_PKG_VERSION")),
            "install one version: the other's `--version` tells",
        ),
        _ => {
            let does = if setting.verb == CalledVerb::Push { "pushes" } else { "fetches" };
            Finding::ok(setting.code, format!("{name} {does} with this program, here"))
        }
    }
}

fn wrong_call(setting: &Setting, understood: &Understood) -> Option<String> {
    if understood.verb != setting.verb {
        let wanted = setting.command.split(' ').take(2).collect::<Vec<_>>().join(" ");
        return Some(format!("does not run `{wanted}`"));
    }
    let fits = understood.files.iter().map(String::as_str).eq(setting.files.iter().copied());
    (!fits).then(|| match setting.verb {
        CalledVerb::Push => "does not pass the file on as %p".to_owned(),
        _ => "does not pass name and path on as %f and %p".to_owned(),
    })
}

fn wrong_place(setting: &Setting, understood: &Understood, facts: &Facts) -> Option<Finding> {
    let name = setting.name;
    let called = match &understood.destination {
        Ok(destination) => destination,
        Err(problem) => {
            return Some(setting.fail(facts, format!("{name}, as the server runs it, has no repository: {problem}")));
        }
    };
    let own = &facts.config.as_ref().ok()?.destination;
    if called.cluster != own.cluster {
        let text = format!("{name} is for cluster {}, this check is for {}", called.cluster, own.cluster);
        return Some(setting.fail(facts, text));
    }
    (called.repository != own.repository)
        .then(|| setting.fail(facts, format!("{name} uses {}, this check {}", called.repository, own.repository)))
}

fn surroundings(setting: &Setting, call: &WalvaultCall, facts: &Facts) -> Option<Finding> {
    let name = setting.name;
    let archives = setting.verb == CalledVerb::Push;
    match (call.joined, archives) {
        (Joined::Hiding, true) => {
            let text = format!(
                "{name} can succeed though walvault fails: PostgreSQL would recycle WAL that is stored nowhere"
            );
            return Some(setting.fail(facts, text));
        }
        (Joined::Hiding | Joined::Honest, false) => {
            let text = format!(
                "{name} turns walvault's exit status into another: an outage would look like the end of the log"
            );
            return Some(setting.fail(facts, text));
        }
        (Joined::Honest, true) => {
            let text = format!("{name} runs more than walvault: what else fails stops archiving");
            return Some(setting.warn(facts, text));
        }
        (Joined::Alone, _) => {}
    }
    call.wrapper.as_ref().map(|wrapper| match archives {
        true => setting.warn(facts, format!("{name} runs walvault through {wrapper}, whose exit status counts")),
        false => {
            let text =
                format!("{name} runs walvault through {wrapper}: its own status may look like the end of the log");
            setting.fail(facts, text)
        }
    })
}
