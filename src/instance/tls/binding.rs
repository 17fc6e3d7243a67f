//! `tls-server-end-point`: the digest of the server's certificate, which binds a login to this very connection.
//!
//! Source: RFC 5929, section 4; `pgtls_get_peer_certificate_hash` in `fe-secure-openssl.c`.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// Object identifiers of signature algorithms as DER has them, and which digest they use. MD5 and SHA-1 count as SHA-256.
const ALGORITHMS: [(&[u8], Hash); 11] = [
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04], Hash::Sha256), // md5WithRSAEncryption
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05], Hash::Sha256), // sha1WithRSAEncryption
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b], Hash::Sha256), // sha256WithRSAEncryption
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c], Hash::Sha384), // sha384WithRSAEncryption
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d], Hash::Sha512), // sha512WithRSAEncryption
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], Hash::Sha256),             // ecdsa-with-SHA1
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02], Hash::Sha256),       // ecdsa-with-SHA256
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], Hash::Sha384),       // ecdsa-with-SHA384
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04], Hash::Sha512),       // ecdsa-with-SHA512
    (&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03, 0x02], Hash::Sha256), // dsa-with-sha256
    (&[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x03], Hash::Sha256),             // dsa-with-sha1
];

#[derive(Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// Returns the data of the channel binding for a server's certificate; `None` if its signature's algorithm names no
/// digest, as Ed25519: then there is no such binding, on either side.
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, fields, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, _, after) = element(fields)?;
    let (_, algorithm, _) = element(after).filter(|(tag, ..)| *tag == SEQUENCE)?;
    let (_, identifier, _) = element(algorithm).filter(|(tag, ..)| *tag == OBJECT_IDENTIFIER)?;
    let (_, hash) = ALGORITHMS.iter().find(|(known, _)| *known == identifier)?;
    Some(match hash {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// Splits off one DER element: its tag, its contents, what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A certificate as far as this looks into it: something signed, and with which algorithm.
    fn certificate(identifier: &[u8]) -> Vec<u8> {
        let wrap = |tag: u8, inner: &[u8]| {
            let length = inner.len() as u16;
            [&[tag, 0x82][..], &length.to_be_bytes(), inner].concat()
        };
        let signed = wrap(SEQUENCE, &[7; 300]);
        let algorithm = wrap(SEQUENCE, &wrap(OBJECT_IDENTIFIER, identifier));
        wrap(SEQUENCE, &[signed, algorithm, wrap(3, &[1; 64])].concat())
    }

    #[test]
    fn the_digest_is_the_signatures_own() {
        for (identifier, hash) in ALGORITHMS {
            let certificate = certificate(identifier);
            let expected = match hash {
                Hash::Sha256 => Sha256::digest(&certificate).to_vec(),
                Hash::Sha384 => Sha384::digest(&certificate).to_vec(),
                Hash::Sha512 => Sha512::digest(&certificate).to_vec(),
            };
            assert_eq!(end_point(&certificate), Some(expected));
        }
        // Ed25519 names none.
        assert_eq!(end_point(&certificate(&[0x2b, 0x65, 0x70])), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            end_point(&bytes);
        }
    }
}
