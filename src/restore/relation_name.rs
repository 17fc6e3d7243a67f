//! Names of relations as people type them: `accounts`, `public.accounts`, `app.public."Accounts"`.

use std::fmt;
use std::str::FromStr;

/// A relation's name, with its schema and database if they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationName {
    database: Option<String>,
    schema: Option<String>,
    name: String,
}

/// A text that names no relation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name of a relation; one looks like accounts, public.accounts or app.public.\"Accounts\"")]
pub struct RelationNameError {
    text: String,
}

impl RelationName {
    /// Returns whether a relation of this database, schema and name is meant.
    pub fn fits(&self, database: &str, schema: &[u8], name: &[u8]) -> bool {
        self.database.as_deref().is_none_or(|wanted| wanted == database)
            && self.schema.as_deref().is_none_or(|wanted| wanted.as_bytes() == schema)
            && self.name.as_bytes() == name
    }
}

impl FromStr for RelationName {
    type Err = RelationNameError;

    /// Reads one to three names with dots between them. As in SQL, what is not in double quotes is read in lower case.
    fn from_str(text: &str) -> Result<Self, RelationNameError> {
        let refused = || RelationNameError { text: text.to_owned() };
        let mut parts = parts(text.trim()).ok_or_else(refused)?;
        let name = parts.pop().ok_or_else(refused)?;
        let (schema, database) = (parts.pop(), parts.pop());
        if parts.is_empty() { Ok(Self { database, schema, name }) } else { Err(refused()) }
    }
}

fn parts(text: &str) -> Option<Vec<String>> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_part(quoted)?,
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                (rest[..end].to_lowercase(), &rest[end..])
            }
        };
        if part.is_empty() || (!rest.starts_with('"') && part.contains(['"', ' '])) {
            return None;
        }
        parts.push(part);
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None => return after.is_empty().then_some(parts),
        }
    }
}

/// Reads up to the closing quote; a doubled one stands for itself.
fn quoted_part(text: &str) -> Option<(String, &str)> {
    let (mut part, mut rest) = (String::new(), text);
    loop {
        let end = rest.find('"')?;
        part.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                part.push('"');
                rest = after;
            }
            None => return Some((part, rest)),
        }
    }
}

impl fmt::Display for RelationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.database.iter().chain(&self.schema) {
            write!(f, "{part}.")?;
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_in_sql() {
        for (text, database, schema, name) in [
            ("accounts", None, None, "accounts"),
            ("Accounts", None, None, "accounts"),
            ("public.accounts", None, Some("public"), "accounts"),
            ("app.public.\"Accounts\"", Some("app"), Some("public"), "Accounts"),
            ("\"a.b\".\"say \"\"hi\"\"\"", None, Some("a.b"), "say \"hi\""),
        ] {
            let read: RelationName = text.parse().expect("a name");
            assert_eq!(
                (read.database.as_deref(), read.schema.as_deref(), read.name.as_str()),
                (database, schema, name)
            );
        }
        for text in ["", ".", "a.", ".a", "a.b.c.d", "\"a", "\"\"", "a\"b", "drop table"] {
            assert!(text.parse::<RelationName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_given_fits_everything() {
        let name: RelationName = "accounts".parse().expect("a name");
        assert!(name.fits("app", b"public", b"accounts") && !name.fits("app", b"public", b"account"));
        let name: RelationName = "app.public.accounts".parse().expect("a name");
        assert!(name.fits("app", b"public", b"accounts"));
        assert!(!name.fits("app", b"private", b"accounts") && !name.fits("web", b"public", b"accounts"));
    }
}
