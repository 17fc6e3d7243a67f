//! `archive_command` and `restore_command`: how PostgreSQL fills them in, and what a shell makes of them.
//!
//! A command is taken apart as far as that can be done without running it. What a shell would have to compute (variables,
//! substitutions, patterns) is not guessed at.
//!
//! Source: `replace_percent_placeholders` in `src/common/percentrepl.c`; POSIX.1-2017, "Shell Command Language", 2.2, 2.3
//! and 2.9.

/// One command of a line, as a shell starts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimpleCommand {
    /// Variables set for it alone.
    pub assignments: Vec<(String, String)>,
    /// The program and its arguments.
    pub words: Vec<String>,
}

/// What a shell makes of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellLine {
    /// One command; its exit status is the line's.
    Simple(SimpleCommand),
    /// Several, joined by operators, or one with redirections.
    Joined {
        /// The commands.
        commands: Vec<SimpleCommand>,
        /// Whether one may fail and the line succeed, or end before it: joined by more than `&&`.
        hides_failure: bool,
    },
    /// Not to be known without running it.
    Opaque(&'static str),
}

impl ShellLine {
    /// Returns the commands that are known.
    pub fn commands(&self) -> &[SimpleCommand] {
        match self {
            ShellLine::Simple(command) => std::slice::from_ref(command),
            ShellLine::Joined { commands, .. } => commands,
            ShellLine::Opaque(_) => &[],
        }
    }
}

/// Returns the command as PostgreSQL hands it to the shell, with an example path for `%p` and a name for `%f` and `%r`.
pub fn fill_in(command: &str, path: &str, file: &str) -> String {
    let mut filled = String::new();
    let mut characters = command.chars();
    while let Some(character) = characters.next() {
        match (character, characters.clone().next()) {
            ('%', Some('p')) => filled.push_str(path),
            ('%', Some('f' | 'r')) => filled.push_str(file),
            ('%', Some('%')) => filled.push('%'),
            // Servers before 16 leave other letters as they are; later ones refuse them at the call.
            ('%', _) => {
                filled.push('%');
                continue;
            }
            _ => {
                filled.push(character);
                continue;
            }
        }
        characters.next();
    }
    filled
}

/// Takes a line apart as a POSIX shell would.
pub fn parse(line: &str) -> ShellLine {
    let mut reader = Reader {
        commands: Vec::new(),
        current: SimpleCommand::default(),
        word: None,
        joined: false,
        hides_failure: false,
    };
    match reader.read(line) {
        Err(reason) => ShellLine::Opaque(reason),
        Ok(()) if reader.commands.len() == 1 && !reader.joined => ShellLine::Simple(reader.commands.remove(0)),
        Ok(()) if reader.commands.is_empty() => ShellLine::Opaque("it is empty"),
        Ok(()) => ShellLine::Joined { commands: reader.commands, hides_failure: reader.hides_failure },
    }
}

/// A word under way, and how many of its first characters stand outside quotes: only those make an assignment.
#[derive(Default)]
struct Word {
    text: String,
    plain: usize,
    quoted: bool,
}

