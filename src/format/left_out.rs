//! The mark of a database that a restore left out, in the `PG_VERSION` of its directory.
//!
//! The other files of such a database are zeros of their full lengths, so that replaying the log finds what it expects. To
//! a server they would be empty tables. So the mark stands where no server can pass it: whoever connects to a database has
//! its `PG_VERSION` compared first, and is refused with the mark's own words. Replay copies the file with a database that
//! is made of this one file by file, and writes a true one only for a database whose every page is in the log.
//!
//! Source: `ValidatePgVersion` in `src/backend/utils/init/miscinit.c`, which reads up to 63 characters without a space and
//! shows them; `CreateDirAndVersionFile` and `dbase_redo` in `src/backend/commands/dbcommands.c`.

/// What the file holds.
pub const LEFT_OUT: &[u8] = b"0-left-out-by-walvault-restore,drop-this-database\n";

/// The file in the directory of each database.
pub const VERSION_FILE: &[u8] = b"PG_VERSION";

/// Returns whether these are the contents of a marked `PG_VERSION`.
pub fn is_left_out(contents: &[u8]) -> bool {
    contents == LEFT_OUT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::leaf::INLINE_LIMIT;

    #[test]
    fn a_server_reads_the_whole_mark_and_a_backup_keeps_it_in_a_leaf() {
        let words = LEFT_OUT.strip_suffix(b"\n").expect("one line");
        assert!(words.len() <= 63 && !words.contains(&b' ') && LEFT_OUT.len() <= INLINE_LIMIT);
        // `strtol` must find a number, and one that no server has.
        assert!(words.starts_with(b"0-"));
        assert!(is_left_out(LEFT_OUT) && !is_left_out(b"17\n") && !is_left_out(b""));
    }
}
