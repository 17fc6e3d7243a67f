//! Connection strings, URIs and service files, as names and values.
//!
//! What libpq knows and this program lacks is refused by name; a name that libpq does not know is refused too, since a
//! misspelt `sslmode` must not become none.
//!
//! Source: "Connection Strings", "Parameter Key Words" and "The Connection Service File" of the manual's chapter on libpq.

use std::collections::BTreeMap;

/// Names and values, as they were given.
pub type Parameters = BTreeMap<String, String>;

/// Why a connection string cannot be read. Names the parameter and never its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A name without a value.
    #[error("{name:?} has no value: write name=value, separated by spaces")]
    NoValue {
        /// The name.
        name: String,
    },
    /// A quote that does not end.
    #[error("the value of {name} begins with a quote and does not end with one")]
    Quote {
        /// The parameter.
        name: String,
    },
    /// A name that libpq does not have.
    #[error("{name:?} is no connection parameter")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A percent sign without two hex digits, or bytes that are no text.
    #[error("the URI's {part} has a % that two hex digits do not follow")]
    Escape {
        /// Which part of the URI.
        part: &'static str,
    },
    /// A service that is not in any file.
    #[error("the service {name:?} is not in {places}")]
    NoService {
        /// Its name.
        name: String,
        /// Where it was looked for.
        places: String,
    },
}

/// What libpq understands.
const NAMES: [&str; 47] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "passfile",
    "password",
    "port",
    "replication",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslkeylogfile",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Reads a connection string, a URI, or a bare word, which is a database.
pub fn parse(text: &str) -> Result<Parameters, ParameterError> {
    let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let parameters = match uri {
        Some(rest) => parse_uri(rest)?,
        None if text.contains('=') => parse_words(text)?,
        None if text.trim().is_empty() => Parameters::new(),
        None => Parameters::from([("dbname".to_owned(), text.to_owned())]),
    };
    match parameters.keys().find(|name| !NAMES.contains(&name.as_str())) {
        Some(name) => Err(ParameterError::Unknown { name: name.clone() }),
        None => Ok(parameters),
    }
}

fn parse_words(text: &str) -> Result<Parameters, ParameterError> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let name_end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let name = rest[..name_end].to_owned();
        let Some(after) = rest[name_end..].trim_start().strip_prefix('=') else {
            return Err(ParameterError::NoValue { name });
        };
        let (value, after) = value(after.trim_start(), &name)?;
        parameters.insert(name, value);
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// Reads a value: quoted or up to the next space; a backslash takes the next character as it is.
fn value<'a>(text: &'a str, name: &str) -> Result<(String, &'a str), ParameterError> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, literal)| literal)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted { Err(ParameterError::Quote { name: name.to_owned() }) } else { Ok((value, "")) }
}

/// Reads `user:password@host:port,host:port/dbname?name=value&…`, after its scheme.
fn parse_uri(text: &str) -> Result<Parameters, ParameterError> {
    let mut parameters = Parameters::new();
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    let (place, dbname) = text.split_once('/').unwrap_or((text, ""));
    let (login, hosts) = place.rsplit_once('@').unwrap_or(("", place));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',').filter(|_| !hosts.is_empty()) {
        let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((name, rest)) => (name, rest.strip_prefix(':').unwrap_or("")),
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(decoded(name, "host")?);
        ports.push(port.to_owned());
    }
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            parameters.insert(name.to_owned(), value);
        }
    };
    add("user", decoded(user, "user")?);
    add("password", decoded(password, "password")?);
    add("dbname", decoded(dbname, "database")?);
    if names.iter().any(|name| !name.is_empty()) {
        add("host", names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        add("port", ports.join(","));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| ParameterError::NoValue { name: pair.to_owned() })?;
        match (name, value) {
            ("ssl", "true") => parameters.insert("sslmode".to_owned(), "require".to_owned()),
            _ => parameters.insert(decoded(name, "parameters")?, decoded(value, "parameters")?),
        };
    }
    Ok(parameters)
}

fn decoded(text: &str, part: &'static str) -> Result<String, ParameterError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).and_then(|digits| hex::decode(digits).ok());
        bytes.extend(digits.ok_or(ParameterError::Escape { part })?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| ParameterError::Escape { part })
}

/// Returns the parameters of a service in the text of a service file.
pub fn service(text: &str, wanted: &str) -> Option<Parameters> {
    let mut found: Option<Parameters> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            found = (name == wanted).then(Parameters::new);
        } else if let (Some(found), Some((name, value))) = (&mut found, line.split_once('=')) {
            found.entry(name.trim().to_owned()).or_insert_with(|| value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse(text).expect("a connection string").into_iter().collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn strings_are_read_as_libpq_reads_them() {
        assert_eq!(
            read(r"host = a  user='x \' y'  dbname=''"),
            pairs(&[("dbname", ""), ("host", "a"), ("user", "x ' y")])
        );
        assert_eq!(read(r"password=a\ b port=1"), pairs(&[("password", "a b"), ("port", "1")]));
        assert_eq!(read("main"), pairs(&[("dbname", "main")]));
        assert_eq!(read("  "), []);
        assert_eq!(parse("a=1 host"), Err(ParameterError::NoValue { name: "host".to_owned() }));
        assert_eq!(parse("user='x"), Err(ParameterError::Quote { name: "user".to_owned() }));
        assert_eq!(parse("sslmod=require"), Err(ParameterError::Unknown { name: "sslmod".to_owned() }));
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        assert_eq!(
            read("postgresql://me:a%3Ab@one:1,[::1]:2,%2Frun/db?sslmode=verify-full&target_session_attrs=standby"),
            pairs(&[
                ("dbname", "db"),
                ("host", "one,::1,/run"),
                ("password", "a:b"),
                ("port", "1,2,"),
                ("sslmode", "verify-full"),
                ("target_session_attrs", "standby"),
                ("user", "me"),
            ])
        );
        assert_eq!(
            read("postgres:///db?host=/run&ssl=true"),
            pairs(&[("dbname", "db"), ("host", "/run"), ("sslmode", "require")])
        );
        assert_eq!(parse("postgres://a%4"), Err(ParameterError::Escape { part: "host" }));
    }

    #[test]
    fn a_service_is_the_lines_below_its_name() {
        let text = "# all\n[one]\nhost=a\nhost=b\n\n[two]\nport = 7\n[one]\nuser=x\n";
        assert_eq!(service(text, "one"), Some(pairs(&[("host", "a")]).into_iter().collect()));
        assert_eq!(service(text, "two"), Some(pairs(&[("port", "7")]).into_iter().collect()));
        assert_eq!(service(text, "three"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = parse(&text);
            let _ = parse(&format!("postgresql://{text}"));
        }
    }
}
