//! Zstandard frames: how bytes become smaller, and how they come back without trusting a length.
//!
//! A frame is the unit of compression and of verification. Three kinds are written, all of them ordinary zstd frames
//! that any reader understands: compressed; *raw*, where compression does not pay, made of raw blocks; and *zeros*, made
//! of run-length blocks, so that the empty end of a segment costs neither time nor space.
//!
//! Source: RFC 8878, sections 3.1.1 (frames and blocks) and 3.1.2 (skippable frames).

use std::cell::RefCell;

use super::FormatError;

/// Raw bytes in one frame of a pack; the last frame of a file may be shorter.
pub const FRAME_BYTES: usize = 256 * 1024;

/// Levels at which the log is compressed in a way of its own: the default, and that of a backlog.
const WAL_LEVELS: [WalLevel; 2] = [
    WalLevel { level: 3, entries: 15, literals: true, small: Some(12) },
    WalLevel { level: 1, entries: 13, literals: false, small: None },
];
/// Bytes of a match in the log's own levels. Six or seven find half of what is worth finding in numbers of eight bytes.
const WAL_MATCH: u32 = 5;
/// Most bytes of the log that are worth a slow level: at this size it costs a millisecond.
const SMALL_BYTES: usize = 32 * 1024;

struct WalLevel {
    level: i32,
    /// The logarithm of the entries of the one table of matches.
    entries: u32,
    /// Whether what repeats nothing is compressed too.
    literals: bool,
    /// zstd's level for what is small, where it is another.
    small: Option<i32>,
}

/// Bytes looked at to decide whether compression is worth its time.
const PROBE_BYTES: usize = 16 * 1024;

/// Most raw bytes in one zstd block.
const BLOCK_BYTES: usize = 128 * 1024;

const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Frame header descriptors: single segment, so no window field, and a content size of 4 and of 8 bytes.
const SINGLE_SEGMENT_U32: u8 = 0b1010_0000;
const SINGLE_SEGMENT_U64: u8 = 0b1110_0000;

enum BlockKind {
    Raw = 0,
    RunLength = 1,
}

thread_local! {
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses frames; keeps its tables, so one a thread.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    /// For at most [`SMALL_BYTES`], if that is another.
    small: Option<zstd::bulk::Compressor<'static>>,
    probe: zstd::bulk::Compressor<'static>,
    sample: Vec<u8>,
    /// Whether the frame before was stored as it is: what cannot be compressed comes in stretches.
    suspicious: bool,
}

impl Compressor {
    /// Makes a compressor for a zstd level, 1 to 19.
    pub fn new(level: i32) -> Self {
        Self { zstd: compressor(level), small: None, probe: compressor(1), sample: Vec::new(), suspicious: false }
    }

    /// Makes a compressor for the log, which repeats itself in short stretches: where zstd's level 3 looks for long matches
    /// and short ones in two tables, one table of the short ones finds as much in two thirds of the time or less, and a
    /// small one, which stays in a core's own cache, no less than a large one. What PostgreSQL hands over nearly empty is
    /// compressed slowly, for a fraction of a millisecond. `docs/decisions.md` has the figures. All other levels are zstd's
    /// own.
    pub fn for_wal(level: i32) -> Self {
        use zstd::zstd_safe::{CParameter, Strategy};
        let mut made = Self::new(level);
        if let Some(own) = WAL_LEVELS.iter().find(|own| own.level == level) {
            let parameters = [
                CParameter::Strategy(Strategy::ZSTD_fast),
                CParameter::WindowLog(22),
                CParameter::HashLog(own.entries),
                CParameter::MinMatch(WAL_MATCH),
                // This strategy's step is two with 0 and with 1, and from 1 on it leaves literals as they are.
                CParameter::TargetLength(u32::from(!own.literals)),
            ];
            for parameter in parameters {
                made.zstd.set_parameter(parameter).expect("a known parameter");
            }
            made.small = own.small.map(compressor);
        }
        made
    }

