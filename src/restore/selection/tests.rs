#![allow(clippy::unwrap_used)]

use super::*;
use crate::format::sample;
use crate::pg::page::{PageHeader, PageVerdict, verify};
use crate::pg::system_id::SystemId;

fn database(oid: u32, name: &str) -> Database {
    Database { oid, name: name.to_owned(), tablespace: 1663, relations: None }
}

fn root(databases: Vec<Database>) -> Root {
    Root { databases, ..sample::manifest("7-1", SystemId::new(7), "b").root }
}

/// As `initdb` and three `CREATE DATABASE` leave them; one of the first was given another name.
fn databases() -> Vec<Database> {
    vec![
        database(1, "template1"),
        database(4, "template0"),
        database(5, "the_first"),
        database(16400, "app"),
        database(16500, "web"),
        database(16600, "postgres"),
    ]
}

fn names(wanted: &Databases) -> Result<Vec<String>, SelectionError> {
    let root = root(databases());
    let chosen = left_out(&root, "b", wanted)?;
    Ok(chosen.into_iter().map(|database| database.name.clone()).collect())
}

fn only(wanted: &[&str]) -> Databases {
    Databases::Only(wanted.iter().map(|name| (*name).to_owned()).collect())
}

fn except(wanted: &[&str]) -> Databases {
    Databases::Except(wanted.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn what_initdb_made_always_comes_back() {
    assert_eq!(names(&Databases::All).unwrap(), Vec::<String>::new());
    assert_eq!(names(&only(&["app"])).unwrap(), ["web"]);
    assert_eq!(names(&only(&["template1"])).unwrap(), ["app", "web"]);
    assert_eq!(names(&only(&["app", "web"])).unwrap(), Vec::<String>::new());
    assert_eq!(names(&except(&["app"])).unwrap(), ["app"]);
    for name in ["template0", "template1", "postgres", "the_first"] {
        assert!(matches!(names(&except(&["app", name])), Err(SelectionError::Always { .. })), "{name}");
    }
}

#[test]
fn a_name_that_is_not_there_is_refused_with_those_that_are() {
    for wanted in [only(&["App"]), except(&["web", "ap"]), only(&[""])] {
        let refused = names(&wanted).unwrap_err();
        let SelectionError::Unknown { has, .. } = &refused else { panic!("{refused}") };
        assert_eq!(has, &["app", "postgres", "template0", "template1", "the_first", "web"]);
    }
    let unnamed = root(Vec::new());
    assert!(matches!(left_out(&unnamed, "b", &only(&["app"])), Err(SelectionError::NoNames { .. })));
    assert!(left_out(&unnamed, "b", &Databases::All).unwrap().is_empty());
}

#[test]
fn a_path_belongs_to_the_database_whose_directory_it_is_in() {
    assert_eq!(in_database(b"base/16400/2619_vm.1"), Some((16400, &b"2619_vm.1"[..])));
    assert_eq!(in_database(b"pg_tblspc/16390/PG_17_202406281/16400/16401"), Some((16400, &b"16401"[..])));
    for path in ["global/1262", "base", "base/16400", "base/pgsql_tmp/x", "pg_tblspc/1/PG_17_1", "pg_wal/1/2"] {
        assert_eq!(in_database(path.as_bytes()), None, "{path}");
    }
}

fn file(path: &str, at: u64, contents: &[u8], ends: bool) -> Entry {
    let file = leaf::File {
        size: at + contents.len() as u64,
        mode: 0o600,
        modified: 0,
        crc: crc32c::crc32c(contents),
        digest: Some(Sha256::of(contents)),
        relation: true,
    };
    let pieces = if contents.is_empty() { Vec::new() } else { vec![Piece::Inline(contents.to_vec())] };
    let part = Part { at, pieces, file: ends.then_some(file) };
    Entry { path: path.as_bytes().to_vec(), node: Node::File(part) }
}

fn selection(bare: &[u32]) -> Selection {
    let pages = bare.iter().map(|block| (16400, 20000, *block));
    Selection {
        left_out: [(16400, "app".to_owned())].into(),
        bare: BarePages::from_blocks(pages),
        block_size: 8192,
        relation_segment_blocks: 4,
        checksums: true,
    }
}

fn crc_of(entry: &Entry) -> (u64, u32) {
    match &entry.node {
        Node::File(Part { file: Some(file), .. }) => (file.size, file.crc),
        _ => panic!("no file's end"),
    }
}

#[test]
fn a_database_left_out_is_zeros_and_a_mark_and_nothing_else_changes() {
    let contents = vec![7; 3 * 8192];
    let before = vec![
        file("base/1/20000", 0, &contents, true),
        file("base/16400/20000", 0, &contents, false),
        file("base/16400/20000", contents.len() as u64, &contents, true),
        file("base/16400/PG_VERSION", 0, b"17\n", true),
        file("base/16400/pg_filenode.map", 0, &contents[..512], true),
        file("global/1262", 0, &contents, true),
    ];
    let mut after = before.clone();
    let selection = selection(&[]);
    assert_eq!(selection.left_out_bytes(&before), 2 * 3 * 8192 + 3 + 512);
    selection.apply(&mut after);
    assert_eq!((&after[0], &after[5]), (&before[0], &before[5]));
    for entry in [&after[1], &after[2], &after[4]] {
        let Node::File(part) = &entry.node else { panic!("{entry:?}") };
        assert!(matches!(part.pieces[..], [Piece::Zeros { .. }]), "{part:?}");
    }
    assert_eq!(crc_of(&after[2]), (6 * 8192, crc32c::crc32c(&[0; 6 * 8192])));
    assert_eq!(crc_of(&after[3]), (LEFT_OUT.len() as u64, crc32c::crc32c(LEFT_OUT)));
    let Node::File(part) = &after[3].node else { panic!("{:?}", after[3]) };
    assert_eq!(part.pieces, [Piece::Inline(LEFT_OUT.to_vec())]);
    // Nothing left out, nothing changed.
    let mut whole = before.clone();
    Selection::default().apply(&mut whole);
    assert_eq!(whole, before);
}

#[test]
fn a_bare_page_is_one_that_a_server_accepts_and_that_is_newer_than_every_record() {
    let directory = std::env::temp_dir().join(format!("walvault-bare-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("base/16400")).unwrap();
    let zeros = vec![0; 4 * 8192];
    // Blocks 1 and 3 of the first file, 5 of the second; 9 lies past the end.
    let selection = selection(&[1, 3, 5, 9]);
    let mut entries = vec![
        file("base/16400/20000", 0, &zeros, true),
        file("base/16400/20000.1", 0, &zeros, true),
        file("base/16400/20000_vm", 0, &zeros, true),
    ];
    for entry in &entries {
        std::fs::write(place(&directory, &entry.path), &zeros).unwrap();
    }
    selection.apply(&mut entries);
    selection.write_bare(&directory, &entries).unwrap();
    selection.finish(&mut entries);
    let mut bare = Vec::new();
    for (number, entry) in (0..).zip(&entries) {
        let bytes = std::fs::read(place(&directory, &entry.path)).unwrap();
        assert_eq!(crc_of(entry), (bytes.len() as u64, crc32c::crc32c(&bytes)));
        for (page, block) in bytes.chunks(8192).zip(number * 4..) {
            match verify(page, block) {
                PageVerdict::New => {}
                PageVerdict::Good => bare.push((block, PageHeader::read(page).unwrap().lsn)),
                verdict => panic!("{verdict:?}"),
            }
        }
    }
    assert_eq!(bare, [1, 3, 5].map(|block| (block, Lsn::new(u64::MAX))));
    std::fs::remove_dir_all(directory).unwrap();
}
