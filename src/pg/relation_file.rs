//! Names of the files that hold relations.
//!
//! Only the forms PostgreSQL writes are read: an OID with a leading zero, or `.0`, names no relation.
//!
//! Source: `GetRelationPath` in `src/common/relpath.c`, `parse_filename_for_nontemp_relation` and
//! `looks_like_temp_rel_name` in `reinit.c` and `fd.c` of `src/backend/storage/file/`.

use std::fmt;

/// One file of a relation: `16384`, `16384.1`, `16384_fsm`, `t3_16384_vm.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// The relation's file number; never 0. Not the OID of the table, though often equal.
    pub oid: u32,
    /// Which of the relation's forks.
    pub fork: Fork,
    /// Place of this file in the fork: 0 is the first, with no suffix.
    pub segment: u32,
    /// The backend that owns it, if the relation is temporary.
    pub backend: Option<u32>,
}

/// A fork of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fork {
    /// The relation's own pages.
    Main,
    /// Free space map.
    Fsm,
    /// Visibility map.
    Vm,
    /// What an unlogged relation is reset to after a crash.
    Init,
}

impl RelationFile {
    /// Reads a file name, without its directory; `None` if PostgreSQL gives this name to no relation.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(name).ok()?;
        let (backend, text) = match text.strip_prefix('t') {
            Some(text) => {
                let (backend, text) = text.split_once('_')?;
                (Some(decimal(backend)?), text)
            }
            None => (None, text),
        };
        let (text, segment) = match text.split_once('.') {
            Some((text, segment)) => (text, positive(segment)?),
            None => (text, 0),
        };
        let (oid, fork) = match text.split_once('_') {
            Some((oid, fork)) => (oid, Fork::from_suffix(fork)?),
            None => (text, Fork::Main),
        };
        Some(Self { oid: positive(oid)?, fork, segment, backend })
    }

    /// Returns whether it vanishes with the session that made it.
    pub fn temporary(&self) -> bool {
        self.backend.is_some()
    }

    /// Returns the number of its first block in the fork, which page checksums include; `None` past the last block
    /// PostgreSQL can address.
    pub fn first_block(&self, relation_segment_blocks: u32) -> Option<u32> {
        self.segment.checked_mul(relation_segment_blocks)
    }
}

impl fmt::Display for RelationFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(backend) = self.backend {
            write!(f, "t{backend}_")?;
        }
        write!(f, "{}{}", self.oid, self.fork.suffix())?;
        if self.segment != 0 {
            write!(f, ".{}", self.segment)?;
        }
        Ok(())
    }
}

impl Fork {
    fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Fsm => "_fsm",
            Self::Vm => "_vm",
            Self::Init => "_init",
        }
    }

    fn from_suffix(suffix: &str) -> Option<Self> {
        match suffix {
            "fsm" => Some(Self::Fsm),
            "vm" => Some(Self::Vm),
            "init" => Some(Self::Init),
            _ => None,
        }
    }
}

/// A number as `%u` prints it.
pub(crate) fn decimal(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    canonical.then(|| text.parse().ok()).flatten()
}

/// A number as `%u` prints it, other than 0.
pub(crate) fn positive(text: &str) -> Option<u32> {
    decimal(text).filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn any_file() -> impl Strategy<Value = RelationFile> {
        let fork = prop::sample::select(vec![Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init]);
        (1u32.., fork, any::<u32>(), any::<Option<u32>>()).prop_map(|(oid, fork, segment, backend)| RelationFile {
            oid,
            fork,
            segment,
            backend,
        })
    }

    proptest! {
        #[test]
        fn names_round_trip(file in any_file()) {
            prop_assert_eq!(RelationFile::parse(file.to_string().as_bytes()), Some(file));
        }

        #[test]
        fn what_is_read_prints_the_same(name in "t?[0-9]{1,3}(_(fsm|vm|init|[0-9]{1,2}))?(_fsm)?(\\.[0-9]{1,2})?") {
            if let Some(file) = RelationFile::parse(name.as_bytes()) {
                prop_assert_eq!(file.to_string(), name);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(name: Vec<u8>) {
            RelationFile::parse(&name);
        }
    }

    #[test]
    fn a_name_is_taken_apart() {
        let file = RelationFile::parse(b"t3_16384_vm.2").unwrap();
        assert_eq!(file, RelationFile { oid: 16384, fork: Fork::Vm, segment: 2, backend: Some(3) });
        assert!(file.temporary());
        let file = RelationFile::parse(b"1259").unwrap();
        assert_eq!(file, RelationFile { oid: 1259, fork: Fork::Main, segment: 0, backend: None });
        assert!(!file.temporary());
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "0",
            "01",
            "1.",
            "1.0",
            "1.01",
            "1_",
            "1_main",
            "1_fsm_vm",
            "_fsm",
            "1.1_fsm",
            "1.1.1",
            "+1",
            "-1",
            " 1",
            "4294967296",
            "1.4294967296",
            "t_1",
            "t1",
            "t1_",
            "t1_0",
            "t01_1",
            "T1_1",
            "1_FSM",
            "PG_VERSION",
            "pg_filenode.map",
            "pg_internal.init",
            "1_init.tmp",
            "1 ",
        ] {
            assert_eq!(RelationFile::parse(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn blocks_are_counted_through_all_files() {
        let first_block = |name: &[u8]| RelationFile::parse(name).unwrap().first_block(131_072);
        assert_eq!(first_block(b"16384"), Some(0));
        assert_eq!(first_block(b"16384.3"), Some(393_216));
        assert_eq!(first_block(b"16384.32768"), None);
    }
}