    /// Appends `raw` to `out` as one frame and returns the frame's length.
    pub fn append(&mut self, raw: &[u8], out: &mut Vec<u8>) -> usize {
        let start = out.len();
        if self.suspicious && self.looks_incompressible(raw) {
            append_raw(raw, out);
            return out.len() - start;
        }
        out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        let mut end = std::io::Cursor::new(&mut *out);
        end.set_position(start as u64);
        let zstd = self.small.as_mut().filter(|_| raw.len() <= SMALL_BYTES).unwrap_or(&mut self.zstd);
        let stored = zstd.compress_to_buffer(raw, &mut end).expect("the buffer holds the worst case");
        self.suspicious = stored > raw.len() / 100 * 98;
        if stored >= raw_frame_len(raw.len()) {
            out.truncate(start);
            append_raw(raw, out);
        }
        out.len() - start
    }

    /// Compressing what cannot be compressed costs as much as what can: a sample of the middle tells. The sample costs
    /// too, so it is taken only while there is reason to.
    fn looks_incompressible(&mut self, raw: &[u8]) -> bool {
        if raw.len() < 4 * PROBE_BYTES {
            return false;
        }
        let middle = raw.len() / 2;
        self.sample.clear();
        self.sample.reserve(zstd::zstd_safe::compress_bound(PROBE_BYTES));
        let sample = &raw[middle..middle + PROBE_BYTES];
        let stored = self.probe.compress_to_buffer(sample, &mut self.sample).expect("the buffer holds the worst case");
        stored > PROBE_BYTES / 100 * 98
    }
}

fn compressor(level: i32) -> zstd::bulk::Compressor<'static> {
    let mut zstd = zstd::bulk::Compressor::new(level).expect("a level the caller has checked");
    // Every frame is verified by a SHA-256 of ours; the size in the header bounds the reader.
    zstd.include_checksum(false).expect("a known parameter");
    zstd.include_contentsize(true).expect("a known parameter");
    zstd
}

/// Appends a frame that holds `raw` as it is.
pub fn append_raw(raw: &[u8], out: &mut Vec<u8>) {
    append_header(raw.len() as u64, out);
    if raw.is_empty() {
        append_block(BlockKind::Raw, 0, true, out);
    }
    let mut rest = raw;
    while !rest.is_empty() {
        let (block, after) = rest.split_at(rest.len().min(BLOCK_BYTES));
        append_block(BlockKind::Raw, block.len(), after.is_empty(), out);
        out.extend_from_slice(block);
        rest = after;
    }
}

/// Appends a frame that holds `len` zeros in four bytes for every 128 KiB.
pub fn append_zeros(len: usize, out: &mut Vec<u8>) {
    append_header(len as u64, out);
    if len == 0 {
        append_block(BlockKind::Raw, 0, true, out);
    }
    let mut rest = len;
    while rest > 0 {
        let block = rest.min(BLOCK_BYTES);
        rest -= block;
        append_block(BlockKind::RunLength, block, rest == 0, out);
        out.push(0);
    }
}

fn raw_frame_len(raw: usize) -> usize {
    header_len(raw as u64) + raw + 3 * raw.div_ceil(BLOCK_BYTES).max(1)
}

fn append_header(content: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    match u32::try_from(content) {
        Ok(content) => {
            out.push(SINGLE_SEGMENT_U32);
            out.extend_from_slice(&content.to_le_bytes());
        }
        Err(_) => {
            out.push(SINGLE_SEGMENT_U64);
            out.extend_from_slice(&content.to_le_bytes());
        }
    }
}

fn header_len(content: u64) -> usize {
    if u32::try_from(content).is_ok() { 9 } else { 13 }
}

