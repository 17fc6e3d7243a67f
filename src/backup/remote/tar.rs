//! The tar that a server makes, read as it streams by.
//!
//! A server writes plain ustar: names of at most 99 bytes, no extensions, sizes past 8 GiB in base 256. Anything else is
//! not a server's, and is refused: names that lead out of the data directory, kinds of entries that a data directory
//! does not have, headers whose checksum does not match, bytes behind the end.
//!
//! Source: `src/port/tar.c`, `sendFile` and `_tarWriteHeader` in `basebackup.c`.

/// Bytes of a header, and what files are filled up to.
const BLOCK: usize = 512;

/// An entry of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TarEntry {
    /// Its name, as it stands there, without the slash at a directory's end.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: i64,
    /// What it is.
    pub kind: TarKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TarKind {
    /// A file of so many bytes, which follow.
    File(u64),
    Directory,
    /// A link; where it leads does not matter here.
    Link,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TarPart<'a> {
    Entry(TarEntry),
    /// Bytes of the file that was begun.
    Bytes(&'a [u8]),
    /// The file is complete.
    End,
}

/// Why it is no server's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The header's checksum does not match.
    #[error("a header whose checksum does not match")]
    Checksum,
    /// A field that cannot be.
    #[error("{what} in the header of {path:?}")]
    Field {
        /// What is wrong.
        what: &'static str,
        /// The entry's name.
        path: String,
    },
    /// A name that leads elsewhere.
    #[error("the name {path:?}, which leads out of the data directory")]
    Path {
        /// The name.
        path: String,
    },
    /// A kind of entry that a data directory does not have.
    #[error("{path:?} of kind {kind:?}, which a data directory does not have")]
    Kind {
        /// The name.
        path: String,
        /// Its kind.
        kind: char,
    },
    /// Something behind the end.
    #[error("bytes behind the archive's end")]
    Trailing,
    /// The archive is cut.
    #[error("an archive that is cut")]
    Cut,
}

/// A reader that is given bytes as they come.
#[derive(Debug)]
pub(super) struct TarReader {
    header: [u8; BLOCK],
    /// Bytes of the header that are there.
    filled: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    /// Bytes of the file and of its filling that are still to come.
    File(u64, usize),
    Filling(usize),
    Over,
}

impl TarReader {
    pub fn new() -> Self {
        Self { header: [0; BLOCK], filled: 0, state: State::Header }
    }

