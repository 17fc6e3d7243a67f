//! The layer table, enforced on the program's source.
//!
//! A file may name (`crate::…`, `walvault::…`, or as many `super::` as leave its folder) only modules on lines above
//! its own, and its own folder. Modules on one line do not know each other. Below the command line, code does not read
//! the environment, end the process or print; nothing but `clock` reads wall time. Tests beside the code obey the
//! table too; the other rules are for the program alone.

#[path = "layers/source.rs"]
mod source;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use source::{Code, Word};

/// Lines of the table, from the ground up.
const TABLE: [&[&str]; 10] = [
    &["error", "clock", "metrics", "progress"],
    &["pg"],
    &["format", "store"],
    &["repo", "instance"],
    &["catalog"],
    &["archive", "stream", "backup", "restore", "mount", "retention", "verify"],
    &["workflow"],
    &["agent", "integrations"],
    &["view"],
    &["config", "cli", "main", "lib"],
];

/// The command line may know everything, prints, and reads the environment.
const TOP: usize = TABLE.len() - 1;

/// Calls that need a place of their own: the path's end, who may use it, and why not the others.
const RESERVED: [(&[&str], Place, &str); 9] = [
    (&["SystemTime", "now"], Place::Clock, "reads wall time"),
    (&["Utc", "now"], Place::Clock, "reads wall time"),
    (&["Local", "now"], Place::Clock, "reads wall time"),
    (&["std", "env"], Place::CommandLine, "reads the environment"),
    (&["process", "exit"], Place::CommandLine, "ends the process"),
    (&["print", "!"], Place::CommandLine, "prints"),
    (&["println", "!"], Place::CommandLine, "prints"),
    (&["eprint", "!"], Place::CommandLine, "prints"),
    (&["eprintln", "!"], Place::CommandLine, "prints"),
];

/// Who may make a reserved call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Clock,
    CommandLine,
}

/// One breach of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offence {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Returns the line of the table that a top-level module stands on.
fn line_of(module: &str) -> Option<usize> {
    TABLE.iter().position(|modules| modules.contains(&module))
}

/// Returns every breach in one file; `file` is its path below `src`.
fn offences(file: &str, text: &str) -> Vec<Offence> {
    let code = Code::read(file, text);
    let own = code.module().first().map_or("lib", String::as_str);
    let Some(line) = line_of(own) else {
        let what = format!("module {own} is not in the layer table");
        return vec![Offence { file: file.to_owned(), line: 1, what }];
    };
    code.words()
        .iter()
        .filter_map(|word| {
            let what = import_offence(own, line, word).or_else(|| call_offence(own, line, word))?;
            Some(Offence { file: file.to_owned(), line: word.line, what })
        })
        .collect()
}

/// Tells what is wrong with a path that leaves its own folder.
fn import_offence(own: &str, line: usize, word: &Word) -> Option<String> {
    let path = word.path.join("::");
    match word.from_root.as_deref()? {
        _ if line == TOP => None,
        [] => Some(format!("{path} names the whole crate: name the module that is needed")),
        [module, ..] if module == own => None,
        [module, ..] => match line_of(module) {
            None => Some(format!("{path}: {module} is not in the layer table")),
            Some(theirs) if theirs < line => None,
            Some(theirs) if theirs == line => {
                Some(format!("{path}: {own} and {module} are on one line and do not meet"))
            }
            Some(theirs) => Some(format!("{path}: {own} (line {line}) is below {module} (line {theirs})")),
        },
    }
}

/// Tells what is wrong with a call, or with a way around this test.
fn call_offence(own: &str, line: usize, word: &Word) -> Option<String> {
    let path = word.path.join("::");
    if word.is_detour() {
        return Some(format!("{path} hides where code comes from"));
    }
    if word.in_test {
        return None;
    }
    let holds = |reserved: &[&str]| word.path.windows(reserved.len()).any(|part| part == reserved);
    let (_, place, reason) = RESERVED.iter().find(|(reserved, ..)| holds(reserved))?;
    let allowed = match place {
        Place::Clock => own == "clock",
        Place::CommandLine => line == TOP,
    };
    let where_to = match place {
        Place::Clock => "clock",
        Place::CommandLine => "the command line",
    };
    (!allowed).then(|| format!("{path} {reason}; that is for {where_to} alone"))
}

/// Returns every Rust file below `directory`, sorted.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("list {directory:?}: {error}")) {
        let path = entry.expect("a listed entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_file_keeps_to_its_layer() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&source);
    assert!(files.len() > 1, "no source in {source:?}");
    let found: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
            let name = path.strip_prefix(&source).expect("it was found there");
            offences(&name.to_string_lossy(), &text)
        })
        .map(|offence| format!("src/{offence}"))
        .collect();
    assert!(found.is_empty(), "{} breaches of the layer table:\n{}", found.len(), found.join("\n"));
}

