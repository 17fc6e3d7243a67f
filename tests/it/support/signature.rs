//! Whether a request was signed by somebody who has the secret, as S3 and Google find out.
//!
//! Source: "Authenticating Requests (AWS Signature Version 4)" in the S3 API reference; RFC 7515 and 7519 and AIP-4111 for
//! the tokens that a Google service account signs for itself.

use ::walvault::format::Sha256;
use rustls::crypto::ring;
use rustls::pki_types::alg_id;
use serde_json::Value;

use super::http_server::Request;

/// Compares the signature of a request to S3 with the one that the secret gives.
pub fn is_signed_with(request: &Request, secret: &str) -> bool {
    let authorization = request.header("authorization").unwrap_or_default();
    let Some(parts) = authorization.strip_prefix("AWS4-HMAC-SHA256 ") else { return false };
    let part = |name: &str| parts.split(", ").find_map(|part| part.strip_prefix(name)).unwrap_or_default();
    let (scope, signed) = (part("Credential=").split_once('/').map_or("", |(_, scope)| scope), part("SignedHeaders="));
    let mut query: Vec<String> =
        request.query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    query.sort();
    let headers: Vec<String> =
        signed.split(';').map(|name| format!("{name}:{}\n", request.header(name).unwrap_or_default().trim())).collect();
    let body = request.header("x-amz-content-sha256").unwrap_or_default();
    let canonical = [&request.method, &request.path, &query.join("&"), &headers.concat(), signed, body].join("\n");
    let date = request.header("x-amz-date").unwrap_or_default();
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", Sha256::of(canonical.as_bytes()));
    let first = format!("AWS4{secret}").into_bytes();
    let key = scope.split('/').fold(first, |key, word| hmac(&key, word.as_bytes()).to_vec());
    // What is not signed could be changed on the way.
    let needed = ["host", "x-amz-content-sha256", "x-amz-date"];
    needed.iter().all(|name| signed.split(';').any(|found| found == *name))
        && part("Signature=") == hex::encode(hmac(&key, text.as_bytes()))
}

/// RFC 2104, with SHA-256.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    match key.len() {
        0..=64 => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(Sha256::of(key).bytes()),
    }
    let inner = Sha256::of(&[&block.map(|byte| byte ^ 0x36)[..], message].concat());
    *Sha256::of(&[&block.map(|byte| byte ^ 0x5c)[..], inner.bytes()].concat()).bytes()
}

fn encode(text: &str) -> String {
    let spelt = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(spelt).collect()
}

/// Scopes that let somebody read and write objects.
const SCOPES: [&str; 3] = [
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/devstorage.read_write",
    "https://www.googleapis.com/auth/devstorage.full_control",
];
const AUDIENCE: &str = "https://storage.googleapis.com/";

/// Judges a token that the service account `email` should have signed for itself with the private half of `public`.
///
/// # Errors
/// What is wrong with it.
pub fn judge_token(token: &str, email: &str, public: &[u8], now: i64) -> Result<(), &'static str> {
    let (message, signature) = token.rsplit_once('.').ok_or("no token")?;
    let (header, claims) = message.split_once('.').ok_or("no token")?;
    let signature = decode(signature).ok_or("the signature is not base64url")?;
    let known = ring::default_provider().signature_verification_algorithms.all.iter();
    let algorithm = known.copied().find(|algorithm| {
        algorithm.signature_alg_id() == alg_id::RSA_PKCS1_SHA256
            && algorithm.public_key_alg_id() == alg_id::RSA_ENCRYPTION
    });
    let algorithm = algorithm.ok_or("no RS256 here")?;
    algorithm.verify_signature(public, message.as_bytes(), &signature).map_err(|_| "the signature is wrong")?;
    let json = |part: &str| serde_json::from_slice::<Value>(&decode(part)?).ok();
    let (header, claims) = json(header).zip(json(claims)).ok_or("no JSON")?;
    if header["alg"] != "RS256" || header["typ"] != "JWT" || !header["kid"].is_string() {
        return Err("not the header of such a token");
    }
    if claims["iss"] != email || claims["sub"] != email {
        return Err("another account's");
    }
    let (issued, ends) = claims["iat"].as_i64().zip(claims["exp"].as_i64()).ok_or("without its times")?;
    if issued > now + 60 {
        return Err("not issued yet");
    }
    if ends <= now || ends - issued > 3600 {
        return Err("expired, or for more than an hour");
    }
    // One or the other says what it is for: AIP-4111.
    let scopes = claims["scope"].as_str().unwrap_or_default();
    if claims["aud"] != AUDIENCE && !scopes.split(' ').any(|scope| SCOPES.contains(&scope)) {
        return Err("not for storage");
    }
    Ok(())
}

/// Undoes base64url without padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bits, mut held, mut out) = (0u32, 0, Vec::new());
    for letter in text.bytes() {
        bits = bits << 6 | LETTERS.iter().position(|known| *known == letter)? as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

/// As [`decode`] takes it.
pub fn to_base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letter = |chunk: &[u8], place: usize| {
        let whole = chunk.iter().chain([&0, &0]).take(3).fold(0u32, |whole, byte| whole << 8 | u32::from(*byte));
        char::from(LETTERS[(whole >> (18 - 6 * place)) as usize & 63])
    };
    bytes.chunks(3).flat_map(|chunk| (0..=chunk.len()).map(move |place| letter(chunk, place))).collect()
}
