//! What `wal push` does after a new timeline's first files, where no agent does it: push what the archive lacks of the
//! timelines before.
//!
//! The file that was asked for is durable by then. Whatever happens here costs a moment and nothing else.

use std::path::Path;
use std::time::{Duration, Instant};

use super::LINE_BYTES;
use super::output::complain;
use crate::archive::{Backfill, BackfillError, Backfilled, Promotion, PushOptions, Scope, Writer, is_due};
use crate::error::{cut, one_line};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::wal_name::WalFileName;
use crate::repo::{LaneFacts, RepoError, Repository};

/// Longest time for it: PostgreSQL waits with the next file.
const LONGEST: Duration = Duration::from_secs(20);

/// A file that was archived, and for whom.
pub(super) struct Archived<'a> {
    /// Its path.
    pub path: &'a Path,
    /// Its name.
    pub name: &'a WalFileName,
    /// The server that wrote it.
    pub server: &'a LaneFacts,
    /// Who archived it.
    pub writer: &'a Writer,
}

/// Looks back, if it is time to, for as long as half of `left`; says what came of it in the server's log.
pub(super) fn after(archived: &Archived<'_>, options: PushOptions, left: Duration, repository: &Repository) {
    match try_after(archived, options, Instant::now() + LONGEST.min(left / 2), repository) {
        Ok(lines) => lines.iter().for_each(|line| say(line)),
        Err(error) => say(&format!("timelines before were not looked through: {}", one_line(&error, LINE_BYTES / 2))),
    }
}

fn say(line: &str) {
    complain(&cut(format!("walvault: warning: {line}"), LINE_BYTES - 1));
}

fn try_after(
    archived: &Archived<'_>,
    options: PushOptions,
    deadline: Instant,
    repository: &Repository,
) -> Result<Vec<String>, BackfillError> {
    let Archived { path, name, server, writer } = archived;
    let Some(directory) = path.parent().filter(|parent| parent.join("archive_status").is_dir()) else {
        return Ok(Vec::new());
    };
    let Ok(size) = SegmentSize::new(server.segment_size) else { return Ok(Vec::new()) };
    let Some(history) = is_due(directory, name, size)? else { return Ok(Vec::new()) };
    let lane = repository.with_budget(deadline.saturating_duration_since(Instant::now())).lane_for(server)?;
    let backfill = Backfill { directory, server, writer, options };
    let done = backfill.perform(&lane, history.clone(), Scope::BelowTheFork, deadline)?;
    let mut lines = spoken(&done);
    // Once is enough; the archive tells it to whoever asks later.
    if matches!(name, WalFileName::History(_)) {
        match Promotion::look(&lane, &history) {
            Ok(Some(promotion)) if promotion.is_wrong() => lines.push(promotion.to_string()),
            Err(error @ RepoError::Object { .. }) => lines.push(one_line(&error, LINE_BYTES / 2)),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(lines)
}

/// Says what came of it; nothing if there was nothing to do.
fn spoken(done: &Backfilled) -> Vec<String> {
    let mut lines = Vec::new();
    let span = |segments: &[SegmentName]| match segments {
        [one] => one.to_string(),
        [first, .., last] => format!("{} segments from {first} to {last}", segments.len()),
        [] => String::new(),
    };
    if !done.pushed.is_empty() {
        lines.push(format!("pushed {}, which the former primary had not archived", span(&done.pushed)));
    }
    for (segment, kept) in done.contested.iter().take(3) {
        lines.push(format!("{segment} is archived with other contents; ours were kept as {kept}"));
    }
    if let Some((segment, why)) = done.unproven.first() {
        let more = done.unproven.len() - 1;
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        lines.push(format!("the archive lacks {segment}{more}, which cannot be pushed from here: {why}"));
    }
    if done.unfinished {
        lines.push("there was no time to look through all timelines before; the next file goes on with it".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_nothing_and_one_line_of_each_thing() {
        assert!(spoken(&Backfilled { same: 12, ..Default::default() }).is_empty());
        let name = |text: &str| text.parse::<SegmentName>().expect("a name");
        let (a, b) = (name("000000010000000000000007"), name("000000010000000000000009"));
        let done = Backfilled {
            pushed: vec![a, a, b],
            contested: vec![(a, "key".to_owned())],
            unproven: vec![(b, "its records end early".to_owned()), (a, "so".to_owned())],
            unfinished: true,
            same: 1,
        };
        let lines = spoken(&done);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].contains(&format!("3 segments from {a} to {b}")), "{lines:?}");
        assert!(lines[2].contains(&format!("lacks {b}, and 1 more")), "{lines:?}");
        assert!(spoken(&Backfilled { pushed: vec![a], ..Default::default() })[0].contains(&format!("pushed {a},")));
    }
}
