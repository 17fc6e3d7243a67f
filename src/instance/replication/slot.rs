//! Replication slots: what keeps the server from removing log that somebody still has to read.
//!
//! Source: `CREATE_REPLICATION_SLOT` and `READ_REPLICATION_SLOT` in "Streaming Replication Protocol".

use super::client::ReplicationClient;
use super::error::ReplicationError;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;

/// First major that can be asked for a slot.
const READS_SLOTS: u16 = 15;

/// A slot, as the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPosition {
    /// The oldest log that it keeps; `None` if it keeps nothing yet.
    pub keeps: Option<(TimelineId, Lsn)>,
}

impl ReplicationClient {
    /// Creates a slot that keeps the log from the last checkpoint on, and is gone with this session.
    ///
    /// # Errors
    /// [`ReplicationError::Refused`] if the server has no room for one (`max_replication_slots`).
    pub fn create_temporary_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        self.ask("create a temporary replication slot", &create(name, self.major())).map(|_| ())
    }

    /// Asks for a slot of physical replication; `None` from a server below 15, which cannot be asked.
    ///
    /// # Errors
    /// [`ReplicationError::NoSlot`] if there is none of this name.
    pub fn read_slot(&mut self, name: &str) -> Result<Option<SlotPosition>, ReplicationError> {
        const ACTION: &str = "ask the server for a replication slot";
        if self.major() < READS_SLOTS {
            return Ok(None);
        }
        let rows = self.ask(ACTION, &format!("READ_REPLICATION_SLOT {}", quoted(name)))?;
        let nonsense = || ReplicationError::Answer { action: ACTION, what: format!("{rows:?}") };
        let [row] = rows.as_slice() else { return Err(nonsense()) };
        match row.as_slice() {
            [None, ..] => Err(ReplicationError::NoSlot { name: name.to_owned() }),
            [Some(_), Some(lsn), Some(timeline)] => {
                let number = timeline.parse().ok().and_then(TimelineId::new).ok_or_else(nonsense)?;
                Ok(Some(SlotPosition { keeps: Some((number, lsn.parse().map_err(|_| nonsense())?)) }))
            }
            [Some(_), ..] => Ok(Some(SlotPosition { keeps: None })),
            [] => Err(nonsense()),
        }
    }
}

fn create(name: &str, major: u16) -> String {
    let name = quoted(name);
    match major {
        ..15 => format!("CREATE_REPLICATION_SLOT {name} TEMPORARY PHYSICAL RESERVE_WAL"),
        15.. => format!("CREATE_REPLICATION_SLOT {name} TEMPORARY PHYSICAL (RESERVE_WAL)"),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::instance::replication::server_fixture::{Played, description, ready, rows};

    #[test]
    fn each_major_is_asked_in_its_own_words() {
        assert_eq!(create("a", 14), "CREATE_REPLICATION_SLOT \"a\" TEMPORARY PHYSICAL RESERVE_WAL");
        assert_eq!(create("a\"b", 15), "CREATE_REPLICATION_SLOT \"a\"\"b\" TEMPORARY PHYSICAL (RESERVE_WAL)");
    }

    #[test]
    fn a_slot_is_there_or_not_and_keeps_something_or_nothing() {
        let answer = |fields: &[Option<&str>]| {
            let names = description(&["slot_type", "restart_lsn", "restart_tli"]);
            [names, crate::instance::replication::server_fixture::row_of(fields), rows(&[]), ready()].concat()
        };
        let read = |fields: &[Option<&str>]| {
            let server = Played::answering(vec![("READ_REPLICATION_SLOT \"s\"", answer(fields))]);
            server.connect().unwrap().read_slot("s")
        };
        let keeps = Some((TimelineId::new(2).unwrap(), "0/3000000".parse().unwrap()));
        assert_eq!(read(&[Some("physical"), Some("0/3000000"), Some("2")]).unwrap(), Some(SlotPosition { keeps }));
        assert_eq!(read(&[Some("physical"), None, None]).unwrap(), Some(SlotPosition { keeps: None }));
        assert!(matches!(read(&[None, None, None]), Err(ReplicationError::NoSlot { name }) if name == "s"));
        assert!(matches!(read(&[Some("physical"), Some("x"), Some("2")]), Err(ReplicationError::Answer { .. })));
        let old = Played::of_version("14.9", Vec::new());
        assert_eq!(old.connect().unwrap().read_slot("s").unwrap(), None);
    }
}
