//! PostgreSQL's configuration files, as bytes: what they set, and which other files they name.
//!
//! Two languages. `postgresql.conf` has one setting a line, and `include`, `include_if_exists` and `include_dir` among
//! them. `pg_hba.conf` and `pg_ident.conf` have fields, any of which may be `@file`, a list kept elsewhere; since 16 also
//! the three includes. A relative name counts from the directory of the file that says it, wherever that is read from.
//!
//! Source: `src/backend/utils/misc/guc-file.l`; `next_token` and `tokenize_auth_file` in `src/backend/libpq/hba.c`;
//! `AbsoluteConfigLocation` and `GetConfFilesInDir` in `src/backend/utils/misc/conffiles.c`.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// How deep files may include each other (`CONF_FILE_MAX_DEPTH`).
const DEEPEST: usize = 10;

/// Which language a file is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// `postgresql.conf` and what it includes.
    Settings,
    /// `pg_hba.conf`, `pg_ident.conf` and what they name.
    Authentication,
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// A setting: its name in lower case, and its value.
    Set(String, String),
    /// Another file.
    Reference(Reference),
}

/// Where a file names another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// What it names.
    pub kind: ReferenceKind,
    /// The name as it is written, without quotes.
    pub path: PathBuf,
    /// The bytes that spell the name, quotes included.
    pub span: Range<usize>,
}

/// What is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceKind {
    /// A file that must be there.
    File,
    /// A file that may be missing.
    FileIfExists,
    /// A directory: its files whose names end in `.conf` and begin with no dot, in the order of their names.
    Directory,
}

impl ReferenceKind {
    fn of(word: &[u8]) -> Option<Self> {
        match word {
            b"include" => Some(Self::File),
            b"include_if_exists" => Some(Self::FileIfExists),
            b"include_dir" => Some(Self::Directory),
            _ => None,
        }
    }
}

/// Returns whether a file of this name in an included directory is read.
pub fn is_read_in_directory(name: &[u8]) -> bool {
    name.ends_with(b".conf") && !name.starts_with(b".")
}

/// Returns the statements of a file, in order. What PostgreSQL would refuse is passed over.
pub fn statements(language: Language, text: &[u8]) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut at = 0;
    let mut goes_on = false;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match language {
            Language::Settings => statements.extend(setting(line, at)),
            Language::Authentication => {
                statements.extend(references(line, at, goes_on).into_iter().map(Statement::Reference));
                goes_on = line.strip_suffix(b"\n").unwrap_or(line).ends_with(b"\\");
            }
        }
        at += line.len();
    }
    statements
}

/// `name = value`, `name value` or an include.
fn setting(line: &[u8], at: usize) -> Option<Statement> {
    let start = line.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$') || *byte >= 0x80;
    let end = line[start..].iter().position(|byte| !is_name(byte)).map_or(line.len(), |end| start + end);
    let name = String::from_utf8_lossy(&line[start..end]).to_ascii_lowercase();
    let mut value_at = skip_blanks(line, end);
    if line.get(value_at) == Some(&b'=') {
        value_at = skip_blanks(line, value_at + 1);
    }
    let (value, length) = value(&line[value_at..])?;
    if name.is_empty() {
        return None;
    }
    Some(match ReferenceKind::of(name.as_bytes()) {
        Some(kind) => {
            let (path, span) = (PathBuf::from(OsStr::from_bytes(&value)), at + value_at..at + value_at + length);
            Statement::Reference(Reference { kind, path, span })
        }
        None => Statement::Set(name, String::from_utf8_lossy(&value).into_owned()),
    })
}

fn skip_blanks(line: &[u8], from: usize) -> usize {
    from + line[from..].iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Reads a value, quoted or not; returns it and how many bytes spell it.
fn value(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    if text.first() != Some(&b'\'') {
        let end = text.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'#').unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_vec(), end));
    }
    let mut value = Vec::new();
    let mut at = 1;
    loop {
        match (*text.get(at)?, text.get(at + 1)) {
            (b'\'', Some(b'\'')) => {
                value.push(b'\'');
                at += 2;
            }
            (b'\'', _) => return Some((value, at + 1)),
            (b'\n', _) => return None,
            (b'\\', Some(_)) => at += 1 + escaped(&text[at + 1..], &mut value),
            (byte, _) => {
                value.push(byte);
                at += 1;
            }
        }
    }
}

/// Reads what follows a backslash; returns how many bytes it has.
///
/// Source: `DeescapeQuotedString` in `guc-file.l`.
fn escaped(text: &[u8], value: &mut Vec<u8>) -> usize {
    let octal = text.iter().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
    if octal > 0 {
        let number = text[..octal].iter().fold(0u32, |number, digit| number * 8 + u32::from(digit - b'0'));
        value.push(number as u8);
        return octal;
    }
    value.push(match text[0] {
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        other => other,
    });
    1
}

/// Spells a value of `postgresql.conf`.
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A field of an authentication file.
struct Token {
    text: Vec<u8>,
    span: Range<usize>,
    quoted_from_the_start: bool,
}

