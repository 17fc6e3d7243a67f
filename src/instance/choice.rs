//! Which of several hosts a backup is taken of: a standby that is not too far behind, or else the primary.
//!
//! libpq takes the first standby that answers. A backup of one that lags by a day is sound too, but it is a day old when it
//! is taken; so all hosts are asked first.

use std::time::Duration;

use super::conninfo::{ConnectionSettings, Endpoint, SessionAttrs};
use super::session::{ServerRole, SessionError, get};
use super::sql;
use crate::error;
use crate::pg::lsn::Lsn;

/// How far behind a preferred standby may be, unless it is said.
pub const STANDBY_LAG: Duration = Duration::from_secs(300);

/// What a host says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    role: ServerRole,
    /// How far the log is written, or replayed.
    position: Option<Lsn>,
    /// Whether a standby streams, and has replayed everything that came.
    caught_up: bool,
    /// Age of the last transaction that it replayed.
    replayed: Option<Duration>,
}

/// A host, and what came of asking it.
type Candidate = (String, Result<Standing, String>);

/// Decides which host to take, if that is more than the first one that will do; returns the settings for it alone, and which
/// it is and why. `limit` is how far behind a standby may be.
///
/// # Errors
/// [`SessionError::NoHost`] if none will do.
pub fn choose_host(
    settings: &ConnectionSettings,
    limit: Option<Duration>,
) -> Result<Option<(ConnectionSettings, String)>, SessionError> {
    let or_primary = match settings.attrs {
        SessionAttrs::PreferStandby => true,
        SessionAttrs::Standby if limit.is_some() => false,
        _ => return Ok(None),
    };
    if settings.endpoints.len() == 1 && or_primary {
        return Ok(None);
    }
    let candidates: Vec<Candidate> =
        settings.endpoints.iter().map(|endpoint| (endpoint.target(), ask(settings, endpoint))).collect();
    // A user that only the replication protocol lets in cannot ask: then the first one that will do is taken.
    if candidates.iter().all(|(_, found)| found.is_err()) {
        return Ok(None);
    }
    match choose(&candidates, limit.unwrap_or(STANDBY_LAG), or_primary) {
        Ok((at, why)) => Ok(Some((settings.only(&settings.endpoints[at]), why))),
        Err(problems) => Err(SessionError::NoHost { problems }),
    }
}

/// Takes the first standby that is not too far behind; else, if it may be, the primary. Returns its place and the reason.
fn choose(candidates: &[Candidate], limit: Duration, or_primary: bool) -> Result<(usize, String), String> {
    let is = |role: ServerRole| move |standing: &&Standing| standing.role == role;
    let standings = candidates.iter().filter_map(|(_, found)| found.as_ref().ok());
    let written = standings.filter(is(ServerRole::Primary)).filter_map(|standing| standing.position).max();
    let mut problems = Vec::new();
    for (at, (target, found)) in candidates.iter().enumerate() {
        match found {
            Ok(standing) if standing.role == ServerRole::Standby => match standing.behind(written) {
                Some(behind) if behind <= limit => {
                    return Ok((at, format!("{target}, a standby that is {} s behind", behind.as_secs())));
                }
                Some(behind) => problems.push(format!(
                    "{target} is {} s behind, and at most {} s are allowed",
                    behind.as_secs(),
                    limit.as_secs()
                )),
                None => {
                    problems.push(format!("{target} has replayed no transaction, so how far it is behind is unknown"))
                }
            },
            Ok(_) => {}
            Err(problem) => problems.push(format!("{target} cannot be asked: {problem}")),
        }
    }
    let primary = candidates.iter().position(|(_, found)| found.as_ref().is_ok_and(|s| s.role == ServerRole::Primary));
    let problems = if problems.is_empty() { "there is none".to_owned() } else { problems.join("; ") };
    match primary.filter(|_| or_primary) {
        Some(at) => Ok((at, format!("{}, the primary, since no standby will do: {problems}", candidates[at].0))),
        None => Err(problems),
    }
}

