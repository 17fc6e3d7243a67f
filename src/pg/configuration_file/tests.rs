//! Files as operators and packagers write them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn set(name: &str, value: &str) -> Statement {
    Statement::Set(name.to_owned(), value.to_owned())
}

/// Each reference with its kind, its name, and the bytes that spell it.
fn named(language: Language, text: &str) -> Vec<(ReferenceKind, String, String)> {
    let found = statements(language, text.as_bytes()).into_iter();
    let found = found.filter_map(|statement| match statement {
        Statement::Reference(Reference { kind, path, span }) => {
            Some((kind, path.display().to_string(), text[span].to_owned()))
        }
        Statement::Set(..) => None,
    });
    found.collect()
}

#[test]
fn settings_are_read_as_postgresql_reads_them() {
    let text = b"# comment\n\nPort = 5433\nwork_mem '4MB' # more\nname = 'it''s \\'q\\' \\101\\n'\nx.y=on\n\
                 max_connections 200#tight\nbroken = 'no end\nempty = ''\nalone\nlast = 1";
    let expected = [
        set("port", "5433"),
        set("work_mem", "4MB"),
        set("name", "it's 'q' A\n"),
        set("x.y", "on"),
        set("max_connections", "200"),
        set("empty", ""),
        set("last", "1"),
    ];
    assert_eq!(statements(Language::Settings, text), expected);
}

#[test]
fn includes_and_lists_are_found_with_the_bytes_that_spell_them() {
    use ReferenceKind::{Directory, File, FileIfExists};
    let text = "include_dir = 'conf.d'\nInclude 'a b.conf' # x\n  include_if_exists=/etc/x.conf\n#include 'no'\n";
    let expected = [
        (Directory, "conf.d".to_owned(), "'conf.d'".to_owned()),
        (File, "a b.conf".to_owned(), "'a b.conf'".to_owned()),
        (FileIfExists, "/etc/x.conf".to_owned(), "/etc/x.conf".to_owned()),
    ];
    assert_eq!(named(Language::Settings, text), expected);
    let text = "local all,@dbs @\"my users\" peer # @not\nhost \"@not\" @ all md5\ninclude other.conf\n\
                include_dir \"hba d\"\nlocal all all \\\n include peer\n";
    let expected = [
        (File, "dbs".to_owned(), "dbs".to_owned()),
        (File, "my users".to_owned(), "\"my users\"".to_owned()),
        (File, "other.conf".to_owned(), "other.conf".to_owned()),
        (Directory, "hba d".to_owned(), "\"hba d\"".to_owned()),
    ];
    assert_eq!(named(Language::Authentication, text), expected);
}

#[test]
fn names_count_from_the_file_that_says_them() {
    let file = Path::new("/etc/pg/main/postgresql.conf");
    for (name, expected) in [
        ("conf.d", "/etc/pg/main/conf.d"),
        ("../x.conf", "/etc/pg/x.conf"),
        ("/a/./b/../c", "/a/c"),
        ("../../../..", "/"),
    ] {
        assert_eq!(resolved(file, Path::new(name)), Path::new(expected), "{name}");
    }
}

#[test]
fn a_name_that_moves_is_spelt_anew_and_nothing_else_changes() {
    let place =
        |reference: &Reference| (reference.path != Path::new("stays")).then(|| PathBuf::from("/new/it's \"x\""));
    let text = b"a = 1\ninclude '/old' # why\ninclude 'stays'\nb = 2";
    let expected = b"a = 1\ninclude '/new/it''s \"x\"' # why\ninclude 'stays'\nb = 2";
    assert_eq!(renamed(Language::Settings, text, place), expected);
    let text = b"local all @/old peer\nlocal all @stays peer\n";
    let expected = b"local all @\"/new/it's \"\"x\"\"\" peer\nlocal all @stays peer\n";
    assert_eq!(renamed(Language::Authentication, text, place), expected);
}

struct Files(BTreeMap<&'static str, &'static str>);

impl ConfigurationSource for Files {
    fn file(&mut self, path: &Path) -> Option<Vec<u8>> {
        self.0.get(path.to_str()?).map(|text| text.as_bytes().to_vec())
    }

    fn names(&mut self, path: &Path) -> Option<Vec<PathBuf>> {
        let names = self.0.keys().filter_map(|key| Path::new(key).strip_prefix(path).ok());
        let names: Vec<PathBuf> = names.map(Path::to_path_buf).collect();
        (!names.is_empty()).then_some(names)
    }
}

#[test]
fn settings_of_all_files_come_in_the_order_of_reading() {
    let files = BTreeMap::from([
        ("/c/postgresql.conf", "a = 1\ninclude_dir 'd'\ninclude_if_exists 'none'\ninclude '../s.conf'\na = 4"),
        ("/c/d/2.conf", "a = 3"),
        ("/c/d/1.conf", "a = 2"),
        ("/c/d/.3.conf", "a = hidden"),
        ("/c/d/4.conf.bak", "a = old"),
        ("/s.conf", "b = 1"),
    ]);
    let read = settings(Path::new("/c/postgresql.conf"), &mut Files(files.clone())).expect("all are there");
    let read: Vec<(&str, &str)> = read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(read, [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("a", "4")]);

    let mut missing = files.clone();
    missing.remove("/s.conf");
    assert_eq!(settings(Path::new("/c/postgresql.conf"), &mut Files(missing)), None);
    let mut round = files;
    round.insert("/s.conf", "include '/c/postgresql.conf'");
    assert_eq!(settings(Path::new("/c/postgresql.conf"), &mut Files(round)), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_and_renaming_nothing_changes_nothing(text: Vec<u8>) {
        for language in [Language::Settings, Language::Authentication] {
            prop_assert_eq!(renamed(language, &text, |_| None), text.clone());
        }
    }

    #[test]
    fn what_is_quoted_is_read_back(value in "[^\n\0]*") {
        let text = format!("x = {}\n", quoted(&value));
        prop_assert_eq!(statements(Language::Settings, text.as_bytes()), [set("x", &value)]);
    }
}
