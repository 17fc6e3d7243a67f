//! Leaves written one after the other, while what they list is still being copied.
//!
//! Holds one leaf and the pieces of one file, whatever the number of either.

use super::leaf::{self, File, LEAF_BYTES, Piece};

/// Fills leaves in the order of paths.
#[derive(Debug)]
pub struct LeafWriter {
    raw: Vec<u8>,
    entries: u32,
    first: Vec<u8>,
    open: Option<OpenFile>,
}

/// A leaf that is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its bytes.
    pub raw: Vec<u8>,
    /// Entries in it.
    pub entries: u32,
    /// Path of the first.
    pub first: Vec<u8>,
}

#[derive(Debug)]
struct OpenFile {
    path: Vec<u8>,
    /// Where the pieces that no leaf has yet begin, and where they end.
    at: u64,
    end: u64,
    pieces: Vec<u8>,
    count: u64,
    /// The last piece, which the next one may join.
    last: Option<Piece>,
}

impl Default for LeafWriter {
    fn default() -> Self {
        Self { raw: leaf::start(), entries: 0, first: Vec::new(), open: None }
    }
}

impl LeafWriter {
    /// Adds a directory; returns a leaf if one is full.
    pub fn directory(&mut self, path: &[u8], mode: u32) -> Option<Leaf> {
        leaf::append_directory(path, mode, &mut self.raw);
        self.count(path);
        self.full()
    }

    /// Begins a file. Its pieces follow, and then [`LeafWriter::close`].
    pub fn open(&mut self, path: &[u8]) {
        debug_assert!(self.open.is_none(), "a file at a time");
        let path = path.to_vec();
        self.open = Some(OpenFile { path, at: 0, end: 0, pieces: Vec::new(), count: 0, last: None });
    }

    /// Adds the next piece of the open file; returns a leaf if one is full.
    pub fn piece(&mut self, piece: Piece) -> Option<Leaf> {
        let open = self.open.as_mut().expect("a file was opened");
        open.end += piece.len();
        if open.last.as_mut().is_some_and(|last| last.join(&piece)) {
            return None;
        }
        if let Some(settled) = open.last.replace(piece) {
            leaf::append_piece(&settled, &mut open.pieces);
            open.count += 1;
        }
        if self.raw.len() + open.pieces.len() < LEAF_BYTES {
            return None;
        }
        let next = open.end - open.last.as_ref().map_or(0, Piece::len);
        leaf::append_part(&open.path, open.at, open.count, &open.pieces, None, &mut self.raw);
        let path = std::mem::take(&mut open.path);
        (open.at, open.count) = (next, 0);
        open.pieces.clear();
        self.count(&path);
        if let Some(open) = &mut self.open {
            open.path = path;
        }
        Some(self.take())
    }

    /// Ends the open file; `file.size` must be what its pieces cover. Returns a leaf if one is full.
    pub fn close(&mut self, file: &File) -> Option<Leaf> {
        let mut open = self.open.take().expect("a file was opened");
        debug_assert_eq!(open.end, file.size, "the pieces cover the file");
        if let Some(last) = open.last.take() {
            leaf::append_piece(&last, &mut open.pieces);
            open.count += 1;
        }
        leaf::append_part(&open.path, open.at, open.count, &open.pieces, Some(file), &mut self.raw);
        self.count(&open.path);
        self.full()
    }

    /// Ends the leaf here if it is no small one, between two entries: where a leaf of an older backup ended too, the next
    /// may be the same as its next.
    pub fn cut(&mut self) -> Option<Leaf> {
        debug_assert!(self.open.is_none(), "between two entries");
        (self.entries > 0 && self.raw.len() >= LEAF_BYTES / 4).then(|| self.take())
    }

    /// Returns the last leaf, if anything is in it.
    pub fn finish(mut self) -> Option<Leaf> {
        (self.entries > 0).then(|| self.take())
    }

    fn count(&mut self, path: &[u8]) {
        if self.entries == 0 {
            self.first = path.to_vec();
        }
        self.entries += 1;
    }

    fn full(&mut self) -> Option<Leaf> {
        (self.raw.len() >= LEAF_BYTES).then(|| self.take())
    }

