//! Facts to findings: pure, one function for each code.

mod archiving;
mod command;
mod repository;
mod restoring;
mod retention;
mod server;

use std::time::Duration;

use super::facts::{Facts, Known, Unknown};
use super::finding::{Code, Finding};

/// Judges everything; exactly one finding for each code, in the codes' order.
pub fn decide(facts: &Facts) -> Vec<Finding> {
    Code::ALL.iter().map(|code| judge(*code, facts)).collect()
}

fn judge(code: Code, facts: &Facts) -> Finding {
    match code {
        Code::Config => server::config(facts),
        Code::User => server::user(facts),
        Code::Agent => server::agent(facts),
        Code::DataDirectory => server::data_directory(facts),
        Code::Server => server::server(facts),
        Code::Pooler => server::pooler(facts),
        Code::Privileges => server::privileges(facts),
        Code::WalLevel => server::wal_level(facts),
        Code::FullPageWrites => server::full_page_writes(facts),
        Code::Fsync => server::fsync(facts),
        Code::Checksums => server::checksums(facts),
        Code::WalSenders => server::wal_senders(facts),
        Code::Slots => server::slots(facts),
        Code::ArchiveMode => archiving::archive_mode(facts),
        Code::ArchiveCommand => command::archive_command(facts),
        Code::RestoreCommand => command::restore_command(facts),
        Code::ArchiveTimeout => archiving::archive_timeout(facts),
        Code::Archiver => archiving::archiver(facts),
        Code::Backlog => archiving::backlog(facts),
        Code::Disk => archiving::disk(facts),
        Code::FailoverWindow => archiving::failover_window(facts),
        Code::RoundTrip => archiving::round_trip(facts),
        Code::Repository => repository::repository(facts),
        Code::Place => repository::place(facts),
        Code::Lane => repository::lane(facts),
        Code::Owner => repository::owner(facts),
        Code::Contested => repository::contested(facts),
        Code::Write => repository::write(facts),
        Code::Read => repository::read(facts),
        Code::CreateOnly => repository::create_only(facts),
        Code::Clock => repository::clock(facts),
        Code::Delete => repository::delete(facts),
        Code::Backup => restoring::backup(facts),
        Code::Manifests => restoring::manifests(facts),
        Code::Packs => restoring::packs(facts),
        Code::Holes => restoring::holes(facts),
        Code::Promotion => restoring::promotion(facts),
        Code::Restorable => restoring::restorable(facts),
        Code::Retention => retention::retention(facts),
        Code::Expire => retention::expire(facts),
    }
}

/// Judges a fact where it is known. Where looking for it failed, that is the finding, with the mend that is known or this
/// one.
fn with<T>(code: Code, fact: &Known<T>, otherwise: &str, judge: impl FnOnce(&T) -> Finding) -> Finding {
    match fact {
        Ok(fact) => judge(fact),
        Err(Unknown::NotChecked(reason)) => Finding::not_checked(code, reason),
        Err(Unknown::Failed { problem, mend }) => Finding::fail(code, problem, mend.as_deref().unwrap_or(otherwise)),
    }
}

/// As [`with`], where the failure to know the fact is another code's finding.
fn after<T>(code: Code, fact: &Known<T>, reason: &str, judge: impl FnOnce(&T) -> Finding) -> Finding {
    match fact {
        Err(Unknown::Failed { .. }) => Finding::not_checked(code, reason),
        fact => with(code, fact, "", judge),
    }
}

/// Judges a setting of the server.
fn with_setting(code: Code, facts: &Facts, name: &str, judge: impl FnOnce(&str) -> Finding) -> Finding {
    with(code, &facts.settings, "grant pg_read_all_settings to the role", |settings| match settings.get(name) {
        Some(value) => judge(value),
        None => Finding::not_checked(code, format!("the role may not read {name}")),
    })
}

/// Returns a duration as people say it: `40 s`, `3 min`, `5 h`, `12 days`.
fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

/// Returns a size as people say it.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests;
