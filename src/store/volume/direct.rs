//! How the bytes of a new file get to the disk: a large one's round the page cache, everything else's through it.
//!
//! What is stored is not read soon, and the server beside it needs the memory. Where the file system cannot write past
//! memory, or refuses to, the rest of the file goes through memory, and nothing is lost. Neither way makes anything
//! durable: a direct write may stay in the device's own memory, and the file's length is not on the disk yet. So the file
//! is synced afterwards as any other.
//!
//! All but the last bytes are written in aligned stretches; those that do not fill a block go through memory, so that no
//! file is ever longer than what was written to it. After a refusal the position of the file tells what is written: a
//! write that fails does not move it, and one that was cut short moves it by what it wrote.
//!
//! Source: open(2) under `O_DIRECT`, fcntl(2) under `F_SETFL`, write(2); `ext4_dio_write_iter` in `fs/ext4/file.c`.

use std::fs::File;
use std::io::{self, Seek};

use object_store::PutPayload;

use super::Disk;

/// Least size of a file that is written past memory. Below it that takes longer, because the disk is waited for, and
/// leaves little in memory.
const WORTHWHILE: usize = 256 << 10;

/// Bytes of one direct write, and so of the buffer that one file takes. Each is waited for, so that many small ones are
/// slow.
const STRETCH: usize = 1 << 20;

/// What address, place in the file and length of a direct write are multiples of: no less than any disk's logical block. A
/// disk with larger ones refuses.
const BLOCK: usize = 4096;

/// Appends `body` to `file`, which is new and empty.
///
/// # Errors
/// What the operating system says of a write; never that it refuses to write past memory.
pub(super) fn write(disk: &dyn Disk, file: &mut File, body: &PutPayload) -> io::Result<()> {
    let written = match body.content_length() >= WORTHWHILE && disk.direct(file, true).is_ok() {
        true => {
            let ended = write_blocks(disk, file, body);
            disk.direct(file, false)?;
            ended.or_else(|error| if is_refusal(&error) { Ok(()) } else { Err(error) })?;
            file.stream_position()?
        }
        false => 0,
    };
    write_after(written, disk, file, body)
}

/// Writes as much of `body` as fills whole blocks, from an aligned copy.
fn write_blocks(disk: &dyn Disk, file: &mut File, body: &PutPayload) -> io::Result<()> {
    let mut left = body.content_length() / BLOCK * BLOCK;
    let mut stretch = Stretch::new(left.min(STRETCH));
    for mut bytes in body.iter().map(|part| &part[..]) {
        while left > 0 && !bytes.is_empty() {
            let taken = stretch.take(bytes, left);
            (bytes, left) = (&bytes[taken..], left - taken);
            if stretch.is_full() || left == 0 {
                disk.write(file, stretch.bytes())?;
                stretch.clear();
            }
        }
    }
    Ok(())
}

/// Writes what follows the first `written` bytes of `body`.
fn write_after(written: u64, disk: &dyn Disk, file: &mut File, body: &PutPayload) -> io::Result<()> {
    let mut written = usize::try_from(written).map_err(io::Error::other)?;
    for part in body {
        let skipped = written.min(part.len());
        written -= skipped;
        if skipped < part.len() {
            disk.write(file, &part[skipped..])?;
        }
    }
    Ok(())
}

/// Whether an error says that this is no way to write here, and nothing about what was to be written.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// A buffer that begins at a block's boundary in memory.
struct Stretch {
    /// Never grows beyond the room that it was made with, so that it is not moved.
    buffer: Vec<u8>,
    start: usize,
    size: usize,
}

impl Stretch {
    fn new(size: usize) -> Self {
        let mut buffer: Vec<u8> = Vec::with_capacity(size + BLOCK);
        let start = buffer.as_ptr().align_offset(BLOCK);
        buffer.resize(start, 0);
        Self { buffer, start, size }
    }

    /// Takes as many of `bytes` as there is room for, and no more than `most`; returns how many.
    fn take(&mut self, bytes: &[u8], most: usize) -> usize {
        let taken = bytes.len().min(most).min(self.size - self.bytes().len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn is_full(&self) -> bool {
        self.bytes().len() == self.size
    }

    fn clear(&mut self) {
        self.buffer.truncate(self.start);
    }
}

#[cfg(test)]
mod tests;
