//! SHA-256 of two stretches of one length at a time.
//!
//! The processor's instructions for SHA-256 each wait for the one before, and half of its time goes by in waiting; two
//! digests side by side fill it.
//!
//! Source: FIPS 180-4, section 6.2; `SHA256RNDS2`, `SHA256MSG1` and `SHA256MSG2` in Intel's manual, volume 2.

use super::Sha256;

/// Returns the digests of two stretches of one length.
pub(super) fn of_two(one: &[u8], other: &[u8]) -> [Sha256; 2] {
    #[cfg(target_arch = "x86_64")]
    if one.len() == other.len()
        && one.len().is_multiple_of(x86::BLOCK)
        && is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("sse4.1")
        && is_x86_feature_detected!("ssse3")
    {
        // SAFETY: the processor has what the function needs, as just asked.
        return unsafe { x86::of_two(one, other) };
    }
    [Sha256::of(one), Sha256::of(other)]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Sha256;

    /// Bytes that are digested together.
    pub const BLOCK: usize = 64;
    const LANES: usize = 2;

    const START: [u32; 8] =
        [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

    #[rustfmt::skip]
    const ROUNDS: [u32; 64] = [
        0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
        0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
        0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
        0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
        0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
        0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
        0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
        0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
    ];

    /// One digest's state, in the order in which the instructions want it: A B E F, and C D G H.
    type State = (__m128i, __m128i);

    /// Both have one length, a multiple of [`BLOCK`].
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    pub fn of_two(one: &[u8], other: &[u8]) -> [Sha256; LANES] {
        let mut states = [packed(&START); LANES];
        let blocks = one.as_chunks::<BLOCK>().0.iter().zip(other.as_chunks::<BLOCK>().0);
        for (one, other) in blocks {
            add(&mut states, [one, other]);
        }
        let mut last = [0; BLOCK];
        last[0] = 0x80;
        last[BLOCK - 8..].copy_from_slice(&(one.len() as u64 * 8).to_be_bytes());
        add(&mut states, [&last; LANES]);
        [unpacked(states[0]), unpacked(states[1])]
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    #[inline]
    fn add(states: &mut [State; LANES], blocks: [&[u8; BLOCK]; LANES]) {
        let before = *states;
        let big_endian = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
        // The last sixteen words of each message, four at a time.
        let mut words = [[_mm_setzero_si128(); 4]; LANES];
        // Written out, so that every word stays in a register.
        macro_rules! quarters {
            ($($quarter:literal)*) => { $({
                const ROUND: usize = 4 * $quarter;
                const NOW: usize = $quarter % 4;
                let [a, b, c, d] = [ROUNDS[ROUND], ROUNDS[ROUND + 1], ROUNDS[ROUND + 2], ROUNDS[ROUND + 3]];
                let constants = _mm_set_epi32(d as i32, c as i32, b as i32, a as i32);
                for lane in 0..LANES {
                    let words = &mut words[lane];
                    words[NOW] = if $quarter < 4 {
                        _mm_shuffle_epi8(load(&blocks[lane][NOW * 16..]), big_endian)
                    } else {
                        let (next, before, last) = (words[(NOW + 1) % 4], words[(NOW + 2) % 4], words[(NOW + 3) % 4]);
                        let sum = _mm_sha256msg1_epu32(words[NOW], next);
                        _mm_sha256msg2_epu32(_mm_add_epi32(sum, _mm_alignr_epi8(last, before, 4)), last)
                    };
                    let (abef, cdgh) = &mut states[lane];
                    let sums = _mm_add_epi32(words[NOW], constants);
                    *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, sums);
                    *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(sums, 0x0E));
                }
            })* };
        }
        quarters!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        for lane in 0..LANES {
            states[lane].0 = _mm_add_epi32(states[lane].0, before[lane].0);
            states[lane].1 = _mm_add_epi32(states[lane].1, before[lane].1);
        }
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    fn load(bytes: &[u8]) -> __m128i {
        let half = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        _mm_set_epi64x(half(8), half(0))
    }

    #[target_feature(enable = "sse2")]
    #[inline]
    fn packed(state: &[u32; 8]) -> State {
        let [a, b, c, d, e, f, g, h] = state.map(|word| word as i32);
        (_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h))
    }

    #[target_feature(enable = "sse2,sse4.1")]
    #[inline]
    fn unpacked((abef, cdgh): State) -> Sha256 {
        let words = [
            _mm_extract_epi32(abef, 3),
            _mm_extract_epi32(abef, 2),
            _mm_extract_epi32(cdgh, 3),
            _mm_extract_epi32(cdgh, 2),
            _mm_extract_epi32(abef, 1),
            _mm_extract_epi32(abef, 0),
            _mm_extract_epi32(cdgh, 1),
            _mm_extract_epi32(cdgh, 0),
        ];
        let mut bytes = [0; Sha256::LEN];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        Sha256::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_digests_are_what_each_is_alone() {
        let bytes: Vec<u8> = (0..40_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in [0, 1, 63, 64, 128, 1000, 64 * 300] {
            let (one, other) = (&bytes[..len], &bytes[20_000..20_000 + len]);
            assert_eq!(of_two(one, other), [Sha256::of(one), Sha256::of(other)], "{len} bytes");
        }
        assert_eq!(of_two(&bytes, b"short"), [Sha256::of(&bytes), Sha256::of(b"short")]);
    }
}