struct Reader {
    commands: Vec<SimpleCommand>,
    current: SimpleCommand,
    word: Option<Word>,
    joined: bool,
    hides_failure: bool,
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<(), &'static str> {
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                ' ' | '\t' => self.end_word(),
                '\n' | ';' | '&' | '|' => {
                    let both = character == '&' && characters.next_if_eq(&'&').is_some();
                    let last = characters.clone().all(char::is_whitespace);
                    self.hides_failure |= !(both || last && matches!(character, '\n' | ';'));
                    self.joined |= !last || self.hides_failure;
                    self.end_command();
                }
                '<' | '>' => {
                    self.joined = true;
                    // A file's descriptor before the sign is no argument, and the file's name is none either.
                    if self.word.as_ref().is_some_and(|word| word.text.chars().all(|c| c.is_ascii_digit())) {
                        self.word = None;
                    }
                    self.end_word();
                    skip_target(&mut characters)?;
                }
                '(' | ')' => return Err("it has a subshell"),
                '#' if self.word.is_none() => break,
                '\'' => self.quoted_word().text.push_str(&until_quote(&mut characters)?),
                '"' => self.double_quoted(&mut characters)?,
                '\\' => match characters.next() {
                    Some('\n') | None => {}
                    Some(escaped) => self.quoted_word().text.push(escaped),
                },
                '$' | '`' => return Err("a shell has to compute a part of it"),
                '*' | '?' | '[' => return Err("it has a pattern that a shell expands"),
                '~' if self.word.is_none() => return Err("a shell has to compute a part of it"),
                '{' | '}' | '!' if self.begins() => return Err("it has a shell's own syntax"),
                other => self.plain(other),
            }
        }
        self.end_command();
        let own = ["if", "while", "until", "for", "case", "eval", "."];
        match self.commands.iter().any(|command| command.words.first().is_some_and(|w| own.contains(&w.as_str()))) {
            true => Err("it has a shell's own syntax"),
            false => Ok(()),
        }
    }

    /// Whether the next word is a command's first.
    fn begins(&self) -> bool {
        self.word.is_none() && self.current == SimpleCommand::default()
    }

    fn plain(&mut self, character: char) {
        let word = self.word.get_or_insert_default();
        word.text.push(character);
        if !word.quoted {
            word.plain = word.text.len();
        }
    }

    fn quoted_word(&mut self) -> &mut Word {
        let word = self.word.get_or_insert_default();
        word.quoted = true;
        word
    }

    fn double_quoted(&mut self, characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<(), &'static str> {
        self.quoted_word();
        loop {
            match characters.next() {
                None => return Err("a quote is not closed"),
                Some('"') => return Ok(()),
                Some('$' | '`') => return Err("a shell has to compute a part of it"),
                Some('\\') => match characters.next() {
                    Some(escaped @ ('$' | '`' | '"' | '\\')) => self.quoted_word().text.push(escaped),
                    Some('\n') => {}
                    Some(other) => self.quoted_word().text.extend(['\\', other]),
                    None => return Err("a quote is not closed"),
                },
                Some(other) => self.quoted_word().text.push(other),
            }
        }
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        let assignment = word.text[..word.plain].split_once('=').map(|(name, _)| name.to_owned());
        match assignment {
            Some(name) if self.current.words.is_empty() && is_name(&name) => {
                let value = word.text[name.len() + 1..].to_owned();
                self.current.assignments.push((name, value));
            }
            _ => self.current.words.push(word.text),
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        let command = std::mem::take(&mut self.current);
        if command != SimpleCommand::default() {
            self.commands.push(command);
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn until_quote(characters: &mut impl Iterator<Item = char>) -> Result<String, &'static str> {
    let mut text = String::new();
    loop {
        match characters.next() {
            Some('\'') => return Ok(text),
            Some(other) => text.push(other),
            None => return Err("a quote is not closed"),
        }
    }
}

/// Passes over where a redirection leads.
fn skip_target(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<(), &'static str> {
    while characters.next_if(|c| matches!(c, '>' | '<' | '&' | '|' | ' ' | '\t')).is_some() {}
    let mut any = false;
    while let Some(character) = characters.next_if(|c| !matches!(c, ' ' | '\t' | '\n' | ';' | '&' | '|')) {
        any = true;
        if matches!(character, '\'' | '"' | '\\' | '$' | '`') {
            return Err("a redirection leads to a quoted or computed name");
        }
    }
    if any { Ok(()) } else { Err("a redirection leads nowhere") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<String>> {
        parse(line).commands().iter().map(|command| command.words.clone()).collect()
    }

    #[test]
    fn placeholders_are_filled_in_as_the_server_does() {
        let filled = fill_in(r#"cp "%p" /mnt/%f 100%% %x %"#, "pg_wal/1", "1");
        assert_eq!(filled, r#"cp "pg_wal/1" /mnt/1 100% %x %"#);
    }

    #[test]
    fn quotes_are_taken_away_as_a_shell_does() {
        for (line, expected) in [
            ("a b  c", vec!["a", "b", "c"]),
            (r#"'a b' "c d" e\ f"#, vec!["a b", "c d", "e f"]),
            (r#"'it'\''s' "50%" "\"x\" \y""#, vec!["it's", "50%", r#""x" \y"#]),
            (r#"a'b'"c" '' """#, vec!["abc", "", ""]),
            ("a # not this", vec!["a"]),
            ("a b#c", vec!["a", "b#c"]),
        ] {
            assert_eq!(
                parse(line),
                ShellLine::Simple(SimpleCommand {
                    assignments: vec![],
                    words: expected.iter().map(|word| (*word).to_owned()).collect(),
                }),
                "{line}"
            );
        }
    }

    #[test]
    fn variables_before_a_command_are_its_own() {
        let ShellLine::Simple(command) = parse(r#"A=1 B="x y" c D=2 'E'=3"#) else { panic!("one command") };
        assert_eq!(command.assignments, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x y".to_owned())]);
        assert_eq!(command.words, ["c", "D=2", "E=3"]);
        assert_eq!(words("'A'=1 c"), [["A=1", "c"]]);
    }

    #[test]
    fn joined_commands_are_told_apart_from_one() {
        for line in ["a && b", "a || true", "a; b", "a | b", "a &", "a > log", "a 2>&1", "a\nb"] {
            assert!(matches!(parse(line), ShellLine::Joined { .. }), "{line}");
        }
        for (line, hidden) in
            [("a && b", false), ("a > log", false), ("a || b", true), ("a; b", true), ("a | b", true), ("a &", true)]
        {
            assert!(
                matches!(parse(line), ShellLine::Joined { hides_failure, .. } if hides_failure == hidden),
                "{line}"
            );
        }
        assert_eq!(words("test ! -f x && cp 'a b' c"), [vec!["test", "!", "-f", "x"], vec!["cp", "a b", "c"]]);
        assert_eq!(words("a b 2>/dev/null"), [["a", "b"]]);
        assert!(matches!(parse("a\n"), ShellLine::Simple(_)));
    }

    #[test]
    fn what_only_a_shell_knows_is_not_guessed_at() {
        for line in
            ["", "  ", "a $HOME", "a `b`", "\"$x\"", "(a)", "a 'b", "a \"b", "a *", "if a; then b; fi", "! a", "{ a; }"]
        {
            assert!(matches!(parse(line), ShellLine::Opaque(_)), "{line}");
        }
        assert!(matches!(parse("a '$HOME' \\$x '*'"), ShellLine::Simple(_)));
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic_and_what_is_quoted_comes_back(line in "\\PC{0,40}", text in "[ -~]{0,20}") {
            drop(parse(&line));
            drop(parse(&fill_in(&line, "p", "f")));
            let quoted = format!("a '{}'", text.replace('\'', r"'\''"));
            proptest::prop_assert_eq!(words(&quoted), [["a".to_owned(), text]]);
        }
    }
}
