//! The program, the server and its settings.

use super::{after, size, with, with_setting};
use crate::workflow::check::facts::{AgentFacts, Facts, Unknown};
use crate::workflow::check::finding::{Code, Finding};

/// Bytes of log that an idle slot may hold before it is worth a word.
const SLOT_HOLDS: u64 = 1 << 30;

pub(super) fn config(facts: &Facts) -> Finding {
    const CODE: Code = Code::Config;
    with(CODE, &facts.config, "give --repo and --cluster, or write /etc/walvault/<cluster>.toml", |config| match config
        .unknown
        .as_slice()
    {
        [] => Finding::ok(
            CODE,
            match &config.file {
                Some(file) => format!("walvault {}, settings of {}", env!("CARGO_PKG_VERSION"), file.display()),
                None => format!("walvault {}, no settings file", env!("CARGO_PKG_VERSION")),
            },
        ),
        [only] => Finding::warn(CODE, only, "correct the name or take the line out"),
        [first, more @ ..] => {
            let text = format!("{first} (and {} more)", more.len());
            Finding::warn(CODE, text, "correct the names or take the lines out")
        }
    })
}

pub(super) fn user(facts: &Facts) -> Finding {
    const CODE: Code = Code::User;
    let name = &facts.user.name;
    match &facts.user.owner {
        None => Finding::ok(CODE, format!("run by {name}")),
        Some(owner) => Finding::warn(
            CODE,
            format!("run by {name}, and the server runs as {owner}: what {name} may do proves nothing"),
            format!("sudo -u {owner} {} check", call(facts)),
        ),
    }
}

pub(super) fn agent(facts: &Facts) -> Finding {
    const CODE: Code = Code::Agent;
    const OURS: &str = env!("CARGO_PKG_VERSION");
    const ALONE: &str = "until then commands do the work themselves";
    after(CODE, &facts.agent, "no repository is set", |agent| match agent {
        AgentFacts::Nobody => Finding::ok(CODE, "no agent listens; commands do the work themselves"),
        AgentFacts::Agent { version: Some(version), ours: true } if version == OURS => {
            Finding::ok(CODE, format!("an agent of walvault {version} answers"))
        }
        AgentFacts::Agent { ours: false, .. } => Finding::warn(
            CODE,
            "the agent serves another cluster or repository",
            format!("give agent and commands the same settings, repo in the same spelling; {ALONE}"),
        ),
        AgentFacts::Agent { version, .. } => {
            let version = version.as_deref().unwrap_or("of an earlier version");
            Finding::warn(
                CODE,
                format!("the agent is walvault {version}, this is {OURS}"),
                format!("restart the agent; {ALONE}"),
            )
        }
        AgentFacts::Stranger => Finding::warn(
            CODE,
            "the agent runs as a user that commands do not believe",
            format!("name that user in agent_users, or run the agent as the server's user; {ALONE}"),
        ),
        AgentFacts::Silent { socket, problem } => Finding::warn(
            CODE,
            format!("what listens on {} does not answer: {problem}", socket.display()),
            format!("look at the agent's log, and restart it; {ALONE}"),
        ),
    })
}

pub(super) fn data_directory(facts: &Facts) -> Finding {
    const CODE: Code = Code::DataDirectory;
    with(CODE, &facts.data, "give --pgdata, on the server's host and as its user", |data| {
        Finding::ok(CODE, format!("{}, system {}", data.path.display(), data.system_id))
    })
}

pub(super) fn server(facts: &Facts) -> Finding {
    const CODE: Code = Code::Server;
    if let (Err(Unknown::NotChecked(reason)), Ok(data)) = (&facts.server, &facts.data) {
        let text = format!("{reason}; what only it can tell is not checked");
        return Finding::warn(
            CODE,
            text,
            format!("start it, or say with --dbname where it is: {}", data.path.display()),
        );
    }
    let mend = "check PGHOST, PGPORT, PGUSER or --dbname, and pg_hba.conf";
    with(CODE, &facts.server, mend, |server| {
        let other = facts.data.as_ref().ok().filter(|data| server.system_id.is_some_and(|id| id != data.system_id));
        if let Some(data) = other {
            let text = format!("{} is another server than the one of {}", facts.target, data.path.display());
            return Finding::fail(CODE, text, "let --dbname and --pgdata name one server");
        }
        if server.version_number < 130_000 {
            let text = format!("PostgreSQL {} is older than walvault supports", server.version);
            return Finding::fail(CODE, text, "upgrade the server to 13 or newer");
        }
        let kind = if server.in_recovery { "standby" } else { "primary" };
        Finding::ok(CODE, format!("PostgreSQL {}, {kind}, at {}", first_word(&server.version), facts.target))
    })
}

/// How this program is called.
pub(super) fn call(facts: &Facts) -> &str {
    facts.config.as_ref().map_or("walvault", |config| config.call.as_str())
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or(text)
}

pub(super) fn pooler(facts: &Facts) -> Finding {
    const CODE: Code = Code::Pooler;
    let mend = "connect to the server itself: its own port, or its socket, with --dbname or PGHOST and PGPORT";
    with(CODE, &facts.between, mend, |between| {
        if let Some(version) = &between.pgpool {
            return Finding::fail(CODE, format!("{} is pgpool {version}, not the server", facts.target), mend);
        }
        if between.process_changed {
            let text = format!("{} gives every transaction another server process: a pooler", facts.target);
            return Finding::fail(CODE, text, mend);
        }
        match between.options_lost {
            true => {
                let text =
                    format!("{} keeps the connection's options to itself: a pooler, such as PgBouncer", facts.target);
                Finding::fail(CODE, text, mend)
            }
            false => Finding::ok(CODE, "no pooler between"),
        }
    })
}