impl Standing {
    /// How far behind a standby is, if that can be told.
    fn behind(&self, written: Option<Lsn>) -> Option<Duration> {
        let has_all = self.position.zip(written).is_some_and(|(replayed, written)| replayed >= written);
        if has_all || self.caught_up { Some(Duration::ZERO) } else { self.replayed }
    }
}

/// What is received counts only while something receives; a primary that writes nothing lets no transaction grow old.
const STANDING: &str = "select pg_is_in_recovery(), \
    (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end)::text, \
    coalesce(pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn(), false) \
        and exists (select from pg_stat_wal_receiver), \
    extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8";

fn ask(settings: &ConnectionSettings, endpoint: &Endpoint) -> Result<Standing, String> {
    const ACTION: &str = "ask the server how far it is";
    let asked = || -> Result<Standing, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| SessionError::Runtime { source })?;
        let (client, _) = runtime.block_on(sql::connect(&settings.only(endpoint), |_| ()))?;
        let row = runtime.block_on(client.query_one(STANDING, &[]));
        let row = row.map_err(|source| SessionError::Statement { action: ACTION, source })?;
        let position: Option<String> = get(&row, 1, ACTION)?;
        let seconds: Option<f64> = get(&row, 3, ACTION)?;
        Ok(Standing {
            role: if get(&row, 0, ACTION)? { ServerRole::Standby } else { ServerRole::Primary },
            position: position.and_then(|text| text.parse().ok()),
            caught_up: get(&row, 2, ACTION)?,
            replayed: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        })
    };
    asked().map_err(|problem| error::chain(&problem).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(written: u64) -> Result<Standing, String> {
        let role = ServerRole::Primary;
        Ok(Standing { role, position: Some(Lsn::new(written)), caught_up: false, replayed: None })
    }

    fn standby(replayed: u64, age: Option<u64>) -> Result<Standing, String> {
        let (role, replayed_at) = (ServerRole::Standby, age.map(Duration::from_secs));
        Ok(Standing { role, position: Some(Lsn::new(replayed)), caught_up: false, replayed: replayed_at })
    }

    fn chosen(hosts: Vec<Result<Standing, String>>, or_primary: bool) -> Result<(usize, String), String> {
        let named = hosts.into_iter().zip(["a", "b", "c", "d"]).map(|(found, name)| (name.to_owned(), found));
        choose(&named.collect::<Vec<_>>(), Duration::from_secs(300), or_primary)
    }

    #[test]
    fn the_first_standby_that_is_not_too_far_behind_is_taken() {
        let at = |hosts| chosen(hosts, true).map(|(at, _)| at);
        assert_eq!(at(vec![primary(100), standby(90, Some(200)), standby(100, None)]), Ok(1));
        assert_eq!(at(vec![primary(100), standby(90, Some(301)), standby(90, Some(300))]), Ok(2));
        assert_eq!(at(vec![Err("down".to_owned()), standby(90, Some(9)), primary(100)]), Ok(1));
        // An idle primary: what was replayed last is old, and it is everything.
        assert_eq!(at(vec![primary(100), standby(100, Some(90_000))]), Ok(1));
        // Nobody knows of the primary, and a standby that streams has replayed all that came.
        let streaming = standby(90, Some(90_000)).map(|standing| Standing { caught_up: true, ..standing });
        assert_eq!(at(vec![standby(90, Some(90_000)), streaming]), Ok(1));
    }

    #[test]
    fn where_no_standby_will_do_the_reason_names_each() {
        let hosts = || vec![standby(90, Some(4000)), Err("refused".to_owned()), primary(100), standby(0, None)];
        let (at, why) = chosen(hosts(), true).expect("the primary");
        assert_eq!(at, 2);
        for words in [
            "c, the primary",
            "a is 4000 s behind, and at most 300 s",
            "b cannot be asked: refused",
            "d has replayed no",
        ] {
            assert!(why.contains(words), "{words:?} in {why}");
        }
        assert!(chosen(hosts(), false).expect_err("no standby").contains("a is 4000 s behind"));
        assert_eq!(
            chosen(vec![primary(1)], true),
            Ok((0, "a, the primary, since no standby will do: there is none".to_owned()))
        );
        assert!(chosen(vec![standby(1, Some(400)), Err("down".to_owned())], true).is_err());
    }
}
