//! `UPLOAD_MANIFEST`: the manifest of an older backup, which the next incremental one builds on.
//!
//! The server holds the name of every file in it until the connection ends.
//!
//! Source: "UPLOAD_MANIFEST" in "Streaming Replication Protocol"; `UploadManifest` in `walsender.c`,
//! `AppendIncrementalManifestData` in `basebackup_incremental.c`.

use std::io::{self, Write};

use super::client::ReplicationClient;
use super::error::ReplicationError;
use super::frames::refusal;

const ACTION: &str = "upload the older backup's manifest";
/// Bytes of a manifest in one message.
const PART: usize = 64 << 10;

/// The way to the server, while it takes a manifest.
struct Upload<'c> {
    client: &'c mut ReplicationClient,
    lost: Option<io::Error>,
}

impl ReplicationClient {
    /// Uploads the manifest that `write` writes, however long it is. If that fails, the server is told so, the connection
    /// can be used further, and the inner error is what `write` said.
    ///
    /// # Errors
    /// [`ReplicationError::Refused`] if the server takes no such manifest; it can be asked for a full backup.
    pub fn upload_manifest<E>(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Result<(), E>, ReplicationError> {
        self.send_query(ACTION, "UPLOAD_MANIFEST")?;
        let begun = match self.message(ACTION)? {
            (b'G', _) => Ok(()),
            (b'E', body) => Err(ReplicationError::Refused { action: ACTION, source: refusal(body) }),
            (other, _) => {
                let what = format!("a message {:?} where it was to take a manifest", char::from(other));
                return Err(ReplicationError::Answer { action: ACTION, what });
            }
        };
        if let Err(refused) = begun {
            self.until_ready(ACTION)?;
            return Err(refused);
        }
        let mut upload = Upload { client: self, lost: None };
        let written = {
            let mut buffered = io::BufWriter::with_capacity(PART, &mut upload);
            let written = write(&mut buffered);
            // Of what could not be written, nothing is to be flushed later.
            let flushed = if written.is_ok() { buffered.flush() } else { Ok(()) };
            drop(buffered.into_parts());
            drop(flushed);
            written
        };
        if let Some(source) = upload.lost {
            return Err(ReplicationError::Lost { action: ACTION, source });
        }
        let end: &[u8] = if written.is_ok() { b"c\0\0\0\x04" } else { b"f\0\0\0\x05\0" };
        self.send(ACTION, end)?;
        match (self.until_ready(ACTION), written) {
            (Ok(()), Ok(())) => Ok(Ok(())),
            // It says that the upload failed, which it was told.
            (Ok(()) | Err(ReplicationError::Refused { .. }), Err(problem)) => Ok(Err(problem)),
            (Err(error), _) => Err(error),
        }
    }
}

impl Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = &bytes[..bytes.len().min(PART)];
        let mut message = Vec::with_capacity(5 + some.len());
        message.push(b'd');
        message.extend_from_slice(&(4 + some.len() as u32).to_be_bytes());
        message.extend_from_slice(some);
        match self.client.send(ACTION, &message) {
            Ok(()) => Ok(some.len()),
            Err(error) => {
                let source = match error {
                    ReplicationError::Lost { source, .. } => source,
                    error => io::Error::other(error),
                };
                let again = io::Error::new(source.kind(), "the connection to the server was lost");
                self.lost.get_or_insert(source);
                Err(again)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
