//! How to reach the server: what libpq users expect, and what this program lacks refused by name.
//!
//! Source: "Connection Strings", "Environment Variables" and "The Password File" of the manual's chapter on libpq.

mod endpoint;
mod parameters;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Config;

pub use self::endpoint::{Endpoint, SessionAttrs};
pub use self::parameters::{ParameterError, Parameters};
use super::postmaster::running_server;
use super::tls::{ChannelBindingMode, Roots, SslMode, TlsSettings};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a silent host is believed to be there, how long after each other it is probed then, and how often. A backup must
/// not wait for the hours that systems usually take.
const PROBES: Probes =
    Probes { idle: Some(Duration::from_secs(30)), interval: Some(Duration::from_secs(10)), count: Some(4) };
/// Most that a system takes, in seconds and in number.
const MOST_SECONDS: u64 = 32_767;
const MOST_PROBES: u64 = 127;
/// What Linux waits before it probes a silent connection.
const SYSTEMS_IDLE: Duration = Duration::from_secs(7200);
const PORT: u16 = 5432;
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// What no session may be ended by: a lost session voids the backup.
const SESSION_OPTIONS: &str =
    "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c client_encoding=UTF8";

/// Parameters that change nothing for a program like this one.
const IGNORED: [&str; 14] = [
    "application_name",
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "load_balance_hosts",
    "passfile",
    "replication",
    "service",
    "servicefile",
    "sslcertmode",
    "sslcompression",
    "sslsni",
];

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
    /// Further variables, by the parameter that each stands for.
    pub more: Parameters,
    /// Files in which services are looked for, one after the other.
    pub service_files: Vec<PathBuf>,
    /// The user's directory of certificates, `~/.postgresql`.
    pub certificates: Option<PathBuf>,
    /// Name of the operating-system user, libpq's last resort.
    pub os_user: Option<String>,
}

impl LibpqEnvironment {
    /// Returns the parameters that the variables stand for.
    fn parameters(&self) -> Parameters {
        let mut parameters = self.more.clone();
        let own = [
            ("host", &self.host),
            ("port", &self.port),
            ("user", &self.user),
            ("dbname", &self.dbname),
            ("password", &self.password),
            ("sslmode", &self.sslmode),
        ];
        for (name, value) in own {
            if let Some(value) = value {
                parameters.insert(name.to_owned(), value.clone());
            }
        }
        parameters
    }
}

/// Where and as whom to connect. Its password is never printed.
#[derive(Clone)]
pub struct ConnectionSettings {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) user: String,
    pub(super) dbname: String,
    password: Option<String>,
    passfile: Option<PathBuf>,
    options: Option<String>,
    pub(super) tls: TlsSettings,
    pub(super) attrs: SessionAttrs,
    /// Time for one host to answer; none for as long as it takes.
    pub(super) timeout: Option<Duration>,
    /// How the system finds out that a host is gone.
    pub(super) watch: Watch,
}

/// How the system finds out that a host is gone, over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    /// Probes of a silent connection; none to leave it.
    pub probes: Option<Probes>,
    /// How long what was sent may stay unacknowledged; none for as long as the system says.
    pub unanswered: Option<Duration>,
}

/// When and how often a silent connection is probed; what is none, the system decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probes {
    pub idle: Option<Duration>,
    pub interval: Option<Duration>,
    pub count: Option<u32>,
}

/// Why a connection string cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It does not parse.
    #[error("the connection string cannot be read")]
    Unreadable {
        /// What is wrong with it.
        #[from]
        source: ParameterError,
    },
    /// It asks for something that is not supported.
    #[error("the connection parameter {parameter}={value} is not supported")]
    Unsupported {
        /// The parameter.
        parameter: String,
        /// Its value; that of a secret is left out.
        value: String,
    },
    /// The port is no number.
    #[error("PGPORT={value} is not a port")]
    Port {
        /// The value.
        value: String,
    },
    /// A parameter has a value that it cannot have.
    #[error("{parameter}={value} is none of: {allowed}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// The value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// As many ports or addresses as hosts are needed, or one.
    #[error("there are {found} values of {parameter} for {hosts} hosts")]
    Count {
        /// The parameter.
        parameter: &'static str,
        /// How many values it has.
        found: usize,
        /// How many hosts there are.
        hosts: usize,
    },
}

