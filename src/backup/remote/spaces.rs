//! Tablespaces: as the server announces them, and as its `tablespace_map` has them. Nothing is believed that only one of them
//! says: where they lie is what a restore asks mappings for.
//!
//! Source: `do_pg_backup_start` in `src/backend/access/transam/xlog.c`, `SendTablespaceList` in `basebackup_copy.c`.

use std::collections::BTreeMap;

use super::RemoteError;
use crate::format::manifest::Tablespace;
use crate::instance::replication::RemoteTablespace;
use crate::pg::tablespace_map::TablespaceMap;

/// Returns the tablespaces that are links; `map` is the server's `tablespace_map`, which it sends if there are any.
///
/// # Errors
/// [`RemoteError::Missing`] if the two do not say the same.
pub(super) fn linked(
    announced: &[RemoteTablespace],
    map: Option<&[u8]>,
    data_directory: &str,
) -> Result<Vec<Tablespace>, RemoteError> {
    let missing = |name| RemoteError::Missing { name };
    let map =
        TablespaceMap::parse(map.unwrap_or_default()).map_err(|_| missing("a tablespace_map that can be read"))?;
    let mapped: BTreeMap<u32, &[u8]> = map.tablespaces.iter().map(|one| (one.oid, one.path.as_slice())).collect();
    let links: BTreeMap<u32, &str> = announced
        .iter()
        .filter(|one| one.location.starts_with('/'))
        .filter_map(|one| Some((one.oid?, one.location.as_str())))
        .collect();
    // Some servers announce such a path with the backslashes that the map has.
    let same = |location: &str, path: &[u8]| {
        location.as_bytes() == path || path.iter().any(|byte| matches!(byte, b'\n' | b'\r' | b'\\') || !byte.is_ascii())
    };
    let agree = links.len() == mapped.len()
        && links.iter().zip(&mapped).all(|((oid, location), (other, path))| oid == other && same(location, path));
    if !agree {
        return Err(missing("a tablespace_map of the tablespaces that it announced"));
    }
    let inside = |path: &str| {
        let rest = path.strip_prefix(data_directory).filter(|_| !data_directory.is_empty())?;
        rest.strip_prefix('/').map(str::to_owned)
    };
    let tablespace =
        |(oid, path): (&u32, &&str)| Tablespace { oid: *oid, inside: inside(path), path: (*path).to_owned() };
    Ok(links.iter().map(tablespace).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(oid: Option<u32>, location: &str) -> RemoteTablespace {
        RemoteTablespace { oid, location: location.to_owned(), bytes: 0 }
    }

    #[test]
    fn what_the_server_announces_and_its_map_have_to_agree() {
        let all = [announced(Some(16401), "/b"), announced(Some(16400), "/data/a"), announced(None, "")];
        let found = linked(&all, Some(b"16400 /data/a\n16401 /b\n"), "/data").expect("they agree");
        let found: Vec<_> = found.iter().map(|one| (one.oid, one.path.as_str(), one.inside.as_deref())).collect();
        assert_eq!(found, [(16400, "/data/a", Some("a")), (16401, "/b", None)]);
        let in_place = [announced(Some(16402), "pg_tblspc/16402"), announced(None, "")];
        assert_eq!(linked(&in_place, None, "/data").expect("nothing is a link").len(), 0);
        let odd = [announced(Some(16400), "/a\\\\b"), announced(None, "")];
        assert_eq!(linked(&odd, Some(b"16400 /a\\\\b\n"), "/data").expect("it is escaped").len(), 1);
        for map in [
            None,
            Some(&b""[..]),
            Some(b"16400 /data/a\n"),
            Some(b"16400 /data/a\n16401 /c\n"),
            Some(b"16400 /data/a\n16402 /b\n"),
            Some(b"16400 /data/a\n16401 /b\n16402 /c\n"),
            Some(b"16400 /data/a\n16401 /b"),
            Some(b"nonsense\n"),
        ] {
            assert!(matches!(linked(&all, map, "/data"), Err(RemoteError::Missing { .. })), "{map:?}");
        }
        assert!(linked(&in_place, Some(b"16402 /x\n"), "/data").is_err());
    }
}
