//! Links the program to a fixed place in memory.
//!
//! PostgreSQL starts it once a segment. A program that may be put anywhere has some fifty thousand pointers set right by the
//! dynamic linker before its first instruction, in every process anew: most of the time that `wal push` takes beside an
//! agent, and two megabytes. Only where it is linked to glibc; the static program of a release is linked as its target says.

#![allow(clippy::print_stdout, reason = "so it is told to cargo")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |fact: &str| std::env::var(format!("CARGO_CFG_TARGET_{fact}")).unwrap_or_default();
    let features = target("FEATURE");
    if (target("OS").as_str(), target("ENV").as_str()) == ("linux", "gnu") && !features.contains("crt-static") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
