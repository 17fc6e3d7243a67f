//! Rust source taken apart as far as the layer table needs it: the paths it names, and where.
//!
//! Not a parser. Comments, strings and characters are skipped, the rest is read as identifiers and marks; `use` trees
//! are spread into single paths, and inline modules are followed, so that `super` can be counted.

/// A file: the module it is, and the paths it names.
#[derive(Debug)]
pub struct Code {
    module: Vec<String>,
    words: Vec<Word>,
}

/// One path as it is written, or a macro call (`println`, `!`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Line of its first part, from 1.
    pub line: usize,
    /// Its parts as written.
    pub path: Vec<String>,
    /// The same from the crate's root, if it begins at a known place of this crate.
    pub from_root: Option<Vec<String>>,
    /// True inside `#[cfg(test)] mod … { … }` and in files of tests.
    pub in_test: bool,
}

impl Word {
    /// Tells whether this is a way to reach code that no path shows.
    pub fn is_detour(&self) -> bool {
        let parts: Vec<&str> = self.path.iter().map(String::as_str).collect();
        matches!(parts.as_slice(), ["extern crate"] | ["#[path]"] | ["include", "!"])
    }
}

/// Keywords that a path with a leading `::` may follow; they are not its first part.
const BEFORE_A_PATH: [&str; 15] =
    ["use", "pub", "return", "break", "in", "as", "impl", "for", "dyn", "mut", "match", "if", "while", "else", "where"];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    line: usize,
    text: String,
}

/// A `{` that is still open.
#[derive(Debug, Clone, Copy, Default)]
struct Brace {
    module: bool,
    test: bool,
}

impl Code {
    /// Reads the text of `file`, a path below the source folder.
    pub fn read(file: &str, text: &str) -> Self {
        let mut module: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        let test_file = module.iter().skip(1).any(|part| part == "tests");
        if module.len() > 1 && module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let words =
            Reader { tokens: tokens(text), words: Vec::new(), root_file: is_root(&module) }.read(&module, test_file);
        Self { module, words }
    }

    /// Returns the file's module path from the crate's root; `["lib"]` or `["main"]` for the root itself.
    pub fn module(&self) -> &[String] {
        &self.module
    }

    /// Returns every path, in the order of the text.
    pub fn words(&self) -> &[Word] {
        &self.words
    }
}

fn is_root(module: &[String]) -> bool {
    matches!(module, [only] if only == "lib" || only == "main")
}

struct Reader {
    tokens: Vec<Token>,
    words: Vec<Word>,
    root_file: bool,
}

impl Reader {
    fn read(mut self, file_module: &[String], test_file: bool) -> Vec<Word> {
        let mut module = if self.root_file { Vec::new() } else { file_module.to_vec() };
        let mut braces: Vec<Brace> = Vec::new();
        let mut test_comes = false;
        let mut at = 0;
        while at < self.tokens.len() {
            let in_test = test_file || braces.iter().any(|brace| brace.test);
            if self.is(at, &["#", "[", "cfg", "(", "test", ")", "]"]) {
                test_comes = true;
                at += 7;
            } else if self.is(at, &["mod"]) && self.text(at + 2) == "{" {
                module.push(self.text(at + 1).to_owned());
                braces.push(Brace { module: true, test: std::mem::take(&mut test_comes) });
                at += 3;
            } else if self.text(at) == "{" {
                test_comes = false;
                braces.push(Brace::default());
                at += 1;
            } else if self.text(at) == "}" {
                if braces.pop().is_some_and(|brace| brace.module) {
                    module.pop();
                }
                at += 1;
            } else if self.text(at) == ";" {
                test_comes = false;
                at += 1;
            } else if self.is(at, &["#", "[", "path", "="]) {
                self.push(at, vec!["#[path]".to_owned()], &module, in_test);
                at += 4;
            } else if self.is(at, &["extern", "crate"]) {
                self.push(at, vec!["extern crate".to_owned()], &module, in_test);
                at += 3;
            } else if is_name(self.text(at)) && !BEFORE_A_PATH.contains(&self.text(at)) {
                at = self.path(at, &[], &module, in_test);
            } else {
                at += 1;
            }
        }
        self.words
    }

    /// Reads one path, or one tree of paths, that begins at `at` and continues `before`; returns where it ends.
    fn path(&mut self, at: usize, before: &[String], module: &[String], in_test: bool) -> usize {
        let mut path = before.to_vec();
        let mut next = at;
        loop {
            let text = self.text(next).to_owned();
            if text == "{" {
                return self.group(next, &path, module, in_test);
            }
            path.push(text);
            next += 1;
            if self.text(next) != "::" || !(is_name(self.text(next + 1)) || ["{", "*"].contains(&self.text(next + 1))) {
                break;
            }
            next += 1;
        }
        if self.text(next) == "!" && self.text(next + 1) != "=" {
            path.push("!".to_owned());
        }
        let renamed_root = self.text(next) == "as" && path.len() == 1 && path[0] == "crate";
        if path.len() > 1 || renamed_root {
            self.push(at, path, module, in_test);
        }
        next
    }