impl ConnectionSettings {
    /// Combines a connection string with a service, libpq's variables and, for what is still open, with what the server
    /// that runs in `data_directory` says of itself.
    ///
    /// # Errors
    /// [`ConnectionError`]; encryption that cannot be given is refused, never silently left out.
    pub fn resolve(
        conninfo: Option<&str>,
        environment: &LibpqEnvironment,
        data_directory: Option<&Path>,
    ) -> Result<Self, ConnectionError> {
        let mut given = parameters::parse(conninfo.unwrap_or_default())?;
        let variables = environment.parameters();
        if let Some(name) = given.get("service").or_else(|| variables.get("service")).cloned() {
            for (key, value) in service(&name, given.get("servicefile"), environment)? {
                given.entry(key).or_insert(value);
            }
        }
        for (name, value) in variables {
            given.entry(name).or_insert(value);
        }
        refuse_unsupported(&given)?;
        let server = data_directory.and_then(running_server);
        let user = given.get("user").cloned().or_else(|| environment.os_user.clone());
        let tls = tls(&given, environment.certificates.as_deref())?;
        let timeout = match number(&given, "connect_timeout", u32::MAX.into(), "a number of seconds")? {
            None => Some(CONNECT_TIMEOUT),
            Some(seconds) => Some(Duration::from_secs(seconds)).filter(|timeout| !timeout.is_zero()),
        };
        let watch = watch(&given)?;
        let attrs = given.get("target_session_attrs").map_or(Ok(SessionAttrs::Any), |text| {
            SessionAttrs::parse(text).ok_or_else(|| ConnectionError::Value {
                parameter: "target_session_attrs",
                value: text.clone(),
                allowed: "any, read-write, read-only, primary, standby, prefer-standby",
            })
        })?;
        let (socket, port) = server.map_or((None, None), |server| (server.socket_directory, server.port));
        Ok(Self {
            endpoints: endpoints(&given, socket.as_deref(), port)?,
            user: user.unwrap_or_else(|| "postgres".to_owned()),
            dbname: given
                .get("dbname")
                .filter(|name| !name.is_empty())
                .cloned()
                .unwrap_or_else(|| "postgres".to_owned()),
            password: given.get("password").filter(|password| !password.is_empty()).cloned(),
            passfile: given.get("passfile").map(PathBuf::from).or_else(|| environment.passfile.clone()),
            options: given.get("options").cloned(),
            tls,
            attrs,
            timeout,
            watch,
        })
    }

    /// Returns where the connection goes, for messages.
    pub fn target(&self) -> String {
        let hosts: Vec<&str> = self.endpoints.iter().map(|endpoint| endpoint.host.as_str()).collect();
        let port = self.endpoints.first().map_or(PORT, |endpoint| endpoint.port);
        format!("{}:{port}", hosts.join(","))
    }

    /// Returns how many hosts are named.
    pub fn hosts(&self) -> usize {
        self.endpoints.len()
    }

    /// Returns the settings for one of the hosts, whatever it is.
    #[must_use]
    pub fn only(&self, endpoint: &Endpoint) -> Self {
        Self { endpoints: vec![endpoint.clone()], attrs: SessionAttrs::Any, ..self.clone() }
    }

    /// Returns the driver's settings for one of the hosts.
    pub(super) fn driver(&self, endpoint: &Endpoint) -> Config {
        let mut config = Config::new();
        match endpoint.host.starts_with('/') {
            true => config.host_path(&endpoint.host),
            false => config.host(&endpoint.host),
        };
        if let Some(address) = endpoint.address {
            config.hostaddr(address);
        }
        config.port(endpoint.port).user(&self.user).dbname(&self.dbname).application_name("walvault");
        if let Some(password) = self.password(endpoint, &[&self.dbname]) {
            config.password(password);
        }
        if let Some(timeout) = self.timeout {
            config.connect_timeout(timeout);
        }
        let Watch { probes, unanswered } = self.watch;
        config.keepalives(probes.is_some());
        if let Some(Probes { idle, interval, count }) = probes {
            // The driver has a time of its own, and no way to leave it to the system: that takes two hours.
            config.keepalives_idle(idle.unwrap_or(SYSTEMS_IDLE));
            if let Some(interval) = interval {
                config.keepalives_interval(interval);
            }
            if let Some(count) = count {
                config.keepalives_retries(count);
            }
        }
        if let Some(time) = unanswered {
            config.tcp_user_timeout(time);
        }
        let options = self.options.as_ref().map_or_else(String::new, |options| format!("{options} "));
        config.options(format!("{options}{SESSION_OPTIONS}"));
        config
    }

