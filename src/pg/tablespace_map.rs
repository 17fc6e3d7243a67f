//! `tablespace_map`: where a backup's tablespaces lay.
//!
//! One line a tablespace, `<oid> <path>`; a newline, carriage return or backslash in the path follows a backslash.
//! Tablespaces made inside `pg_tblspc` itself are not in it.
//!
//! Source: `do_pg_backup_start` in `src/backend/access/transam/xlog.c`, `read_tablespace_map` in
//! `src/backend/access/transam/xlogrecovery.c` (before 15 in `xlog.c`).

use super::relation_file::positive;

/// Every tablespace of a backup that was a link, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// Tablespaces by OID.
    pub tablespaces: Vec<Tablespace>,
}

/// One tablespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where the link led, as the server's file system spells it.
    pub path: Vec<u8>,
}

/// Bytes that are not a `tablespace_map`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TablespaceMapError {
    /// The last line does not end.
    #[error("tablespace_map is cut within line {line}")]
    Cut {
        /// Line, from 1.
        line: usize,
    },
    /// A line that is not an OID, a space and a path.
    #[error("line {line} of tablespace_map is {text:?}, not an OID and a path")]
    Line {
        /// Line, from 1.
        line: usize,
        /// What it holds, unescaped.
        text: String,
    },
    /// Two paths for one tablespace.
    #[error("tablespace_map names tablespace {oid} twice")]
    Twice {
        /// OID of the tablespace.
        oid: u32,
    },
}

impl TablespaceMap {
    /// Reads a `tablespace_map`, as `pg_backup_stop` returns it; empty if the cluster has no tablespaces.
    ///
    /// # Errors
    /// Also if a tablespace is named twice, which the server never writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, TablespaceMapError> {
        let mut tablespaces: Vec<Tablespace> = Vec::new();
        for (index, text) in unescaped_lines(bytes)?.into_iter().enumerate() {
            let tablespace = Tablespace::parse(&text).ok_or_else(|| TablespaceMapError::Line {
                line: index + 1,
                text: String::from_utf8_lossy(&text).into_owned(),
            })?;
            tablespaces.push(tablespace);
        }
        let mut oids: Vec<u32> = tablespaces.iter().map(|tablespace| tablespace.oid).collect();
        oids.sort_unstable();
        match oids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(TablespaceMapError::Twice { oid: pair[0] }),
            None => Ok(Self { tablespaces }),
        }
    }

    /// Returns the file's bytes, as the server would write them.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for tablespace in &self.tablespaces {
            bytes.extend_from_slice(format!("{} ", tablespace.oid).as_bytes());
            for byte in &tablespace.path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(*byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }
}

impl Tablespace {
    fn parse(line: &[u8]) -> Option<Self> {
        let space = line.iter().position(|byte| *byte == b' ')?;
        let (oid, path) = (std::str::from_utf8(&line[..space]).ok()?, &line[space + 1..]);
        let usable = !path.is_empty() && !path.contains(&0);
        usable.then_some(Self { oid: positive(oid)?, path: path.to_vec() })
    }
}

fn unescaped_lines(bytes: &[u8]) -> Result<Vec<Vec<u8>>, TablespaceMapError> {
    let (mut lines, mut line, mut ended) = (Vec::new(), Vec::new(), true);
    let mut bytes = bytes.iter();
    while let Some(byte) = bytes.next() {
        ended = *byte == b'\n';
        match byte {
            b'\n' => lines.push(std::mem::take(&mut line)),
            b'\\' => line.push(*bytes.next().ok_or(TablespaceMapError::Cut { line: lines.len() + 1 })?),
            _ => line.push(*byte),
        }
    }
    if ended { Ok(lines) } else { Err(TablespaceMapError::Cut { line: lines.len() + 1 }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_map() -> impl Strategy<Value = TablespaceMap> {
        let path = prop::collection::vec(prop_oneof![1u8.., Just(b'\n'), Just(b'\r'), Just(b'\\'), Just(b' ')], 1..20);
        prop::collection::btree_map(1u32.., path, 0..5).prop_map(|map| TablespaceMap {
            tablespaces: map.into_iter().map(|(oid, path)| Tablespace { oid, path }).collect(),
        })
    }

    proptest! {
        #[test]
        fn maps_round_trip(map in any_map()) {
            prop_assert_eq!(TablespaceMap::parse(&map.encode()), Ok(map));
        }

        #[test]
        fn a_cut_map_is_never_read_as_the_whole(map in any_map(), cut: prop::sample::Index) {
            let bytes = map.encode();
            prop_assume!(!bytes.is_empty());
            prop_assert_ne!(TablespaceMap::parse(&bytes[..cut.index(bytes.len())]), Ok(map));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = TablespaceMap::parse(&bytes);
        }
    }

    #[test]
    fn a_servers_map_is_read() {
        let bytes = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pgdata/15/tablespace_map"));
        let paths = [(16411, &b"/tmp/walvault-pgdata/plain"[..]), (16412, b"/tmp/walvault-pgdata/a b\\c\nd")];
        let tablespaces = paths.map(|(oid, path)| Tablespace { oid, path: path.to_vec() }).to_vec();
        assert_eq!(TablespaceMap::parse(bytes), Ok(TablespaceMap { tablespaces }));
    }

    #[test]
    fn other_lines_are_refused() {
        for text in
            ["\n", "1\n", "1 \n", " /x\n", "0 /x\n", "01 /x\n", "x /x\n", "1\t/x\n", "4294967296 /x\n", "1 /\0\n"]
        {
            let error = TablespaceMap::parse(text.as_bytes());
            assert!(matches!(error, Err(TablespaceMapError::Line { line: 1, .. })), "{text:?}: {error:?}");
        }
        for text in ["1 /x", "1 /x\\", "1 /x\\\n"] {
            assert_eq!(TablespaceMap::parse(text.as_bytes()), Err(TablespaceMapError::Cut { line: 1 }), "{text:?}");
        }
        assert_eq!(TablespaceMap::parse(b"1 /x\n2 /y\n1 /z\n"), Err(TablespaceMapError::Twice { oid: 1 }));
    }
}
