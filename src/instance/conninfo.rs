//! How to reach the server: what libpq users expect, and what the driver lacks refused by name.
//!
//! Source: "Connection Strings", "Environment Variables" and "The Password File" of the manual's chapter on libpq.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::postmaster::running_server;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The variables that libpq reads, gathered by whoever may read the environment.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)] // libpq's own names
pub struct LibpqEnvironment {
    pub host: Option<String>,
    pub port: Option<String>,
    pub user: Option<String>,
    pub dbname: Option<String>,
    pub password: Option<String>,
    pub passfile: Option<PathBuf>,
    pub sslmode: Option<String>,
    /// Name of the operating-system user, libpq's last resort.
    pub os_user: Option<String>,
}

/// Where and as whom to connect. Its password is never printed.
#[derive(Clone)]
pub struct ConnectionSettings(pub(super) tokio_postgres::Config);

/// Why a connection string cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It does not parse.
    #[error("the connection string cannot be read")]
    Unreadable {
        /// What the driver says; it names the parameter and not its value.
        source: tokio_postgres::Error,
    },
    /// It asks for something that is not supported yet.
    #[error(
        "{parameter}={value} is not supported yet; connect through the local socket, as a base backup reads local files"
    )]
    Unsupported {
        /// The parameter.
        parameter: &'static str,
        /// Its value.
        value: String,
    },
    /// The port is no number.
    #[error("PGPORT={value} is not a port")]
    Port {
        /// The value.
        value: String,
    },
}

impl ConnectionSettings {
    /// Combines a connection string with libpq's variables and, for what is still open, with what the server that runs
    /// in `data_directory` says of itself.
    ///
    /// # Errors
    /// [`ConnectionError`]; encryption that the driver cannot give is refused, never silently left out.
    pub fn resolve(
        conninfo: Option<&str>,
        environment: &LibpqEnvironment,
        data_directory: Option<&Path>,
    ) -> Result<Self, ConnectionError> {
        let text = conninfo.unwrap_or_default();
        let mut config = if text.contains('=') || text.contains("://") || text.is_empty() {
            tokio_postgres::Config::from_str(text).map_err(|source| ConnectionError::Unreadable { source })?
        } else {
            // As with psql, a bare word is a database.
            let mut config = tokio_postgres::Config::new();
            config.dbname(text);
            config
        };
        refuse_encryption(&config, text, environment)?;
        fill(&mut config, environment, data_directory)?;
        if config.get_password().is_none()
            && let Some(password) = password_for(&config, environment)
        {
            config.password(password);
        }
        config.application_name("walvault").connect_timeout(CONNECT_TIMEOUT).keepalives_idle(KEEPALIVE);
        // A lost session voids the backup: no timeout of the role's or the database's may end it.
        config.options(
            "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c client_encoding=UTF8",
        );
        Ok(Self(config))
    }

    /// Returns where the connection goes, for messages.
    pub fn target(&self) -> String {
        let hosts: Vec<String> = self.0.get_hosts().iter().map(host_name).collect();
        let port = self.0.get_ports().first().copied().unwrap_or(5432);
        format!("{}:{port}", hosts.join(","))
    }
}

fn host_name(host: &tokio_postgres::config::Host) -> String {
    match host {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    }
}

fn refuse_encryption(
    config: &tokio_postgres::Config,
    text: &str,
    environment: &LibpqEnvironment,
) -> Result<(), ConnectionError> {
    let asked = if text.contains("sslmode") { None } else { environment.sslmode.clone() };
    let required = matches!(config.get_ssl_mode(), tokio_postgres::config::SslMode::Require)
        || asked.as_deref().is_some_and(|mode| !matches!(mode, "disable" | "allow" | "prefer"));
    match required {
        true => Err(ConnectionError::Unsupported {
            parameter: "sslmode",
            value: asked.unwrap_or_else(|| "require".to_owned()),
        }),
        false => Ok(()),
    }
}

