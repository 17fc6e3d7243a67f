//! SHA-256 of several stretches of bytes side by side, on one core of an x86-64 processor.
//!
//! Within one digest each of the processor's SHA instructions waits for the one before; those of other digests fit in
//! between. Whether the processor has the instructions is asked when the program runs; without them, and on other
//! architectures, digests are made one after another by the `sha2` crate. What this would give on aarch64 nobody measured.
//!
//! Source: FIPS 180-4, sections 4.2.2 (constants), 5.1.1 (padding), 5.3.3 (first state) and 6.2.2 (rounds); which word is
//! where in a register: `SHA256RNDS2` in the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x, _mm_setzero_si128,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use sha2::block_api::compress256;

use super::Sha256;

const BLOCK_BYTES: usize = 64;
/// Bytes of a length in bits, which ends what is digested.
const LENGTH_BYTES: usize = 8;

type Block = [u8; BLOCK_BYTES];
type State = [u32; 8];

/// The state before the first block.
const FIRST: State =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

/// The rounds' constants, by four rounds.
const ROUNDS: [[u32; 4]; 16] = [
    [0x428A_2F98, 0x7137_4491, 0xB5C0_FBCF, 0xE9B5_DBA5],
    [0x3956_C25B, 0x59F1_11F1, 0x923F_82A4, 0xAB1C_5ED5],
    [0xD807_AA98, 0x1283_5B01, 0x2431_85BE, 0x550C_7DC3],
    [0x72BE_5D74, 0x80DE_B1FE, 0x9BDC_06A7, 0xC19B_F174],
    [0xE49B_69C1, 0xEFBE_4786, 0x0FC1_9DC6, 0x240C_A1CC],
    [0x2DE9_2C6F, 0x4A74_84AA, 0x5CB0_A9DC, 0x76F9_88DA],
    [0x983E_5152, 0xA831_C66D, 0xB003_27C8, 0xBF59_7FC7],
    [0xC6E0_0BF3, 0xD5A7_9147, 0x06CA_6351, 0x1429_2967],
    [0x27B7_0A85, 0x2E1B_2138, 0x4D2C_6DFC, 0x5338_0D13],
    [0x650A_7354, 0x766A_0ABB, 0x81C2_C92E, 0x9272_2C85],
    [0xA2BF_E8A1, 0xA81A_664B, 0xC24B_8B70, 0xC76C_51A3],
    [0xD192_E819, 0xD699_0624, 0xF40E_3585, 0x106A_A070],
    [0x19A4_C116, 0x1E37_6C08, 0x2748_774C, 0x34B0_BCB5],
    [0x391C_0CB3, 0x4ED8_AA4A, 0x5B9C_CA4F, 0x682E_6FF3],
    [0x748F_82EE, 0x78A5_636F, 0x84C8_7814, 0x8CC7_0208],
    [0x90BE_FFFA, 0xA450_6CEB, 0xBEF9_A3F7, 0xC671_78F2],
];

/// The instructions, on a processor that has them.
#[derive(Clone, Copy)]
pub struct ShaInstructions(());

impl ShaInstructions {
    /// Returns them if this processor has them.
    pub fn here() -> Option<Self> {
        let has =
            is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1");
        has.then_some(Self(()))
    }

    /// Returns the digest of each stretch, in order. Those of about equal length that follow each other gain most.
    pub fn of_each(self, stretches: &[&[u8]]) -> Vec<Sha256> {
        let mut digests = Vec::with_capacity(stretches.len());
        // Four keep the processor as busy as it can be, see benches/digest.rs.
        for group in stretches.chunks(4) {
            match *group {
                [a, b, c, d] => digests.extend(self.side_by_side([a, b, c, d])),
                [a, b, c] => digests.extend(self.side_by_side([a, b, c])),
                [a, b] => digests.extend(self.side_by_side([a, b])),
                _ => digests.extend(group.iter().map(|alone| Sha256::of(alone))),
            }
        }
        digests
    }

    fn side_by_side<const N: usize>(self, stretches: [&[u8]; N]) -> [Sha256; N] {
        let mut states = [FIRST; N];
        // SAFETY: the processor has SHA, SSSE3 and SSE4.1, or there were no `self`; the function needs nothing else.
        let blocks = unsafe { compress(&mut states, stretches.map(|stretch| stretch.as_chunks().0)) };
        std::array::from_fn(|n| finish(states[n], &stretches[n][blocks * BLOCK_BYTES..], stretches[n].len()))
    }
}

