//! Encryption to the server, as libpq's users ask for it.
//!
//! One configuration of rustls serves both kinds of connection: SQL through the driver, and the replication protocol.
//!
//! Source: "SSL Support" in the manual's chapter on libpq; `src/interfaces/libpq/fe-secure-openssl.c`.

mod binding;
mod connector;
mod verifier;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

pub use binding::end_point;
pub(super) use connector::Connector;
use verifier::Verifier;

/// `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // libpq's own names
pub enum SslMode {
    Disable,
    Allow,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    /// Reads libpq's word for it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// Returns how to try a connection over TCP, one way after the other.
    pub fn attempts(self) -> &'static [Attempt] {
        match self {
            Self::Disable => &[Attempt::Plain],
            Self::Allow => &[Attempt::Plain, Attempt::Encrypted],
            Self::Prefer => &[Attempt::EncryptedIfOffered, Attempt::Plain],
            Self::Require | Self::VerifyCa | Self::VerifyFull => &[Attempt::Encrypted],
        }
    }
}

/// One way to try a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Without encryption.
    Plain,
    /// With encryption, or without if the server has none.
    EncryptedIfOffered,
    /// With encryption or not at all.
    Encrypted,
}

/// `channel_binding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // libpq's own names
pub enum ChannelBindingMode {
    Disable,
    #[default]
    Prefer,
    Require,
}

/// Whose signature makes a server's certificate trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Nobody's: `sslmode=require` and weaker, without a root certificate.
    #[default]
    None,
    /// Those in a file.
    File(PathBuf),
    /// This system's, `sslrootcert=system`.
    System,
}

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Whether, and how strictly.
    pub mode: SslMode,
    /// Whom to trust.
    pub roots: Roots,
    /// The client's certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// `sslnegotiation=direct`: encrypted from the first byte, understood by servers since 17.
    pub direct: bool,
    /// Whether the connection must be bound to the encryption.
    pub binding: ChannelBindingMode,
}

impl TlsSettings {
    /// Makes the configuration of a connection.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else, by name.
    pub fn configuration(&self) -> io::Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(self.mode, self.root_store()?, Arc::clone(&provider))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut configuration = match &self.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let (certificate, key) = (certificates(certificate)?, private_key(key)?);
                builder.with_client_auth_cert(certificate, key).map_err(io::Error::other)?
            }
        };
        if self.direct {
            configuration.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(Arc::new(configuration))
    }

    fn root_store(&self) -> io::Result<Option<Anchors>> {
        let mut store = RootCertStore::empty();
        let mut given = Vec::new();
        match &self.roots {
            Roots::None if self.mode >= SslMode::VerifyCa => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "no root certificate to check the server's against: set sslrootcert to a file, or to system",
                ));
            }
            Roots::None => return Ok(None),
            Roots::File(path) => {
                given = certificates(path)?;
                for certificate in &given {
                    // A certificate that is no authority's may still be the server's own.
                    let _ = store.add(certificate.clone());
                }
            }
            Roots::System => {
                let found = rustls_native_certs::load_native_certs().certs;
                store.add_parsable_certificates(found);
                if store.is_empty() {
                    let built_in = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
                    store.add_parsable_certificates(built_in.iter().cloned());
                }
            }
        }
        Ok(Some(Anchors { store, given }))
    }
}

/// Whom to trust.
pub(super) struct Anchors {
    store: RootCertStore,
    /// The certificates of a root file, as they stand there.
    given: Vec<CertificateDer<'static>>,
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(invalid(path, "holds no certificate in PEM form")),
    }
}

/// Reads a private key, which nobody else may read.
fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let metadata = std::fs::metadata(path).map_err(|error| named(path, error))?;
    // libpq's rule: the user's own and private, or root's and readable for a group.
    let allowed = if metadata.uid() == 0 { 0o027 } else { 0o077 };
    if metadata.mode() & allowed != 0 {
        return Err(invalid(path, "is readable for others: chmod 0600"));
    }
    let bytes = read(path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        invalid(path, "holds no private key in PEM form, or one with a passphrase, which is not supported")
    })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| named(path, error))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn invalid(path: &Path, problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} {problem}", path.display()))
}
