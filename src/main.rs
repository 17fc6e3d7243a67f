//! The binary: everything is in the library.

fn main() {
    std::process::exit(walvault::cli::main(std::env::args_os().collect()));
}
