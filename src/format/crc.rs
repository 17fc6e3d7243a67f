//! CRC-32C of what is known only in parts.
//!
//! A CRC is the remainder of the bytes as a polynomial over two elements; more bytes behind it multiply it by a power of
//! x. Every page of a backup is joined to its file in this way, so the powers are computed beforehand.
//!
//! Source: the Castagnoli polynomial in RFC 3720, section 12.1, with its bits reflected.

const POLYNOMIAL: u32 = 0x82F6_3B78;

/// x to the power of 8 · 2ⁿ: what 2ⁿ more bytes multiply by. The highest bit stands for the power 0.
const POWERS: [u32; 64] = {
    let mut powers = [1 << (31 - 8); 64];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

/// Returns the CRC-32C of two stretches, one after the other.
pub fn join(first: u32, second: u32, second_len: u64) -> u32 {
    shift(first, second_len) ^ second
}

/// Returns the CRC-32C of a stretch with `len` zeros after it, without touching that many bytes.
pub fn append_zeros(crc: u32, len: u64) -> u32 {
    // What is kept is inverted, before the first byte and after the last.
    !shift(!crc, len)
}

/// Makes room for `len` bytes behind a remainder.
fn shift(remainder: u32, len: u64) -> u32 {
    let bits = POWERS.iter().enumerate().filter(|(bit, _)| len >> bit & 1 == 1);
    bits.fold(remainder, |remainder, (_, power)| multiply(remainder, *power))
}

/// Multiplies two remainders; without branches, which no processor could predict here.
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    while a != 0 {
        product ^= b & (a >> 31).wrapping_neg();
        a <<= 1;
        b = b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_count_as_if_they_were_there() {
        for len in [0usize, 1, 7, 8192, 262_144, 1_000_003] {
            let mut bytes = b"before".to_vec();
            bytes.resize(6 + len, 0);
            assert_eq!(append_zeros(crc32c::crc32c(b"before"), len as u64), crc32c::crc32c(&bytes), "{len} zeros");
        }
    }

    #[test]
    fn parts_join_to_the_whole() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| ((n * 7919) >> 5) as u8).collect();
        for at in [0, 1, 8192, 65_537, 262_144, 299_999, 300_000] {
            let (first, second) = bytes.split_at(at);
            let joined = join(crc32c::crc32c(first), crc32c::crc32c(second), second.len() as u64);
            assert_eq!(joined, crc32c::crc32c(&bytes), "parted at {at}");
        }
    }

    #[test]
    fn lengths_beyond_memory_agree_with_each_other() {
        let twice = append_zeros(append_zeros(7, 3 << 40), 3 << 40);
        assert_eq!(append_zeros(7, 6 << 40), twice);
    }
}