/// Takes as many blocks of each as the shortest has into the states, and returns how many.
#[target_feature(enable = "sha,ssse3,sse4.1")]
#[expect(clippy::needless_range_loop, reason = "an index into several slices at once")]
fn compress<const N: usize>(states: &mut [State; N], blocks: [&[Block]; N]) -> usize {
    let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    let mut halves = states.map(|state| Halves::of(&state));
    for at in 0..count {
        let before = halves;
        let mut words = [[_mm_setzero_si128(); 4]; N];
        for i in 0..4 {
            for n in 0..N {
                words[n][i] = load(&blocks[n][at], i);
                halves[n].four_rounds(&ROUNDS[i], words[n][i]);
            }
        }
        // Not by four like those above: measured, that is slower for three and four digests, and faster only for two.
        for (four, constants) in ROUNDS.iter().enumerate().skip(4) {
            for n in 0..N {
                words[n][four % 4] = next_words(&words[n], four % 4);
                halves[n].four_rounds(constants, words[n][four % 4]);
            }
        }
        for n in 0..N {
            halves[n].add(before[n]);
        }
    }
    *states = halves.map(|halves| halves.state());
    count
}

/// A digest's state as the instructions take it: of the eight words a to h, the first named is the highest in its register.
#[derive(Clone, Copy)]
struct Halves {
    abef: __m128i,
    cdgh: __m128i,
}

impl Halves {
    #[inline]
    #[target_feature(enable = "sse2")]
    fn of(state: &State) -> Self {
        let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
        Self { abef: _mm_set_epi32(a, b, e, f), cdgh: _mm_set_epi32(c, d, g, h) }
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn state(self) -> State {
        let ([a, b, e, f], [c, d, g, h]) = (highest_first(self.abef), highest_first(self.cdgh));
        [a, b, c, d, e, f, g, h]
    }

    #[inline]
    #[target_feature(enable = "sha")]
    fn four_rounds(&mut self, constants: &[u32; 4], words: __m128i) {
        let [k0, k1, k2, k3] = constants.map(u32::cast_signed);
        let sums = _mm_add_epi32(words, _mm_set_epi32(k3, k2, k1, k0));
        // Two rounds each: what was a, b, e and f is c, d, g and h after them.
        self.cdgh = _mm_sha256rnds2_epu32(self.cdgh, self.abef, sums);
        self.abef = _mm_sha256rnds2_epu32(self.abef, self.cdgh, _mm_shuffle_epi32::<0b1110>(sums));
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn add(&mut self, before: Self) {
        self.abef = _mm_add_epi32(self.abef, before.abef);
        self.cdgh = _mm_add_epi32(self.cdgh, before.cdgh);
    }
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn highest_first(register: __m128i) -> [u32; 4] {
    let words = [
        _mm_extract_epi32::<3>(register),
        _mm_extract_epi32::<2>(register),
        _mm_extract_epi32::<1>(register),
        _mm_extract_epi32::<0>(register),
    ];
    words.map(i32::cast_unsigned)
}

/// Returns four words of a block, which are big-endian there.
#[inline]
#[target_feature(enable = "ssse3")]
fn load(block: &Block, quarter: usize) -> __m128i {
    let halves = block.as_chunks().0;
    let half = |n: usize| i64::from_le_bytes(halves[2 * quarter + n]);
    let turned = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
    _mm_shuffle_epi8(_mm_set_epi64x(half(1), half(0)), turned)
}

/// Returns the four words that follow the last sixteen, of which the oldest are at `oldest`.
#[inline]
#[target_feature(enable = "sha,ssse3")]
fn next_words(words: &[__m128i; 4], oldest: usize) -> __m128i {
    let (second, third, newest) = (words[(oldest + 1) % 4], words[(oldest + 2) % 4], words[(oldest + 3) % 4]);
    let sums = _mm_add_epi32(_mm_sha256msg1_epu32(words[oldest], second), _mm_alignr_epi8::<4>(newest, third));
    _mm_sha256msg2_epu32(sums, newest)
}

/// Returns the digest of `len` bytes: the state before the last of them, and those.
fn finish(mut state: State, rest: &[u8], len: usize) -> Sha256 {
    let (blocks, rest) = rest.as_chunks::<BLOCK_BYTES>();
    compress256(&mut state, blocks);
    let mut end = [[0; BLOCK_BYTES]; 2];
    let used = if rest.len() + 1 + LENGTH_BYTES <= BLOCK_BYTES { 1 } else { 2 };
    let bytes = end[..used].as_flattened_mut();
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    let length_at = bytes.len() - LENGTH_BYTES;
    bytes[length_at..].copy_from_slice(&(len as u64 * 8).to_be_bytes());
    compress256(&mut state, &end[..used]);
    let mut digest = [0; Sha256::LEN];
    for (four, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
        *four = word.to_be_bytes();
    }
    Sha256::from_bytes(digest)
}