#[test]
fn imports_from_above_pass_and_all_others_are_reported() {
    let cases: [(&str, &str, &[usize]); 24] = [
        ("repo/layout.rs", "use crate::pg::Lsn;\nuse crate::store::{Store, volume::Volume};", &[]),
        ("repo/layout.rs", "use crate::repo::keys;\nuse super::keys;\nuse self::inner::x;", &[]),
        ("format/mod.rs", "use crate::pg::Lsn;\nuse crate::repo::Repository;", &[2]),
        ("format/mod.rs", "use crate::store::Store;", &[1]),
        ("store/volume.rs", "fn f() {\n    crate::format::encode()\n}", &[2]),
        ("repo/mod.rs", "use crate::instance::locate;", &[1]),
        ("backup/local.rs", "use crate::{catalog::Catalog, archive::push};", &[1]),
        ("backup/local.rs", "use crate::{\n    catalog::{Catalog, Entry},\n    restore::Plan,\n};", &[3]),
        ("clock.rs", "use crate::error::Kind;", &[1]),
        ("pg/lsn.rs", "use super::super::store::Store;", &[1]),
        ("pg/lsn.rs", "mod tests {\n    use super::super::name::x;\n    use super::super::super::store::y;\n}", &[3]),
        ("pg/wal/page.rs", "use super::super::lsn::Lsn;\nuse super::super::super::cli::x;", &[2]),
        ("pg.rs", "use super::view::Table;", &[1]),
        ("pg/lsn.rs", "type T = Vec<crate::view::Row>;\nmacro_rules! m { () => { $crate::cli::run() } }", &[1, 2]),
        ("pg/lsn.rs", "pub(crate) fn f() {}\npub(in crate::pg) fn g() {}", &[]),
        (
            "pg/lsn.rs",
            "// use crate::cli::x;\n/* crate::cli /* nested */ crate::cli */\nlet a = \"crate::cli::x\";",
            &[],
        ),
        ("pg/lsn.rs", "let a = r#\"crate::cli \" crate::cli\"#; let b = '\"'; let c: &'a str;\ncrate::cli::x()", &[2]),
        ("pg/lsn.rs", "let a = b\"\\\"\"; let b = b'\\''; let c = '\\u{41}';\ncrate::cli::x()", &[2]),
        ("pg/lsn.rs", "use crate::*;", &[1]),
        ("pg/lsn.rs", "use crate as root;\nuse crate::{self as other};\nextern crate walvault as w;", &[1, 2, 3]),
        ("pg/lsn.rs", "#[path = \"../cli/x.rs\"]\nmod x;\ninclude!(\"../cli/y.rs\");", &[1, 3]),
        ("pg/lsn.rs", "use walvault::cli::x;\nuse ::walvault::cli::x;", &[1, 2]),
        ("pg/lsn.rs", "crate::nowhere::x();\nuse crate::Lsn;", &[1, 2]),
        ("cli/push.rs", "use crate::{archive::push, config::Config, cli::exit};", &[]),
    ];
    for (file, text, lines) in cases {
        let found = offences(file, text);
        assert_eq!(found.iter().map(|offence| offence.line).collect::<Vec<_>>(), lines, "{file}:\n{text}\n{found:?}");
    }
}

#[test]
fn reserved_calls_pass_in_their_place_and_in_tests_only() {
    let cases: [(&str, &str, &[usize]); 15] = [
        ("pg/lsn.rs", "println!(\"x\");\nstd::println!(\"x\");", &[1, 2]),
        ("view/table.rs", "eprint!(\"x\"); print!(\"y\");\neprintln!(\"z\");", &[1, 1, 2]),
        ("cli/push.rs", "println!(\"x\"); std::process::exit(1); std::env::var(\"X\");", &[]),
        ("main.rs", "eprintln!(\"x\"); std::process::exit(1);", &[]),
        ("repo/mod.rs", "use std::{env, fs};\nstd::env::temp_dir();", &[1, 2]),
        ("repo/mod.rs", "use std::process;\nprocess::exit(1);\nuse std::process::{Command, exit};", &[2, 3]),
        ("repo/mod.rs", "let v = env!(\"CARGO_PKG_VERSION\");", &[]),
        ("agent/mod.rs", "std::process::exit(0)", &[1]),
        ("clock.rs", "SystemTime::now(); chrono::Utc::now();", &[]),
        ("cli/push.rs", "SystemTime::now();\nchrono::Utc::now();\nLocal::now();", &[1, 2, 3]),
        ("store/retry.rs", "std::time::Instant::now(); fn f(t: SystemTime) {}", &[]),
        (
            "store/retry.rs",
            "#[cfg(test)]\nmod tests {\n    fn f() { println!(\"{:?}\", std::env::temp_dir()); }\n}",
            &[],
        ),
        ("store/retry.rs", "#[cfg(test)]\nmod tests {}\nfn f() { println!() }", &[3]),
        ("store/retry.rs", "#[cfg(test)]\nuse x::y;\nmod m { fn f() { println!() } }", &[3]),
        ("store/tests.rs", "fn f() { println!() }", &[]),
    ];
    for (file, text, lines) in cases {
        let found = offences(file, text);
        assert_eq!(found.iter().map(|offence| offence.line).collect::<Vec<_>>(), lines, "{file}:\n{text}\n{found:?}");
    }
}

#[test]
fn a_module_without_a_line_is_reported() {
    let found = offences("helpers/mod.rs", "");
    assert_eq!(
        found.iter().map(Offence::to_string).collect::<Vec<_>>(),
        ["helpers/mod.rs:1: module helpers is not in the layer table"]
    );
}

#[test]
fn a_breach_names_file_line_and_both_layers() {
    let found = offences("pg/lsn.rs", "\nuse crate::cli::exit;");
    assert_eq!(
        found.iter().map(Offence::to_string).collect::<Vec<_>>(),
        ["pg/lsn.rs:2: crate::cli::exit: pg (line 1) is below cli (line 9)"]
    );
}
