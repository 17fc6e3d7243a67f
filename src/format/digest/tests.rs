use super::*;

use proptest::collection::vec;
use proptest::prelude::*;

type Way = fn(&[&[u8]]) -> Vec<Sha256>;

/// Each way to make several digests that this processor has.
fn ways() -> Vec<(&'static str, Way)> {
    let mut ways: Vec<(&'static str, Way)> =
        vec![("whichever is fastest", Sha256::of_each), ("one after another", one_after_another)];
    #[cfg(target_arch = "x86_64")]
    if side_by_side::ShaInstructions::here().is_some() {
        ways.push(("side by side", |stretches| {
            side_by_side::ShaInstructions::here().expect("just asked").of_each(stretches)
        }));
    }
    ways
}

/// What the `sha2` crate alone says.
fn plainly(stretches: &[&[u8]]) -> Vec<Sha256> {
    stretches.iter().map(|stretch| Sha256(sha2::Sha256::digest(stretch).into())).collect()
}

fn sample(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n + 1).wrapping_mul(2 * seed + 0x9E37_79B9) >> 13) as u8).collect()
}

#[test]
fn the_standards_own_examples_come_out_however_many_are_made_at_once() {
    // FIPS 180-2, appendix B; the empty one from NIST's SHA256ShortMsg.rsp.
    let million = vec![b'a'; 1_000_000];
    let examples: [(&[u8], &str); 5] = [
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
        (
            b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn\
              hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
        ),
        (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
    ];
    for (way, of_each) in ways() {
        for (contents, expected) in examples {
            for count in 1..=4 {
                let digests = of_each(&vec![contents; count]);
                let expected = vec![expected.to_owned(); count];
                assert_eq!(digests.iter().map(Sha256::to_string).collect::<Vec<_>>(), expected, "{way}");
            }
        }
    }
}

#[test]
fn a_length_near_the_end_of_a_block_is_digested_as_it_is_alone() {
    let lengths = (0..=200).chain([247, 248, 255, 256, 257, 1000, 4095, 4096, 4097]);
    for len in lengths {
        let contents: Vec<Vec<u8>> = (0..4).map(|seed| sample(len, seed)).collect();
        let stretches: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        for count in 0..=4 {
            for (way, of_each) in ways() {
                assert_eq!(of_each(&stretches[..count]), plainly(&stretches[..count]), "{way}: {count} of {len} bytes");
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_digested_at_once_has_the_digests_that_it_has_alone(
        contents in vec(vec(any::<u8>(), 0..700), 1..=9),
        begin in 0usize..64,
    ) {
        // Each at an address of its own, which is a multiple of nothing.
        let contents: Vec<Vec<u8>> = contents.into_iter().map(|one| [vec![0; begin], one].concat()).collect();
        let stretches: Vec<&[u8]> = contents.iter().map(|one| &one[begin..]).collect();
        for (way, of_each) in ways() {
            prop_assert_eq!(of_each(&stretches), plainly(&stretches), "{}", way);
        }
    }
}
