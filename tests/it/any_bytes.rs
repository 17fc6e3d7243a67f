//! Any bytes are read without harm by every parser: no panic, no endless loop, and no more memory than they can justify.

use proptest::prelude::*;

#[path = "../parsers/mod.rs"]
mod parsers;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if crate::support::soaking() { 20_000 } else { 300 }))]

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        for (_, parse) in parsers::PARSERS {
            parse(&bytes);
        }
    }

    #[test]
    fn any_text_is_read_without_harm(text in "([a-zA-Z0-9_:/=+. \"'{}\\[\\],\\\\\n\t-]|\\PC){0,200}") {
        for (_, parse) in parsers::PARSERS {
            parse(text.as_bytes());
        }
    }

    /// Real bytes with a few of them changed go deeper than any others.
    #[test]
    fn real_bytes_that_were_changed_are_read_without_harm(
        which in 0usize..10_000,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let files = fixtures();
        let mut bytes = files[which % files.len()].clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if which % 3 == 0 {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        for (_, parse) in parsers::PARSERS {
            parse(&bytes);
        }
    }
}

/// Files of real servers, as they are.
fn fixtures() -> &'static [Vec<u8>] {
    static READ: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    READ.get_or_init(|| {
        let mut files = Vec::new();
        for major in [13, 14, 15, 16, 17, 18] {
            for folder in ["pgdata", "wal"] {
                let folder = format!("{}/fixtures/{folder}/{major}", env!("CARGO_MANIFEST_DIR"));
                let Ok(entries) = std::fs::read_dir(folder) else { continue };
                let paths = entries.map(|entry| entry.expect("a listed entry").path());
                files.extend(
                    paths.map(|path| std::fs::read(path).expect("a fixture")).filter(|bytes| !bytes.is_empty()),
                );
            }
        }
        files.retain(|bytes| bytes.len() < 100_000);
        assert!(files.len() > 30, "{}", files.len());
        files
    })
}
