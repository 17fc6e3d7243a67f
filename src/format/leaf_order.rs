//! What must hold from one leaf to the next, checked while they are read one after the other.
//!
//! Nothing here remembers more than the last path, so a manifest of any size is checked as it streams by.

use super::FormatError;
use super::leaf::{Entry, Node, Piece};
use super::tables::{LeafRef, PackTable};

/// All leaves so far.
pub struct LeafOrder<'a> {
    packs: &'a PackTable,
    /// Path of the last entry.
    last: Vec<u8>,
    /// Where the last file goes on, if it does.
    open: Option<u64>,
}

impl<'a> LeafOrder<'a> {
    /// Starts before the first leaf of a manifest with these packs.
    pub fn new(packs: &'a PackTable) -> Self {
        Self { packs, last: Vec::new(), open: None }
    }

    /// Checks the next leaf.
    ///
    /// # Errors
    /// [`FormatError::Nonsense`] if it does not follow the one before, is not what its reference says, or if a piece lies
    /// in a frame that no pack of the manifest has.
    pub fn accept(&mut self, reference: &LeafRef, entries: &[Entry]) -> Result<(), FormatError> {
        if entries.len() != reference.entries as usize {
            return Err(nonsense(format!("{} entries instead of {}", entries.len(), reference.entries)));
        }
        let Some((first, last)) = entries.first().zip(entries.last()) else {
            return Err(nonsense("a leaf without entries".to_owned()));
        };
        if first.path != reference.first {
            return Err(nonsense("a leaf that begins with another path than its reference says".to_owned()));
        }
        let begins = match &first.node {
            Node::File(part) => part.at,
            Node::Directory { .. } => 0,
        };
        let follows = match self.open {
            Some(at) => begins == at && first.path == self.last,
            None => begins == 0 && first.path > self.last,
        };
        if !follows {
            return Err(nonsense("leaves out of order".to_owned()));
        }
        for entry in entries {
            let Node::File(part) = &entry.node else { continue };
            part.pieces.iter().try_for_each(|piece| self.check(piece))?;
        }
        self.open = match &last.node {
            Node::File(part) if part.file.is_none() => Some(part.end()),
            _ => None,
        };
        self.last.clone_from(&last.path);
        Ok(())
    }

    fn check(&self, piece: &Piece) -> Result<(), FormatError> {
        let Piece::Frames { pack, frame, .. } = piece else { return Ok(()) };
        match self.packs.get(*pack) {
            Some(found) if *frame < found.frames => Ok(()),
            _ => Err(nonsense(format!("frame {frame} of pack {pack}, which the manifest does not have"))),
        }
    }

    /// Checks that nothing is left open after the last leaf.
    ///
    /// # Errors
    /// [`FormatError::Nonsense`] if the last file does not end.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.open {
            None => Ok(()),
            Some(_) => Err(nonsense("the last file does not end".to_owned())),
        }
    }
}

fn nonsense(problem: String) -> FormatError {
    FormatError::Nonsense { document: "manifest leaf", problem }
}

#[cfg(test)]
mod tests {
    use super::super::leaf::Part;
    use super::super::leaf::tests::{facts, whole};
    use super::super::tables::{PackRef, PackSource};
    use super::*;
    use crate::format::Sha256;

    fn packs() -> PackTable {
        let digest = Sha256::of(b"x");
        let source = PackSource::Lane { backup: "b".into(), number: 1 };
        let pack = PackRef { source, stored_bytes: 1000, frames: 5, sha256: digest, table_sha256: digest };
        PackTable::new(vec![None, Some(pack)])
    }

    fn check(leaves: &[Vec<Entry>]) -> Result<(), FormatError> {
        let packs = packs();
        let mut order = LeafOrder::new(&packs);
        for entries in leaves {
            let first = entries.first().map(|entry| entry.path.clone()).unwrap_or_default();
            let entries_of = entries.len() as u32;
            let reference = LeafRef { pack: 1, frame: 0, entries: entries_of, digest: Sha256::of(b"x"), first };
            order.accept(&reference, entries)?;
        }
        order.finish()
    }

    fn entry(path: &str, part: Part) -> Entry {
        Entry { path: path.as_bytes().to_vec(), node: Node::File(part) }
    }

    fn zeros(path: &str) -> Entry {
        entry(path, whole(vec![Piece::Zeros { len: 10 }]))
    }

    fn part(path: &str, at: u64, size: Option<u64>) -> Entry {
        entry(path, Part { at, pieces: vec![Piece::Zeros { len: 10 }], file: size.map(facts) })
    }

    #[test]
    fn leaves_that_follow_each_other_are_taken() {
        assert_eq!(check(&[vec![zeros("a"), zeros("b")], vec![zeros("c")]]), Ok(()));
        let split = [vec![zeros("a"), part("b", 0, None)], vec![part("b", 10, None)], vec![part("b", 20, Some(30))]];
        assert_eq!(check(&split), Ok(()));
        assert_eq!(check(&[]), Ok(()));
    }

    #[test]
    fn leaves_that_do_not_are_refused() {
        for leaves in [
            vec![vec![zeros("b")], vec![zeros("a")]],
            vec![vec![zeros("a")], vec![zeros("a")]],
            vec![vec![zeros("a")], vec![]],
            vec![vec![part("a", 0, None)]],
            vec![vec![part("a", 0, None)], vec![zeros("b")]],
            vec![vec![part("a", 0, None)], vec![part("b", 10, Some(20))]],
            vec![vec![part("a", 0, None)], vec![part("a", 20, Some(30))]],
            vec![vec![part("a", 10, Some(20))]],
            vec![vec![zeros("a")], vec![part("a", 10, Some(20))]],
        ] {
            assert!(matches!(check(&leaves), Err(FormatError::Nonsense { .. })), "{leaves:?}");
        }
    }

    #[test]
    fn pieces_lie_in_packs_that_the_manifest_has() {
        let frames = |pack, frame| entry("a", whole(vec![Piece::Frames { pack, frame, offset: 0, len: 10 }]));
        assert_eq!(check(&[vec![frames(1, 4)]]), Ok(()));
        for (pack, frame) in [(0, 0), (2, 0), (1, 5)] {
            assert!(check(&[vec![frames(pack, frame)]]).is_err(), "frame {frame} of pack {pack}");
        }
    }
}