    /// Reads `{a, b::c}` after `before`; returns where it ends.
    fn group(&mut self, open: usize, before: &[String], module: &[String], in_test: bool) -> usize {
        let mut at = open + 1;
        while at < self.tokens.len() && self.text(at) != "}" {
            at = if is_name(self.text(at)) || ["{", "*"].contains(&self.text(at)) {
                self.path(at, before, module, in_test)
            } else {
                at + 1
            };
            if self.text(at) == "as" {
                at += 2;
            }
        }
        at + 1
    }

    fn push(&mut self, at: usize, path: Vec<String>, module: &[String], in_test: bool) {
        let line = self.tokens[at].line;
        self.words.push(Word { line, from_root: from_root(&path, module), path, in_test });
    }

    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text.as_str())
    }

    fn is(&self, at: usize, texts: &[&str]) -> bool {
        texts.iter().enumerate().all(|(ahead, text)| self.text(at + ahead) == *text)
    }
}

/// Resolves a path written in `module`; `*`, `self` and a rename name the place they stand at.
fn from_root(path: &[String], module: &[String]) -> Option<Vec<String>> {
    let supers = path.iter().take_while(|part| *part == "super").count();
    let (mut place, rest) = match path.first()?.as_str() {
        "crate" | "walvault" => (Vec::new(), &path[1..]),
        "super" => (module[..module.len().saturating_sub(supers)].to_vec(), &path[supers..]),
        _ => return None,
    };
    place.extend(rest.iter().filter(|part| !["*", "self", "!"].contains(&part.as_str())).cloned());
    Some(place)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Splits source into names, numbers and marks; `::` is one mark.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let end = match chars[at] {
            first if first.is_whitespace() => at + 1,
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => comment_end(&chars, at),
            '"' => string_end(&chars, at),
            '\'' => quote_end(&chars, at),
            first if first.is_alphanumeric() || first == '_' => {
                let end = name_end(&chars, at);
                let name: String = chars[at..end].iter().collect();
                match (name.as_str(), chars.get(end)) {
                    ("r" | "br" | "cr", Some('"' | '#')) => match raw_string_end(&chars, end) {
                        Some(end) => end,
                        // `r#name`: the mark and the name are read on their own.
                        None => end + 1,
                    },
                    ("b" | "c", Some('"')) => string_end(&chars, end),
                    ("b", Some('\'')) => quote_end(&chars, end),
                    _ => {
                        found.push(Token { line, text: name });
                        end
                    }
                }
            }
            ':' if chars.get(at + 1) == Some(&':') => {
                found.push(Token { line, text: "::".to_owned() });
                at + 2
            }
            mark => {
                found.push(Token { line, text: mark.to_string() });
                at + 1
            }
        };
        line += chars[at..end].iter().filter(|char| **char == '\n').count();
        at = end;
    }
    found
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|char| *char == '\n').map_or(chars.len(), |length| at + length)
}

fn name_end(chars: &[char], at: usize) -> usize {
    let is_part = |char: &char| char.is_alphanumeric() || *char == '_';
    chars[at..].iter().position(|char| !is_part(char)).map_or(chars.len(), |length| at + length)
}

/// Block comments nest.
fn comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut next) = (0, at);
    while next < chars.len() {
        match (chars[next], chars.get(next + 1)) {
            ('/', Some('*')) => (depth, next) = (depth + 1, next + 2),
            ('*', Some('/')) => (depth, next) = (depth - 1, next + 2),
            _ => next += 1,
        }
        if depth == 0 {
            break;
        }
    }
    next
}

/// `at` is the opening quotation mark.
fn string_end(chars: &[char], at: usize) -> usize {
    let mut next = at + 1;
    while next < chars.len() && chars[next] != '"' {
        next += if chars[next] == '\\' { 2 } else { 1 };
    }
    (next + 1).min(chars.len())
}

/// `at` is the first `#` or the opening quotation mark; none if this is no string.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let marks = chars[at..].iter().take_while(|char| **char == '#').count();
    if chars.get(at + marks) != Some(&'"') {
        return None;
    }
    let closes =
        |next: usize| chars[next] == '"' && chars[next + 1..].iter().take_while(|char| **char == '#').count() >= marks;
    let end = (at + marks + 1..chars.len()).find(|&next| closes(next));
    Some(end.map_or(chars.len(), |quote| quote + 1 + marks))
}

/// `at` is an apostrophe: the end of the character, or just past the mark of a lifetime.
fn quote_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            let escaped = at + 3;
            let length = chars[escaped.min(chars.len())..].iter().position(|char| *char == '\'');
            length.map_or(chars.len(), |length| escaped + length + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}