    /// Takes some of the bytes and returns what they are; `None` once all are taken.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarPart<'a>>, TarError> {
        loop {
            match self.state {
                State::File(0, filling) => {
                    self.state = if filling == 0 { State::Header } else { State::Filling(filling) };
                    return Ok(Some(TarPart::End));
                }
                _ if input.is_empty() => return Ok(None),
                State::File(left, filling) => {
                    let some = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                    let (bytes, rest) = input.split_at(some);
                    *input = rest;
                    self.state = State::File(left - some as u64, filling);
                    return Ok(Some(TarPart::Bytes(bytes)));
                }
                State::Filling(left) => {
                    let some = left.min(input.len());
                    *input = &input[some..];
                    self.state = if some == left { State::Header } else { State::Filling(left - some) };
                }
                State::Over if input.iter().any(|byte| *byte != 0) => return Err(TarError::Trailing),
                State::Over => *input = &[],
                State::Header => {
                    let some = (BLOCK - self.filled).min(input.len());
                    self.header[self.filled..self.filled + some].copy_from_slice(&input[..some]);
                    *input = &input[some..];
                    self.filled += some;
                    if self.filled == BLOCK {
                        self.filled = 0;
                        if let Some(entry) = self.entry()? {
                            return Ok(Some(TarPart::Entry(entry)));
                        }
                    }
                }
            }
        }
    }

    /// Checks that the archive ended where an entry could have begun. Whether entries are missing, it cannot tell:
    /// servers up to 14 do not mark the end.
    pub fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::Header if self.filled == 0 => Ok(()),
            State::Over => Ok(()),
            _ => Err(TarError::Cut),
        }
    }

    /// Reads the header; `None` if it is the mark at the end.
    fn entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let header = &self.header;
        if header.iter().all(|byte| *byte == 0) {
            self.state = State::Over;
            return Ok(None);
        }
        let sum: u32 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if number(&header[148..156]) != Some(u64::from(sum)) {
            return Err(TarError::Checksum);
        }
        let name = &header[..100];
        let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
        let shown = || String::from_utf8_lossy(name).into_owned();
        let field = |what| TarError::Field { what, path: shown() };
        if &header[257..262] != b"ustar" || header[345..500].iter().any(|byte| *byte != 0) {
            return Err(field("a form that no server writes"));
        }
        let size =
            number(&header[124..136]).filter(|size| *size < 1 << 62).ok_or_else(|| field("a size that cannot be"))?;
        let modified = number(&header[136..148]).and_then(|time| i64::try_from(time).ok());
        let modified = modified.ok_or_else(|| field("a time that cannot be"))?;
        let mode = number(&header[100..108]).ok_or_else(|| field("permissions that cannot be"))? as u32 & 0o777;
        let kind = match header[156] {
            b'0' | 0 => TarKind::File(size),
            b'5' => TarKind::Directory,
            b'2' => TarKind::Link,
            other => return Err(TarError::Kind { path: shown(), kind: char::from(other) }),
        };
        if !matches!(kind, TarKind::File(_)) && size > 0 {
            return Err(field("bytes of what is no file"));
        }
        let path = match kind {
            TarKind::File(_) => name,
            TarKind::Directory | TarKind::Link => name.strip_suffix(b"/").unwrap_or(name),
        };
        // As it names what it adds to an empty `pg_wal`.
        let path = path.strip_prefix(b"./").unwrap_or(path);
        let steps = |step: &[u8]| matches!(step, b"" | b"." | b"..");
        if path.split(|byte| *byte == b'/').any(steps) {
            return Err(TarError::Path { path: shown() });
        }
        self.state = match kind {
            TarKind::File(size) => State::File(size, (BLOCK - (size % BLOCK as u64) as usize) % BLOCK),
            TarKind::Directory | TarKind::Link => State::Header,
        };
        Ok(Some(TarEntry { path: path.to_vec(), mode, modified, kind }))
    }
}

