//! The usual ways to write `wal push` and `wal fetch`, understood without the parser of the whole command line.
//!
//! PostgreSQL starts one process a segment, and building the parser takes as long as all the rest that such a process does
//! where an agent answers. Whatever is written in another way, or makes no sense, is left to the parser: it alone refuses,
//! and what is understood here is what it would have understood.

use std::ffi::OsString;
use std::path::PathBuf;

use super::wal_fetch::FetchArgs;
use super::wal_push::PushArgs;
use super::{Cli, Command, WalCommand};

/// Returns what the arguments say, if they are a plain `wal push` or `wal fetch`.
pub(super) fn parse(arguments: &[OsString]) -> Option<Cli> {
    let words: Option<Vec<&str>> = arguments.iter().skip(1).map(|argument| argument.to_str()).collect();
    let mut words = words?.into_iter();
    let [mut repo, mut cluster, mut config, mut lane] = [const { None }; 4];
    let (mut json, mut verbose, mut no_helper) = (false, false, false);
    let mut plain = Vec::new();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix('-') else {
            plain.push(word);
            continue;
        };
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let flag = match name {
            "-json" => Some(&mut json),
            "-verbose" | "v" => Some(&mut verbose),
            // The parser knows it only behind the command.
            "-no-helper" if plain.len() >= 2 => Some(&mut no_helper),
            _ => None,
        };
        if let Some(flag) = flag {
            if value.is_some() || std::mem::replace(flag, true) {
                return None;
            }
            continue;
        }
        let place = match name {
            "-repo" => &mut repo,
            "-cluster" => &mut cluster,
            "-config" => &mut config,
            "-lane" => &mut lane,
            _ => return None,
        };
        let value = value.or_else(|| words.next().filter(|value| !value.starts_with('-')))?;
        if value.is_empty() || place.replace(value.to_owned()).is_some() {
            return None;
        }
    }
    if plain.iter().any(|word| word.is_empty()) {
        return None;
    }
    let command = match plain[..] {
        ["wal", "push", path] => WalCommand::Push(PushArgs { path: PathBuf::from(path), no_helper }),
        ["wal", "fetch", name, destination] => {
            WalCommand::Fetch(FetchArgs { name: name.to_owned(), destination: PathBuf::from(destination), no_helper })
        }
        _ => return None,
    };
    let config = config.map(PathBuf::from);
    Some(Cli { repo, cluster, config, lane, json, verbose, command: Command::Wal(command) })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;

    fn arguments(words: &[&str]) -> Vec<OsString> {
        std::iter::once("walvault").chain(words.iter().copied()).map(OsString::from).collect()
    }

    fn understood(words: &[&str]) -> bool {
        parse(&arguments(words)).is_some()
    }

    #[test]
    fn the_usual_ways_are_understood() {
        for words in [
            "--cluster main wal push pg_wal/000000010000000000000001",
            "--repo file:///backups --cluster=main wal push --no-helper /data/pg_wal/000000010000000000000001 -v",
            "wal --cluster main fetch 000000010000000000000001 pg_wal/RECOVERYXLOG --lane 7-1 --config /etc/x.toml",
            "wal fetch 00000002.history --no-helper pg_wal/RECOVERYHISTORY --json",
        ] {
            assert!(understood(&words.split(' ').collect::<Vec<_>>()), "{words}");
        }
        for words in ["wal push", "wal push a b", "wal fetch a", "wal list", "wal push -- a", "wal push --help", ""] {
            assert!(!understood(&words.split(' ').collect::<Vec<_>>()), "{words}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
        #[test]
        fn what_is_understood_is_what_the_parser_understands(
            words in proptest::collection::vec(
                prop_oneof![
                    4 => Just("wal"), 4 => Just("push"), 4 => Just("fetch"), 2 => Just("pg_wal/x"), 2 => Just("y"),
                    1 => Just("--cluster"), 1 => Just("--cluster=main"), 1 => Just("--repo"), 1 => Just("--repo=file:///a=b"),
                    1 => Just("--config"), 1 => Just("--config=/a"), 1 => Just("--lane=7-1"), 1 => Just("--json"),
                    1 => Just("--verbose"), 1 => Just("-v"), 1 => Just("--no-helper"), 1 => Just("--"), 1 => Just(""),
                    1 => Just("--cluster="), 1 => Just("-vv"), 1 => Just("--json=true"), 1 => Just("-x"), 1 => Just("-"),
                ],
                0..8,
            ),
            command in prop_oneof![Just(vec![]), Just(vec!["wal", "push"]), Just(vec!["wal", "fetch"])],
        ) {
            let words = arguments(&command.into_iter().chain(words).collect::<Vec<_>>());
            if let Some(quick) = parse(&words) {
                let slow = Cli::try_parse_from(&words);
                prop_assert!(slow.is_ok(), "{:?}: {}", words, slow.map(drop).expect_err("it is none"));
                prop_assert_eq!(format!("{quick:?}"), format!("{:?}", slow.expect("it is one")));
            }
        }
    }
}
