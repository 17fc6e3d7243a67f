//! Small JSON documents that verify themselves: `repository.json`, lanes, owners, the plan left by a restore.
//!
//! A document is a JSON object on lines, and its last member, alone on the last line but for the brace, is the SHA-256
//! of every byte before that line. People read it, any JSON reader reads it, and a flipped bit is found out.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::FormatError;
use super::digest::Sha256;

const LAST_LINE: &str = "\"sha256\": \"";
/// Larger documents are refused before they are parsed.
const LIMIT: usize = 4 << 20;

/// Returns the document's bytes.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let json = serde_json::to_string_pretty(value).expect("a struct of plain values");
    let open = json.strip_suffix("\n}").expect("a struct with at least one member");
    let mut bytes = format!("{open},\n").into_bytes();
    let digest = Sha256::of(&bytes);
    bytes.extend_from_slice(format!("{LAST_LINE}{digest}\"}}\n").as_bytes());
    bytes
}

/// Reads a document; `name` is what errors call it.
///
/// # Errors
/// [`FormatError::Damaged`] if the digest does not fit, [`FormatError::Nonsense`] if the members do not.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], name: &'static str) -> Result<T, FormatError> {
    if bytes.len() > LIMIT {
        return Err(FormatError::TooLarge { bytes: bytes.len() as u64, limit: LIMIT as u64 });
    }
    let damaged = FormatError::Damaged { part: name };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged.clone())?;
    let at = text.rfind(LAST_LINE).ok_or_else(|| damaged.clone())?;
    let digest = text[at + LAST_LINE.len()..].strip_suffix("\"}\n").and_then(|digest| digest.parse::<Sha256>().ok());
    if digest != Some(Sha256::of(&bytes[..at])) {
        return Err(damaged);
    }
    serde_json::from_str(text).map_err(|error| FormatError::Nonsense { document: name, problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Sample {
        name: String,
        number: u32,
    }

    fn sample() -> Vec<u8> {
        encode(&Sample { name: "a \"quoted\" name".to_owned(), number: 7 })
    }

    #[test]
    fn a_document_is_json_and_comes_back() {
        let value: serde_json::Value = serde_json::from_slice(&sample()).expect("JSON");
        assert_eq!(value["number"], 7);
        let back: Sample = decode(&sample(), "sample").expect("a document just made");
        assert_eq!(back, Sample { name: "a \"quoted\" name".to_owned(), number: 7 });
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let bytes = sample();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The digest's own letters may change case and still be the same digest.
            let same = String::from_utf8_lossy(&flipped).to_lowercase() == String::from_utf8_lossy(&bytes);
            assert!(same || decode::<Sample>(&flipped, "sample").is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode::<Sample>(&bytes[..len], "sample").is_err(), "cut to {len}");
        }
    }
}