    /// Returns the password for one of the hosts, looked up for the first of these databases that has one.
    pub(super) fn password(&self, endpoint: &Endpoint, databases: &[&str]) -> Option<String> {
        if self.password.is_some() {
            return self.password.clone();
        }
        let text = std::fs::read_to_string(self.passfile.as_ref()?).ok()?;
        // libpq looks for `localhost` when it connects through a socket.
        let host = if endpoint.host.starts_with('/') { "localhost" } else { &endpoint.host };
        let port = endpoint.port.to_string();
        databases
            .iter()
            .find_map(|database| text.lines().find_map(|line| password_in(line, [host, &port, database, &self.user])))
    }
}

fn service(name: &str, file: Option<&String>, environment: &LibpqEnvironment) -> Result<Parameters, ConnectionError> {
    let own = file.map(PathBuf::from);
    let places: Vec<&PathBuf> = own.iter().chain(&environment.service_files).collect();
    let texts = places.iter().filter_map(|place| std::fs::read_to_string(place).ok());
    let found = texts.filter_map(|text| parameters::service(&text, name)).next();
    let shown = || places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
    Ok(found.ok_or_else(|| ParameterError::NoService { name: name.to_owned(), places: shown() })?)
}

/// What is not named here is used, or changes nothing.
fn refuse_unsupported(given: &Parameters) -> Result<(), ConnectionError> {
    let used = [
        "channel_binding",
        "connect_timeout",
        "dbname",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "options",
        "password",
        "port",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    ];
    for (name, value) in given {
        let known = used.contains(&name.as_str()) || IGNORED.contains(&name.as_str());
        // Values that ask for what happens anyway.
        let harmless = matches!(
            (name.as_str(), value.as_str()),
            (_, "")
                | ("gssencmode", "disable" | "prefer")
                | ("ssl_min_protocol_version", "TLSv1" | "TLSv1.1" | "TLSv1.2")
        );
        if !known && !harmless {
            let secret = name.contains("password") || name.contains("scram");
            let value = if secret { "…".to_owned() } else { value.clone() };
            return Err(ConnectionError::Unsupported { parameter: name.clone(), value });
        }
    }
    Ok(())
}

/// Returns a number that was given, at most `most`. One below zero is zero, as libpq has it.
fn number(
    given: &Parameters,
    name: &'static str,
    most: u64,
    allowed: &'static str,
) -> Result<Option<u64>, ConnectionError> {
    let Some(text) = given.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let found = text.trim().parse::<i64>().ok().map(|number| u64::try_from(number).unwrap_or(0));
    let value = || ConnectionError::Value { parameter: name, value: text.clone(), allowed };
    found.filter(|number| *number <= most).map(Some).ok_or_else(value)
}

/// Source: `setKeepalivesIdle` and its like in `src/interfaces/libpq/fe-connect.c`: zero leaves a value to the system.
fn watch(given: &Parameters) -> Result<Watch, ConnectionError> {
    let seconds = |name, usual: Option<Duration>| -> Result<Option<Duration>, ConnectionError> {
        let found = number(given, name, MOST_SECONDS, "a number of seconds up to 32767")?;
        Ok(found.map_or(usual, |seconds| Some(Duration::from_secs(seconds)).filter(|time| !time.is_zero())))
    };
    let idle = seconds("keepalives_idle", PROBES.idle)?;
    let interval = seconds("keepalives_interval", PROBES.interval)?;
    let count = match number(given, "keepalives_count", MOST_PROBES, "a number up to 127")? {
        None => PROBES.count,
        Some(count) => Some(count as u32).filter(|count| *count > 0),
    };
    let on = number(given, "keepalives", u32::MAX.into(), "0, 1")? != Some(0);
    let unanswered = number(given, "tcp_user_timeout", i32::MAX as u64, "a number of milliseconds")?;
    Ok(Watch {
        probes: on.then_some(Probes { idle, interval, count }),
        unanswered: unanswered.filter(|time| *time > 0).map(Duration::from_millis),
    })
}

