//! One segment of now, into the archive by the server's own command, and back by ours.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Inputs, known, unknown_repo};
use crate::format::digest::of_contents;
use crate::instance::{DataDirectory, Identity, Inspection, Rights};
use crate::pg::system_id::SystemId;
use crate::pg::wal_name::WalFileName;
use crate::repo::{LaneId, Repository};
use crate::workflow::check::facts::{Known, RoundTrip, RoundTripEnd, Unknown};

const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The archiver tries so often before it pauses for a minute.
///
/// Source: `NUM_ARCHIVE_RETRIES` in `src/backend/postmaster/pgarch.c`.
const RETRIES: u64 = 3;
/// Letters in a segment's name.
const NAME_LENGTH: usize = 24;

/// A server that can be asked to send a segment.
pub(super) struct Ready<'a> {
    inspection: &'a Inspection,
    patience: Duration,
}

impl<'a> Ready<'a> {
    pub fn new(
        inputs: &Inputs<'_>,
        server: &Known<Identity>,
        inspection: Option<&'a Inspection>,
        settings: Option<&BTreeMap<String, String>>,
        rights: Option<&Rights>,
    ) -> Known<Self> {
        let not = |reason: &str| Err(Unknown::not_checked(reason));
        let Some(patience) = inputs.round_trip else { return not("--no-switch") };
        let (Ok(server), Some(inspection)) = (server, inspection) else { return not("the server was not reached") };
        if server.in_recovery {
            return not("a standby ends no segment");
        }
        if settings.and_then(|settings| settings.get("archive_mode")).is_none_or(|mode| mode == "off") {
            return not("archive_mode is off");
        }
        if rights.is_none_or(|rights| !rights.switch_wal) {
            return not("the role may not call pg_switch_wal()");
        }
        Ok(Self { inspection, patience })
    }

    pub fn perform(self, repository: &Repository, system: SystemId, data: Option<&DataDirectory>) -> Known<RoundTrip> {
        let failures = known(self.inspection.archiver())?.failures;
        let segment = known(self.inspection.switch_wal())?;
        let started = Instant::now();
        loop {
            let archiver = known(self.inspection.archiver())?;
            if archiver.last_archived.as_deref().is_some_and(|last| is_past(last, &segment)) {
                break;
            }
            if archiver.failing && archiver.failures >= failures + RETRIES {
                let segment = archiver.last_failed.unwrap_or(segment);
                return Ok(RoundTrip { segment, took: started.elapsed(), outcome: RoundTripEnd::CommandFailed });
            }
            if started.elapsed() >= self.patience {
                return Ok(RoundTrip { segment, took: started.elapsed(), outcome: RoundTripEnd::TooLate });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let took = started.elapsed();
        let outcome = read_back(&segment, repository, system, data)?;
        Ok(RoundTrip { segment, took, outcome })
    }
}

/// Whether the archiver, which goes by name, has passed a segment; `.backup` and `.partial` files begin with its name.
fn is_past(last: &str, segment: &str) -> bool {
    last.get(..NAME_LENGTH).is_some_and(|last| last >= segment)
}

fn read_back(
    segment: &str,
    repository: &Repository,
    system: SystemId,
    data: Option<&DataDirectory>,
) -> Known<RoundTripEnd> {
    let name: WalFileName = segment.parse().map_err(|_| Unknown::failed(format!("{segment} is no segment")))?;
    let lane = repository.lane(LaneId::first(system)).map_err(unknown_repo)?;
    let stored = lane.map(|lane| lane.read_wal(&name)).transpose().map_err(unknown_repo)?.flatten();
    let Some(stored) = stored else { return Ok(RoundTripEnd::Absent) };
    let local = data.and_then(|data| std::fs::read(data.path.join("pg_wal").join(segment)).ok());
    Ok(match local.map(|bytes| of_contents(&bytes)) {
        None => RoundTripEnd::Intact,
        Some(local) if local == stored.digest => RoundTripEnd::Same,
        Some(local) => RoundTripEnd::Other { stored: stored.digest, local },
    })
}

#[cfg(test)]
mod tests {
    use super::is_past;

    #[test]
    fn the_archiver_goes_by_name() {
        let segment = "000000010000000000000004";
        for (last, past) in [
            ("000000010000000000000003", false),
            ("000000010000000000000004", true),
            ("000000010000000000000005", true),
            ("000000010000000000000003.00000028.backup", false),
            ("000000010000000000000004.00000028.backup", true),
            ("00000002.history", false),
        ] {
            assert_eq!(is_past(last, segment), past, "{last}");
        }
    }
}