pub(super) fn privileges(facts: &Facts) -> Finding {
    const CODE: Code = Code::Privileges;
    with(CODE, &facts.rights, "connect as a role that may read the catalogues", |rights| {
        let role = facts.server.as_ref().map_or("the role", |server| server.role.as_str());
        let grants: Vec<String> = rights
            .missing_functions
            .iter()
            .map(|function| format!("grant execute on function {function} to {role};"))
            .collect();
        if !grants.is_empty() {
            let text = format!("{role} cannot take backups: it may not call {}", rights.missing_functions.join(", "));
            return Finding::fail(CODE, text, grants.join(" "));
        }
        if !rights.all_settings {
            let text = format!("{role} may not read every setting; a backup needs data_directory");
            return Finding::fail(CODE, text, format!("grant pg_read_all_settings to {role};"));
        }
        if !rights.switch_wal {
            let text = format!("{role} may take backups, and may not call pg_switch_wal()");
            return Finding::warn(CODE, text, format!("grant execute on function pg_switch_wal() to {role};"));
        }
        Finding::ok(CODE, format!("{role} may take backups and end segments"))
    })
}

pub(super) fn wal_level(facts: &Facts) -> Finding {
    const CODE: Code = Code::WalLevel;
    with_setting(CODE, facts, "wal_level", |value| match value {
        "minimal" => Finding::fail(
            CODE,
            "wal_level = minimal leaves out what a recovery needs",
            "set wal_level = replica, restart, and take a backup",
        ),
        value => Finding::ok(CODE, format!("wal_level {value}")),
    })
}

/// A setting that ought to be on.
fn ought_to_be_on(code: Code, facts: &Facts, name: &str, why: &str, mend: &str) -> Finding {
    with_setting(code, facts, name, |value| match value {
        "on" => Finding::ok(code, format!("{name} on")),
        value => Finding::warn(code, format!("{name} = {value}: {why}"), mend),
    })
}

pub(super) fn full_page_writes(facts: &Facts) -> Finding {
    let why = "a crash can leave torn pages, which every later backup copies";
    ought_to_be_on(Code::FullPageWrites, facts, "full_page_writes", why, "set full_page_writes = on and reload")
}

pub(super) fn fsync(facts: &Facts) -> Finding {
    let why = "a crash of the host can lose or damage data that was committed";
    ought_to_be_on(Code::Fsync, facts, "fsync", why, "set fsync = on and reload")
}

pub(super) fn checksums(facts: &Facts) -> Finding {
    let why = "a backup cannot tell a damaged page from a sound one";
    let mend = "stop the server cleanly, run pg_checksums --enable, start it";
    ought_to_be_on(Code::Checksums, facts, "data_checksums", why, mend)
}

pub(super) fn wal_senders(facts: &Facts) -> Finding {
    const CODE: Code = Code::WalSenders;
    with_setting(CODE, facts, "max_wal_senders", |value| match value {
        "0" => Finding::warn(
            CODE,
            "max_wal_senders = 0: no standby can follow this server by streaming",
            "set max_wal_senders = 10 and restart",
        ),
        value => Finding::ok(CODE, format!("max_wal_senders {value}")),
    })
}

pub(super) fn slots(facts: &Facts) -> Finding {
    const CODE: Code = Code::Slots;
    with(CODE, &facts.slots, "let the role read pg_replication_slots", |slots| {
        if let Some(lost) = slots.iter().find(|slot| slot.status == "lost" || slot.status == "unreserved") {
            let text = format!("slot {} is {}: its reader cannot go on from pg_wal", lost.name, lost.status);
            let mend =
                format!("bring its reader back from the archive, or select pg_drop_replication_slot('{}');", lost.name);
            return Finding::warn(CODE, text, mend);
        }
        if let Some(idle) = slots.iter().find(|slot| !slot.active && slot.held_bytes >= SLOT_HOLDS) {
            let text = format!("nobody reads slot {}, and it holds {} of pg_wal", idle.name, size(idle.held_bytes));
            return Finding::warn(
                CODE,
                text,
                format!("select pg_drop_replication_slot('{}'); if it is not needed", idle.name),
            );
        }
        let keeps =
            facts.settings.as_ref().ok().and_then(|settings| settings.get("wal_keep_size")?.parse::<f64>().ok());
        let keeps = keeps.unwrap_or_default() as u64;
        if let Ok(wal) = &facts.wal
            && keeps > wal.total_bytes / 2
            && keeps > 0
        {
            let text = format!("wal_keep_size = {} is more than half of pg_wal's file system", size(keeps));
            return Finding::warn(CODE, text, "lower wal_keep_size and reload: the archive keeps what standbys need");
        }
        match slots.len() {
            0 => Finding::ok(CODE, "no slot holds pg_wal"),
            count => {
                Finding::ok(CODE, format!("{count} slot{} hold{} little", s(count), if count == 1 { "s" } else { "" }))
            }
        }
    })
}

fn s(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