    fn take(&mut self) -> Leaf {
        let raw = std::mem::replace(&mut self.raw, leaf::start());
        Leaf { raw, entries: std::mem::take(&mut self.entries), first: std::mem::take(&mut self.first) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::leaf::tests::facts;
    use super::super::leaf::{Entry, LEAF_LIMIT, Node, decode};
    use super::*;

    fn entries(leaf: &Leaf) -> Vec<Entry> {
        assert!(leaf.raw.len() <= LEAF_LIMIT as usize, "a leaf of {} bytes", leaf.raw.len());
        let entries = decode(&leaf.raw).expect("just written");
        assert_eq!((entries.len(), &entries[0].path), (leaf.entries as usize, &leaf.first));
        entries
    }

    #[test]
    fn a_file_of_very_many_pieces_goes_on_from_leaf_to_leaf() {
        let mut writer = LeafWriter::default();
        let mut leaves = Vec::new();
        leaves.extend(writer.directory(b"base", 0o700));
        writer.open(b"base/large");
        // No two of them join.
        let piece = |n: u32| Piece::Frames { pack: n % 7, frame: n, offset: 8192, len: 8192 };
        (0..50_000).for_each(|n| leaves.extend(writer.piece(piece(n))));
        leaves.extend(writer.close(&facts(50_000 * 8192)));
        leaves.extend(writer.directory(b"base/next", 0o700));
        leaves.extend(writer.finish());
        assert!(leaves.len() > 3, "{} leaves", leaves.len());
        let (mut found, mut at) = (0u32, 0);
        for entry in leaves.iter().flat_map(entries) {
            let Node::File(part) = entry.node else { continue };
            assert_eq!((entry.path.as_slice(), part.at), (&b"base/large"[..], at));
            at = part.end();
            for one in part.pieces {
                assert_eq!(one, piece(found));
                found += 1;
            }
            assert_eq!(part.file.is_some(), found == 50_000);
        }
        assert_eq!(found, 50_000);
    }

    #[test]
    fn many_files_fill_leaf_after_leaf_in_order() {
        let mut writer = LeafWriter::default();
        let mut leaves = Vec::new();
        for n in 0..20_000 {
            writer.open(format!("base/5/{n:06}").as_bytes());
            assert_eq!(writer.piece(Piece::Inline(vec![7; 10])), None);
            leaves.extend(writer.close(&facts(10)));
        }
        leaves.extend(writer.finish());
        let paths: Vec<Vec<u8>> = leaves.iter().flat_map(entries).map(|entry| entry.path).collect();
        assert_eq!(paths.len(), 20_000);
        assert!(paths.is_sorted() && leaves.len() > 5);
        assert!(leaves.iter().all(|leaf| leaf.raw.len() < LEAF_BYTES + 5000));
    }

    #[test]
    fn a_leaf_is_cut_only_once_it_is_worth_a_reference() {
        let mut writer = LeafWriter::default();
        let mut cuts = 0;
        for n in 0..2000 {
            if let Some(leaf) = writer.cut() {
                assert!(leaf.raw.len() >= LEAF_BYTES / 4);
                cuts += 1;
            }
            writer.open(format!("base/5/{n:06}").as_bytes());
            assert_eq!(writer.piece(Piece::Inline(vec![7; 10])), None);
            assert_eq!(writer.close(&facts(10)), None);
        }
        assert!(cuts > 1, "{cuts} leaves");
    }

    #[test]
    fn scattered_blocks_of_one_frame_are_one_piece_where_they_touch() {
        let mut writer = LeafWriter::default();
        writer.open(b"a");
        let block = |frame, offset| Piece::Frames { pack: 4, frame, offset, len: 8192 };
        // The last block of a whole frame and the first of the next; then one that does not follow; then a short frame.
        for piece in [block(7, 253_952), block(8, 0), block(8, 8192), block(8, 32_768), block(9, 0)] {
            assert_eq!(writer.piece(piece), None);
        }
        writer.close(&facts(5 * 8192));
        let leaf = writer.finish().expect("a file");
        let Node::File(part) = entries(&leaf).remove(0).node else { panic!("no file") };
        let joined = Piece::Frames { pack: 4, frame: 7, offset: 253_952, len: 3 * 8192 };
        assert_eq!(part.pieces, [joined, block(8, 32_768), block(9, 0)]);
    }

    #[test]
    fn what_follows_on_each_other_is_one_piece() {
        const FRAME: u64 = 256 << 10;
        let mut writer = LeafWriter::default();
        writer.open(b"a");
        for frame in 3..10 {
            assert_eq!(writer.piece(Piece::Frames { pack: 1, frame, offset: 0, len: FRAME }), None);
        }
        writer.piece(Piece::Zeros { len: 5 });
        writer.piece(Piece::Zeros { len: 6 });
        writer.close(&facts(7 * FRAME + 11));
        let leaf = writer.finish().expect("a file");
        let Node::File(part) = entries(&leaf).remove(0).node else { panic!("no file") };
        assert_eq!(
            part.pieces,
            [Piece::Frames { pack: 1, frame: 3, offset: 0, len: 7 * FRAME }, Piece::Zeros { len: 11 }]
        );
    }
}