fn references(line: &[u8], at: usize, continues: bool) -> Vec<Reference> {
    let mut tokens = Vec::new();
    let mut from = 0;
    while let Some(token) = token(line, &mut from) {
        tokens.push(token);
    }
    let moved = |span: &Range<usize>| at + span.start..at + span.end;
    let include = tokens.first().filter(|_| !continues).and_then(|first| ReferenceKind::of(&first.text));
    if let (Some(kind), Some(token)) = (include, tokens.get(1)) {
        let path = PathBuf::from(OsStr::from_bytes(&token.text));
        return vec![Reference { kind, path, span: moved(&token.span) }];
    }
    let lists = tokens.iter().filter(|token| !token.quoted_from_the_start && token.text.len() > 1);
    let lists = lists.filter(|token| token.text[0] == b'@').map(|token| Reference {
        kind: ReferenceKind::File,
        path: PathBuf::from(OsStr::from_bytes(&token.text[1..])),
        span: at + token.span.start + 1..at + token.span.end,
    });
    lists.collect()
}

/// Reads the next field of a line.
fn token(line: &[u8], from: &mut usize) -> Option<Token> {
    let blank = |byte: u8| byte.is_ascii_whitespace() || byte == b',';
    let start = *from + line.get(*from..)?.iter().position(|byte| !blank(*byte))?;
    if line[start] == b'#' {
        return None;
    }
    let (mut text, mut quoted, mut at) = (Vec::new(), false, start);
    while let Some(byte) = line.get(at).copied() {
        match byte {
            b'"' if quoted && line.get(at + 1) == Some(&b'"') => {
                text.push(b'"');
                at += 1;
            }
            b'"' => quoted = !quoted,
            b'\n' => break,
            byte if !quoted && (blank(byte) || byte == b'#') => break,
            byte => text.push(byte),
        }
        at += 1;
    }
    *from = at;
    Some(Token { text, span: start..at, quoted_from_the_start: line[start] == b'"' })
}

/// Spells a file's name in an authentication file.
fn quoted_field(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns the path that a name in a file means: from the file's own directory, without `.` and `..`.
pub fn resolved(file: &Path, name: &Path) -> PathBuf {
    let joined = file.parent().unwrap_or(Path::new("/")).join(name);
    let mut path = PathBuf::new();
    for part in joined.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

/// Returns a file's bytes with names replaced: `place` says where what a name means is now, or nothing if the name stays.
pub fn renamed(language: Language, text: &[u8], place: impl Fn(&Reference) -> Option<PathBuf>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut copied = 0;
    for statement in statements(language, text) {
        let Statement::Reference(reference) = statement else { continue };
        let Some(new) = place(&reference) else { continue };
        let new = new.to_string_lossy();
        out.extend_from_slice(&text[copied..reference.span.start]);
        match language {
            Language::Settings => out.extend_from_slice(quoted(&new).as_bytes()),
            Language::Authentication => out.extend_from_slice(quoted_field(&new).as_bytes()),
        }
        copied = reference.span.end;
    }
    out.extend_from_slice(&text[copied..]);
    out
}

/// Where a configuration's files are read from.
pub trait ConfigurationSource {
    /// Returns a file's bytes; `None` if there is no such file.
    fn file(&mut self, path: &Path) -> Option<Vec<u8>>;

    /// Returns the names in a directory; `None` if there is no such directory.
    fn names(&mut self, path: &Path) -> Option<Vec<PathBuf>>;
}

/// Returns every setting of `postgresql.conf` and what it includes, in the order in which PostgreSQL reads them: the last
/// one of a name counts. `None` if a file that must be there is missing: then nothing is known.
pub fn settings(main: &Path, source: &mut impl ConfigurationSource) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    read_settings(main, source, 0, &mut found).then_some(found)
}

fn read_settings(
    path: &Path,
    source: &mut impl ConfigurationSource,
    depth: usize,
    found: &mut Vec<(String, String)>,
) -> bool {
    let Some(text) = source.file(path).filter(|_| depth <= DEEPEST) else { return false };
    statements(Language::Settings, &text).into_iter().all(|statement| match statement {
        Statement::Set(name, value) => {
            found.push((name, value));
            true
        }
        Statement::Reference(reference) => {
            let named = resolved(path, &reference.path);
            match reference.kind {
                ReferenceKind::FileIfExists if source.file(&named).is_none() => true,
                ReferenceKind::File | ReferenceKind::FileIfExists => read_settings(&named, source, depth + 1, found),
                ReferenceKind::Directory => match source.names(&named) {
                    None => false,
                    Some(mut names) => {
                        names.retain(|name| is_read_in_directory(name.as_os_str().as_bytes()));
                        names.sort();
                        names.iter().all(|name| read_settings(&named.join(name), source, depth + 1, found))
                    }
                },
            }
        }
    })
}

#[cfg(test)]
mod tests;
