//! One parser, any bytes. `WALVAULT_PARSER` says which.

#![no_main]

#[path = "../../tests/parsers/mod.rs"]
mod parsers;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fn parser() -> fn(&[u8]) {
    static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("WALVAULT_PARSER").unwrap_or_default();
        let found = parsers::PARSERS.iter().find(|(known, _)| *known == name);
        let known = || parsers::PARSERS.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(" ");
        found.unwrap_or_else(|| panic!("WALVAULT_PARSER={name:?} is none of: {}", known())).1
    })
}

fuzz_target!(|bytes: &[u8]| parser()(bytes));
