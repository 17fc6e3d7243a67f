//! Messages of the server, one after the other, in one buffer that is used again.
//!
//! Source: "Message Formats" in the manual's chapter on the protocol.

use std::io::{self, Read, Write};

use super::error::Refusal;

/// Largest message that is taken: a server sends a backup in pieces of at most a few hundred KiB.
const LARGEST: usize = 16 << 20;
const BUFFER: usize = 256 << 10;

/// A connection, read message by message.
pub(super) struct Frames<S> {
    stream: S,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<S: Read + Write> Frames<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Reads the next message: its tag and what it carries.
    ///
    /// # Errors
    /// `UnexpectedEof` if the connection ends, also between two messages; `InvalidData` for a length that cannot be.
    pub fn next(&mut self) -> io::Result<(u8, &[u8])> {
        self.fill(5)?;
        let tag = self.buffer[self.start];
        let length = &self.buffer[self.start + 1..self.start + 5];
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        if !(4..=LARGEST).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
        }
        self.fill(1 + length)?;
        let at = self.start;
        self.start += 1 + length;
        Ok((tag, &self.buffer[at + 5..at + 1 + length]))
    }

    /// Returns the bytes that were read last.
    pub fn before_unread(&self, length: usize) -> &[u8] {
        &self.buffer[self.start - length..self.start]
    }

    /// Has at least so many bytes in the buffer.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.end - self.start >= wanted {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        while self.end < wanted {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it")),
                Ok(more) => self.end += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }
}

/// Reads an `ErrorResponse` or a `NoticeResponse`.
pub(super) fn refusal(body: &[u8]) -> Refusal {
    let mut refusal = Refusal::default();
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => refusal.code = text,
            b'M' => refusal.message = text,
            b'D' => refusal.detail = Some(text),
            _ => {}
        }
    }
    refusal
}

/// Reads a `DataRow` of texts; `None` if it is none.
pub(super) fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let text = |field: Vec<u8>| String::from_utf8_lossy(&field).into_owned();
    Some(fields(body)?.into_iter().map(|field| field.map(text)).collect())
}

/// Reads a `DataRow`; `None` if it is none.
pub(super) fn fields(body: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let (count, mut rest) = body.split_at_checked(2)?;
    let count = u16::from_be_bytes(count.try_into().ok()?);
    let mut fields = Vec::new();
    for _ in 0..count {
        let (length, after) = rest.split_at_checked(4)?;
        let length = i32::from_be_bytes(length.try_into().ok()?);
        let Ok(length) = usize::try_from(length) else {
            fields.push(None);
            rest = after;
            continue;
        };
        let (field, after) = after.split_at_checked(length)?;
        fields.push(Some(field.to_vec()));
        rest = after;
    }
    rest.is_empty().then_some(fields)
}

/// Splits off a text that ends in a NUL.
pub(super) fn text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A connection that gives its bytes in pieces, and takes anything.
    struct Scripted(Vec<u8>, usize);

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let some = self.0.len().min(self.1).min(buffer.len());
            buffer[..some].copy_from_slice(&self.0[..some]);
            self.0.drain(..some);
            Ok(some)
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    proptest! {
        #[test]
        fn messages_come_whole_however_they_are_cut(
            bodies in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..2000)), 0..20),
            step in 1usize..3000,
        ) {
            let bytes: Vec<u8> = bodies.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
            let mut frames = Frames::new(Scripted(bytes, step));
            for (tag, body) in &bodies {
                let (found, bytes) = frames.next().expect("a message");
                prop_assert_eq!((found, bytes), (*tag, body.as_slice()));
            }
            prop_assert_eq!(frames.next().expect_err("no more").kind(), io::ErrorKind::UnexpectedEof);
        }

        #[test]
        fn any_bytes_are_no_row_or_one(body: Vec<u8>) {
            row(&body);
            refusal(&body);
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_it_is_read() {
        for length in [0u32, 3, 1 << 30, u32::MAX] {
            let bytes = [&b"d"[..], &length.to_be_bytes(), b"rest"].concat();
            let error = Frames::new(Scripted(bytes, 64)).next().expect_err("nonsense");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
        }
    }

    #[test]
    fn a_message_larger_than_the_buffer_is_taken() {
        let body = vec![7; 3 * BUFFER];
        let mut frames = Frames::new(Scripted(message(b'd', &body), BUFFER));
        assert_eq!(frames.next().expect("a message"), (b'd', body.as_slice()));
    }
}