fn endpoints(given: &Parameters, socket: Option<&Path>, port: Option<u16>) -> Result<Vec<Endpoint>, ConnectionError> {
    let list = |name: &str| -> Vec<String> {
        let text = given.get(name).filter(|text| !text.is_empty());
        text.map_or_else(Vec::new, |text| text.split(',').map(|one| one.trim().to_owned()).collect())
    };
    let (mut hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    if hosts.is_empty() {
        hosts = addresses.clone();
    }
    let default = socket.map_or_else(|| SOCKET_DIRECTORY.to_owned(), |place| place.to_string_lossy().into_owned());
    if hosts.is_empty() {
        hosts.push(default.clone());
    }
    for (parameter, found) in [("port", ports.len()), ("hostaddr", addresses.len())] {
        let allowed = found == 0 || found == hosts.len() || parameter == "port" && found == 1;
        if !allowed {
            return Err(ConnectionError::Count { parameter, found, hosts: hosts.len() });
        }
    }
    let at = |number: usize| -> Result<u16, ConnectionError> {
        let text = if ports.len() == 1 { ports.first() } else { ports.get(number) };
        match text.filter(|text| !text.is_empty()) {
            Some(text) => text.parse().map_err(|_| ConnectionError::Port { value: text.clone() }),
            None => Ok(port.unwrap_or(PORT)),
        }
    };
    let endpoint = |(number, host): (usize, &String)| {
        let address = addresses.get(number).filter(|text| !text.is_empty()).map(|text| {
            let allowed = "an IP address";
            text.parse().map_err(|_| ConnectionError::Value { parameter: "hostaddr", value: text.clone(), allowed })
        });
        let host = if host.is_empty() { default.clone() } else { host.clone() };
        Ok(Endpoint { host, address: address.transpose()?, port: at(number)? })
    };
    hosts.iter().enumerate().map(endpoint).collect()
}

fn tls(given: &Parameters, own: Option<&Path>) -> Result<TlsSettings, ConnectionError> {
    let word = |name: &str| given.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let value =
        |parameter, value: &str, allowed| ConnectionError::Value { parameter, value: value.to_owned(), allowed };
    let file = |name: &str, default: &str| {
        word(name).map(PathBuf::from).or_else(|| own.map(|own| own.join(default)).filter(|path| path.exists()))
    };
    let roots = match word("sslrootcert") {
        Some("system") => Roots::System,
        _ => file("sslrootcert", "root.crt").map_or(Roots::None, Roots::File),
    };
    let modes = "disable, allow, prefer, require, verify-ca, verify-full";
    let mode = match word("sslmode") {
        Some(text) => SslMode::parse(text).ok_or_else(|| value("sslmode", text, modes))?,
        None if roots == Roots::System => SslMode::VerifyFull,
        None => SslMode::Prefer,
    };
    if roots == Roots::System && mode != SslMode::VerifyFull {
        return Err(value(
            "sslmode",
            word("sslmode").unwrap_or_default(),
            "verify-full, which sslrootcert=system needs",
        ));
    }
    let direct = match word("sslnegotiation") {
        None | Some("postgres") => false,
        Some("direct") if mode >= SslMode::Require => true,
        Some("direct") => {
            return Err(value(
                "sslmode",
                word("sslmode").unwrap_or("prefer"),
                "require or stricter, which sslnegotiation=direct needs",
            ));
        }
        Some(other) => return Err(value("sslnegotiation", other, "postgres, direct")),
    };
    let binding = match word("channel_binding") {
        None | Some("prefer") => ChannelBindingMode::Prefer,
        Some("disable") => ChannelBindingMode::Disable,
        Some("require") => ChannelBindingMode::Require,
        Some(other) => return Err(value("channel_binding", other, "disable, prefer, require")),
    };
    let client = match (file("sslcert", "postgresql.crt"), file("sslkey", "postgresql.key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => None,
    };
    // As libpq has it: with a root certificate at hand, `require` checks as `verify-ca` does.
    let mode = if mode == SslMode::Require && roots != Roots::None { SslMode::VerifyCa } else { mode };
    // What need not be encrypted need not be checked.
    let roots = if mode < SslMode::VerifyCa { Roots::None } else { roots };
    Ok(TlsSettings { mode, roots, client, direct, binding })
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
mod tests;
