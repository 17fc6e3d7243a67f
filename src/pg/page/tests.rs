#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

macro_rules! page {
    ($major:literal, $name:literal, $block:literal) => {
        (
            concat!($major, "/", $name),
            include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/fixtures/pgdata/",
                $major,
                "/",
                $name,
                ".",
                $block,
                ".page"
            )),
            $block,
        )
    };
}

/// Pages a server wrote, with the block they stood at.
const PAGES: [(&str, &[u8; 8192], u32); 16] = [
    page!(13, "heap", 3),
    page!(13, "btree", 2),
    page!(14, "heap", 3),
    page!(14, "btree", 2),
    page!(15, "heap", 3),
    page!(15, "btree", 2),
    page!(15, "fsm", 0),
    page!(15, "vm", 0),
    page!(16, "heap", 3),
    page!(16, "btree", 2),
    page!(17, "heap", 3),
    page!(17, "btree", 2),
    page!(18, "heap", 3),
    page!(18, "btree", 2),
    page!(18, "fsm", 0),
    page!(18, "vm", 0),
];

/// A page of another size with a sane header and its checksum.
fn made_page(bytes: usize, block: u32) -> Vec<u8> {
    let mut page: Vec<u8> = (0..bytes).map(|at| (at * 7 % 251) as u8).collect();
    for (at, value) in [(10, 0), (12, 24), (14, 64), (16, bytes as u16), (18, bytes as u16 | 4)] {
        page[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
    }
    let sum = checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    page
}

#[test]
fn pages_of_every_major_are_good() {
    for (name, page, block) in PAGES {
        assert_eq!(verify(page, block), PageVerdict::Good, "{name}");
        assert_eq!(PageHeader::read(page).unwrap().checksum, checksum(page, block), "{name}");
    }
}

#[test]
fn headers_are_read() {
    for (name, page, _) in PAGES {
        let header = PageHeader::read(page).unwrap();
        assert_eq!(header.pagesize_version, 8192 | 4, "{name}");
        assert!(header.is_sane(8192), "{name}");
        let logged = name.ends_with("heap") || name.ends_with("btree");
        assert!(!logged || header.lsn.is_valid(), "{name}");
        assert!(header.lsn < Lsn::new(0x800_0000), "{name}: {}", header.lsn);
    }
    let mut page = *PAGES[0].1;
    page[..8].copy_from_slice(&[0x1A, 0, 0, 0, 0x28, 0, 0xF0, 3]);
    assert_eq!(PageHeader::read(&page).unwrap().lsn.to_string(), "1A/3F00028");
    assert_eq!(PageHeader::read(&page[..19]), None);
}

#[test]
fn a_page_of_another_block_is_bad() {
    for (name, page, block) in PAGES {
        let verdict = verify(page, block + 131_072);
        assert!(matches!(verdict, PageVerdict::Bad { .. }), "{name}: {verdict:?}");
    }
}

#[test]
fn only_zeros_are_new() {
    let mut page = [0; 8192];
    assert_eq!(verify(&page, 7), PageVerdict::New);
    page[8191] = 1;
    assert_eq!(verify(&page, 7), PageVerdict::Malformed);
}

#[test]
fn a_header_without_sense_is_refused_under_a_true_checksum() {
    for (at, value) in [(10, 8u16), (12, 65), (14, 8193), (16, 8185), (16, 8200), (14, 23)] {
        let mut page = made_page(8192, 5);
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        let sum = checksum(&page, 5);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(verify(&page, 5), PageVerdict::Malformed, "{value} at {at}");
    }
}

#[test]
fn every_block_size_is_verified_and_no_other() {
    for power in 10..=15 {
        let page = made_page(1 << power, 1);
        assert_eq!(verify(&page, 1), PageVerdict::Good, "{}", page.len());
        assert_eq!(verify(&page[..page.len() - 1], 1), PageVerdict::Malformed, "{}", page.len());
    }
    assert_eq!(verify(&made_page(512, 1), 1), PageVerdict::Malformed);
    assert_eq!(BlockSize::new(512).or(BlockSize::new(65536)).or(BlockSize::new(0)), None);
}

#[test]
fn zeros_at_the_end_are_found_at_every_length() {
    for length in 0..3 * STRIDE + 2 {
        let mut bytes = vec![0u8; length];
        assert!(all_zero(&bytes));
        assert_eq!(zero_tail(&bytes), 0);
        for at in [0, length / 2, length.saturating_sub(1)].into_iter().filter(|at| *at < length) {
            bytes[at] = 0x80;
            assert!(!all_zero(&bytes), "{at} of {length}");
            assert_eq!(zero_tail(&bytes), at + 1, "{at} of {length}");
            bytes[at] = 0;
        }
    }
}

proptest! {
    #[test]
    fn a_flipped_bit_is_noticed(which in 0..PAGES.len(), at in 0usize..8192, bit in 0u8..8) {
        let (_, page, block) = PAGES[which];
        let mut page = *page;
        page[at] ^= 1 << bit;
        prop_assert_ne!(verify(&page, block), PageVerdict::Good);
        prop_assert_ne!(verify(&page, block), PageVerdict::New);
    }

    #[test]
    fn processors_agree(page in prop::collection::vec(any::<u8>(), 0..3000), block: u32) {
        prop_assert_eq!(checksum(&page, block), fold(&page, block));
    }

    #[test]
    fn any_bytes_have_a_verdict(page in prop::collection::vec(any::<u8>(), 0..1100), block: u32) {
        verify(&page, block);
    }

    #[test]
    fn the_tail_is_all_the_zeros_there_are(bytes in prop::collection::vec(any::<u8>(), 0..600), zeros in 0usize..600) {
        let mut padded = bytes;
        padded.resize(padded.len() + zeros, 0);
        let end = zero_tail(&padded);
        prop_assert!(all_zero(&padded[end..]));
        prop_assert!(end == 0 || padded[end - 1] != 0);
    }
}
