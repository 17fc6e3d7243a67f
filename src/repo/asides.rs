//! What says that a segment of a lane is not to be believed, though something is archived under its name: that it was given
//! up, or that a former owner stored it. Most lanes hold neither, and one listing of their folders tells.

use super::RepoError;
use super::hole::Hole;
use super::lane::Lane;
use crate::store::Key;

/// Gaps in what is archived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asides {
    /// Parts that an operator gave up.
    pub holes: Vec<Hole>,
    /// Segments that are not what their timeline's owner wrote.
    pub disputed: Vec<Hole>,
}

impl Lane {
    /// Returns both kinds of gaps; one request where there are none.
    ///
    /// # Errors
    /// As [`Lane::holes`] and [`Lane::disputed`].
    pub fn asides(&self) -> Result<Asides, RepoError> {
        let (store, layout) = (&self.repository.store, &self.repository.layout);
        let (holes, contested) = (layout.holes(self.id())?, layout.contested_root(self.id())?);
        let folders = store.list_children(Some(&layout.lane_folder(self.id())?))?.folders;
        let there = |folder: &Key| folders.contains(folder);
        Ok(Asides {
            holes: if there(&holes) { self.holes()? } else { Vec::new() },
            disputed: if there(&contested) { self.disputed()? } else { Vec::new() },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::clock;
    use crate::repo::HOLE_VERSION;
    use crate::repo::lane_fixture::lane_without;
    use crate::store::Verb;

    #[test]
    fn one_request_tells_that_there_are_none_and_what_is_there_is_found() {
        let lane = lane_without(&[]);
        let requests = || lane.repository.store.requests();
        let before = requests();
        assert_eq!(lane.asides().unwrap(), Asides::default());
        assert_eq!(requests().total() - before.total(), 1);
        let segment = "000000010000000000000008".parse().unwrap();
        let hole = Hole {
            version: HOLE_VERSION,
            from: segment,
            through: segment,
            reason: "disk".to_owned(),
            host: "db1".to_owned(),
            decided_at: clock::now(),
            disputed: false,
        };
        lane.record_hole(&hole).unwrap();
        assert_eq!(lane.asides().unwrap(), Asides { holes: vec![hole], disputed: Vec::new() });
        assert!(requests().of(Verb::Get) > before.of(Verb::Get));
    }
}