fn fill(
    config: &mut tokio_postgres::Config,
    environment: &LibpqEnvironment,
    data_directory: Option<&Path>,
) -> Result<(), ConnectionError> {
    let server = data_directory.and_then(running_server);
    if config.get_hosts().is_empty() {
        match (&environment.host, server.as_ref().and_then(|server| server.socket_directory.as_ref())) {
            (Some(host), _) => config.host(host),
            (None, Some(directory)) => config.host_path(directory),
            (None, None) => config.host_path("/var/run/postgresql"),
        };
    }
    if config.get_ports().is_empty() {
        let port = match &environment.port {
            Some(text) => Some(text.parse().map_err(|_| ConnectionError::Port { value: text.clone() })?),
            None => server.and_then(|server| server.port),
        };
        config.port(port.unwrap_or(5432));
    }
    if config.get_user().is_none() {
        let user = environment.user.as_ref().or(environment.os_user.as_ref());
        config.user(user.map_or("postgres", String::as_str));
    }
    if config.get_dbname().is_none() {
        config.dbname(environment.dbname.as_deref().unwrap_or("postgres"));
    }
    Ok(())
}

fn password_for(config: &tokio_postgres::Config, environment: &LibpqEnvironment) -> Option<String> {
    if let Some(password) = &environment.password {
        return Some(password.clone());
    }
    let path = environment.passfile.as_ref()?;
    let text = std::fs::read_to_string(path).ok()?;
    let host = config.get_hosts().first().map(host_name)?;
    // libpq looks for `localhost` when it connects through a socket.
    let host = if host.starts_with('/') { "localhost" } else { &host };
    let port = config.get_ports().first()?.to_string();
    let wanted = [host, &port, config.get_dbname()?, config.get_user()?];
    text.lines().find_map(|line| password_in(line, wanted))
}

/// Reads one line `host:port:database:user:password`; a backslash escapes a colon or a backslash, `*` fits anything.
fn password_in(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == ':' && fields.len() < 5 {
            fields.push(String::new());
            continue;
        }
        let literal = if character == '\\' { characters.next() } else { Some(character) };
        fields.last_mut().expect("never empty").extend(literal);
    }
    let fits = fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
    (fits && fields.len() == 5).then(|| fields.swap_remove(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_file_is_read_as_libpq_reads_it() {
        let wanted = ["localhost", "5432", "postgres", "backup"];
        assert_eq!(password_in("localhost:5432:postgres:backup:a:b", wanted).as_deref(), Some("a:b"));
        assert_eq!(password_in("*:*:*:backup:s\\:e\\\\c", wanted).as_deref(), Some("s:e\\c"));
        assert_eq!(password_in("*:*:*:other:secret", wanted), None);
        assert_eq!(password_in("#*:*:*:backup:secret", wanted), None);
        assert_eq!(password_in("*:*:*:backup", wanted), None);
    }

    #[test]
    fn encryption_is_refused_and_not_left_out() {
        let plain = LibpqEnvironment::default();
        let demanded = LibpqEnvironment { sslmode: Some("verify-full".to_owned()), ..plain.clone() };
        assert!(ConnectionSettings::resolve(Some("host=db sslmode=require"), &plain, None).is_err());
        assert!(ConnectionSettings::resolve(None, &demanded, None).is_err());
        assert!(ConnectionSettings::resolve(Some("host=db"), &plain, None).is_ok());
    }

    #[test]
    fn the_string_comes_before_the_environment() {
        let environment = LibpqEnvironment {
            host: Some("elsewhere".to_owned()),
            port: Some("6000".to_owned()),
            ..Default::default()
        };
        let settings = ConnectionSettings::resolve(Some("host=db port=7000"), &environment, None).expect("settings");
        assert_eq!(settings.target(), "db:7000");
        let settings = ConnectionSettings::resolve(None, &environment, None).expect("settings");
        assert_eq!(settings.target(), "elsewhere:6000");
        let bad = LibpqEnvironment { port: Some("x".to_owned()), ..Default::default() };
        assert!(matches!(ConnectionSettings::resolve(None, &bad, None), Err(ConnectionError::Port { .. })));
    }
}