fn append_block(kind: BlockKind, size: usize, last: bool, out: &mut Vec<u8>) {
    let header = u32::from(last) | (kind as u32) << 1 | (size as u32) << 3;
    out.extend_from_slice(&header.to_le_bytes()[..3]);
}

/// Decompresses frames, one or many, into exactly `raw_len` bytes; skippable frames among them are passed over.
///
/// # Errors
/// [`FormatError::Body`] if the frames are damaged or hold more or fewer bytes. Never writes more than `raw_len`.
pub fn decompress(stored: &[u8], raw_len: usize) -> Result<Vec<u8>, FormatError> {
    let mut raw = Vec::with_capacity(raw_len);
    decompress_into(stored, raw_len, &mut raw)?;
    Ok(raw)
}

/// Returns the first of some frames, and the bytes that it holds, at most `limit`.
///
/// # Errors
/// [`FormatError::Body`] if it is damaged, does not say how much it holds, or holds more.
pub fn first(stored: &[u8], limit: u64) -> Result<(&[u8], usize), FormatError> {
    let damaged = |problem: &str| FormatError::Body { problem: problem.to_owned() };
    let len = zstd::zstd_safe::find_frame_compressed_size(stored);
    let len = len.map_err(|code| damaged(zstd::zstd_safe::get_error_name(code)))?;
    let frame = stored.get(..len).filter(|frame| !frame.is_empty()).ok_or_else(|| damaged("is cut off"))?;
    match zstd::zstd_safe::get_frame_content_size(frame) {
        Ok(Some(raw_len)) if raw_len <= limit => {
            Ok((frame, usize::try_from(raw_len).map_err(|_| FormatError::Memory)?))
        }
        Ok(Some(_)) => Err(damaged("holds more bytes than it should")),
        Ok(None) | Err(_) => Err(damaged("does not say how much it holds")),
    }
}