/// Reads a number: octal digits up to a space or NUL, or base 256 behind a first bit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u128::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256)? | u128::from(*byte);
        }
        return u64::try_from(value).ok();
    }
    let text = field.split(|byte| matches!(byte, 0 | b' ')).find(|part| !part.is_empty()).unwrap_or_default();
    text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as a server writes it.
    pub fn header(path: &str, kind: u8, size: u64) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0100600");
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[136..147].copy_from_slice(format!("{:011o}", 1_700_000_000).as_bytes());
        header[156] = kind;
        header[257..262].copy_from_slice(b"ustar");
        sealed(header)
    }

    fn sealed(mut header: Vec<u8>) -> Vec<u8> {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    pub fn file(path: &str, bytes: &[u8]) -> Vec<u8> {
        let mut file = [header(path, b'0', bytes.len() as u64), bytes.to_vec()].concat();
        file.resize(file.len().next_multiple_of(BLOCK), 0);
        file
    }

    /// Names, and what is in files.
    type Contents = Vec<(String, Option<Vec<u8>>)>;

    /// Reads an archive in steps.
    fn read(bytes: &[u8], step: usize) -> Result<Contents, TarError> {
        let mut reader = TarReader::new();
        let mut found = Contents::new();
        let mut ended = 0;
        for mut input in bytes.chunks(step) {
            while let Some(part) = reader.next(&mut input)? {
                match part {
                    TarPart::Entry(entry) => {
                        let is_file = matches!(entry.kind, TarKind::File(_));
                        found.push((String::from_utf8(entry.path).expect("text"), is_file.then(Vec::new)));
                    }
                    TarPart::Bytes(bytes) => {
                        let (_, contents) = found.last_mut().expect("a file was begun");
                        contents.as_mut().expect("a file").extend_from_slice(bytes);
                    }
                    TarPart::End => ended += 1,
                }
            }
        }
        reader.finish()?;
        assert_eq!(ended, found.iter().filter(|(_, contents)| contents.is_some()).count());
        Ok(found)
    }

    #[test]
    fn what_a_server_writes_is_read_however_it_is_cut() {
        let archive = [
            file("backup_label", b"START"),
            header("base/", b'5', 0),
            file("base/empty", b""),
            file("base/whole", &[7; 1024]),
            header("./pg_wal/archive_status/", b'5', 0),
            header("pg_tblspc/16400", b'2', 0),
            file("last", &[9; 512]),
            vec![0; 2 * BLOCK],
        ];
        let archive = archive.concat();
        let expected: Contents = [
            ("backup_label", Some(b"START".to_vec())),
            ("base", None),
            ("base/empty", Some(Vec::new())),
            ("base/whole", Some(vec![7; 1024])),
            ("pg_wal/archive_status", None),
            ("pg_tblspc/16400", None),
            ("last", Some(vec![9; 512])),
        ]
        .map(|(name, contents)| (name.to_owned(), contents))
        .to_vec();
        for step in [1, 7, 511, 512, 513, 4096] {
            assert_eq!(read(&archive, step).as_ref(), Ok(&expected), "in steps of {step}");
        }
        // Up to 14 nothing marks the end.
        assert_eq!(read(&archive[..archive.len() - 1024], 100), Ok(expected));
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        for name in ["/etc/passwd", "../x", "base/../../x", "a//b", ".", "base/./x", "././x", ""] {
            assert!(matches!(read(&file(name, b"x"), 64), Err(TarError::Path { .. })), "{name}");
        }
        for kind in *b"1346xgLKS" {
            assert!(matches!(read(&header("a", kind, 0), 64), Err(TarError::Kind { .. })), "{kind}");
        }
        let mut flipped = file("a", b"x");
        flipped[0] ^= 1;
        assert_eq!(read(&flipped, 64), Err(TarError::Checksum));
        let mut prefixed = header("a", b'0', 0);
        prefixed[345] = b'p';
        assert!(matches!(read(&sealed(prefixed), 64), Err(TarError::Field { .. })));
        assert!(matches!(read(&header("a", b'5', 9), 64), Err(TarError::Field { .. })));
        let mut huge = header("a", b'0', 0);
        huge[124..136].fill(0xff);
        assert!(matches!(read(&sealed(huge), 64), Err(TarError::Field { .. })));
        assert_eq!(read(&[vec![0; BLOCK], file("a", b"x")].concat(), 64), Err(TarError::Trailing));
    }

    #[test]
    fn an_archive_cut_anywhere_but_between_entries_is_refused() {
        let archive = file("a", &[1; 700]);
        for length in 1..archive.len() {
            assert_eq!(read(&archive[..length], 97), Err(TarError::Cut), "{length}");
        }
    }

    #[test]
    fn sizes_past_eight_gib_are_in_base_256() {
        let mut large = header("a", b'0', 0);
        large[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]);
        let mut input = &sealed(large)[..];
        let part = TarReader::new().next(&mut input).expect("a header");
        let Some(TarPart::Entry(entry)) = part else { panic!("{part:?}") };
        assert_eq!(entry.kind, TarKind::File((3 << 32) + 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>, step in 1usize..2000) {
            let mut reader = TarReader::new();
            for mut input in bytes.chunks(step) {
                while let Ok(Some(_)) = reader.next(&mut input) {}
            }
        }
    }
}