/// As [`decompress`], into a buffer whose contents are replaced and that may be used again. After an error it holds
/// nothing.
pub fn decompress_into(stored: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<(), FormatError> {
    let decompressed = overwrite(stored, raw_len, raw);
    if decompressed.is_err() {
        raw.clear();
    }
    decompressed
}

fn overwrite(stored: &[u8], raw_len: usize, raw: &mut Vec<u8>) -> Result<(), FormatError> {
    raw.reserve_exact(raw_len.saturating_sub(raw.len()));
    // What is in it from the frame before need not be wiped: every byte is written, or the length is wrong.
    raw.resize(raw_len, 0);
    decompress_to(stored, raw)
}

/// As [`decompress`], into a buffer that is filled exactly. After an error it holds anything.
pub fn decompress_to(stored: &[u8], raw: &mut [u8]) -> Result<(), FormatError> {
    let raw_len = raw.len();
    let found = DECOMPRESSOR.with_borrow_mut(|slot| {
        let zstd = match slot {
            Some(zstd) => zstd,
            None => slot.insert(zstd::bulk::Decompressor::new().map_err(|_| FormatError::Memory)?),
        };
        zstd.decompress_to_buffer(stored, raw).map_err(|error| FormatError::Body { problem: error.to_string() })
    })?;
    if found != raw_len {
        return Err(FormatError::Body { problem: format!("holds {found} bytes instead of {raw_len}") });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(len: usize, mut seed: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            bytes.extend_from_slice(&(seed >> 16).to_le_bytes()[..4]);
        }
        bytes.truncate(len);
        bytes
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(raw in proptest::collection::vec(0u8..4, 0..200_000)) {
            let mut out = Vec::new();
            Compressor::new(3).append(&raw, &mut out);
            prop_assert_eq!(decompress(&out, raw.len()).ok(), Some(raw));
        }
    }

    #[test]
    fn the_logs_own_levels_store_hardly_more_than_zstds() {
        use crate::pg::wal_fixture::segments;
        for WalLevel { level, literals, .. } in WAL_LEVELS {
            let (mut own, mut zstds) = (Vec::new(), Vec::new());
            for major in [15, 18] {
                let log: Vec<u8> = segments(major, 1).into_iter().flat_map(|(_, raw)| raw).collect();
                for part in log.chunks(4 << 20) {
                    let start = own.len();
                    Compressor::for_wal(level).append(part, &mut own);
                    Compressor::new(level).append(part, &mut zstds);
                    assert!(decompress(&own[start..], part.len()).expect("a frame just made") == part);
                }
            }
            let percent = own.len() * 100 / zstds.len();
            // These segments have little in them, and little of that twice: here it tells that literals stay as they are.
            let most = if literals { 102 } else { 107 };
            assert!(percent <= most, "level {level}: {} bytes, {percent} % of zstd's", own.len());
        }
    }

    #[test]
    fn what_is_nearly_empty_is_compressed_slowly_and_a_backlog_is_not() {
        let text: Vec<u8> = (0..SMALL_BYTES as u32 / 8).flat_map(|n| (n * n % 4099).to_string().into_bytes()).collect();
        let stored = |level, raw: &[u8]| {
            let mut out = Vec::new();
            Compressor::for_wal(level).append(raw, &mut out);
            assert_eq!(decompress(&out, raw.len()).expect("a frame just made"), raw);
            out.len()
        };
        let zstds = |raw: &[u8]| {
            let mut out = Vec::new();
            Compressor::new(12).append(raw, &mut out);
            out.len()
        };
        let (small, large) = (&text[..SMALL_BYTES / 4], &text.repeat(4)[..SMALL_BYTES + 1]);
        assert_eq!(stored(3, small), zstds(small));
        assert!(stored(3, small) < stored(1, small));
        assert_ne!(stored(3, large), zstds(large));
    }

    #[test]
    fn a_length_takes_four_bytes_of_the_header_while_it_fits() {
        for (content, header) in [(0, 9), (u64::from(u32::MAX), 9), (1 << 32, 13)] {
            let mut out = Vec::new();
            append_header(content, &mut out);
            assert_eq!((out.len(), header_len(content)), (header, header));
            assert_eq!(zstd::zstd_safe::get_frame_content_size(&out).ok(), Some(Some(content)));
        }
    }

    #[test]
    fn random_bytes_hardly_grow_and_what_follows_them_is_compressed_again() {
        let (noise, text) = (random(FRAME_BYTES, 7), b"text ".repeat(FRAME_BYTES / 5));
        let mut compressor = Compressor::new(3);
        for (place, raw) in [&noise, &noise, &text].into_iter().enumerate() {
            let mut out = Vec::new();
            compressor.append(raw, &mut out);
            match place {
                0 => assert!(out.len() <= raw_frame_len(raw.len())),
                // Not even tried.
                1 => assert_eq!(out.len(), raw_frame_len(raw.len())),
                _ => assert!(out.len() < raw.len() / 100),
            }
            assert_eq!(&decompress(&out, raw.len()).expect("a frame just made"), raw);
        }
    }

    #[test]
    fn zeros_cost_next_to_nothing() {
        for len in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 16 << 20] {
            let mut out = Vec::new();
            append_zeros(len, &mut out);
            assert!(out.len() <= 16 + 4 * (len / BLOCK_BYTES + 1));
            assert_eq!(decompress(&out, len).expect("a frame just made"), vec![0; len]);
        }
    }

    #[test]
    fn a_frame_that_holds_more_than_it_should_is_refused() {
        let mut bomb = Vec::new();
        append_zeros(64 << 20, &mut bomb);
        assert!(matches!(decompress(&bomb, 1000), Err(FormatError::Body { .. })));
        assert!(matches!(decompress(&bomb, (64 << 20) + 1), Err(FormatError::Body { .. })));
        assert!(matches!(decompress(&bomb[..bomb.len() - 1], 64 << 20), Err(FormatError::Body { .. })));
    }
}
