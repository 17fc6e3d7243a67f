//! SQL connections: the driver's, to the hosts that were named, encrypted as was asked for.

use tokio_postgres::config::{ChannelBinding, SslMode as DriverMode, SslNegotiation};
use tokio_postgres::{Client, Config, NoTls};

use super::conninfo::{ConnectionSettings, Endpoint, SessionAttrs};
use super::session::SessionError;
use super::tls::{Attempt, ChannelBindingMode, Connector};

/// Connects to the first host that will do, and returns the settings for that one alone beside the connection.
///
/// Must be called on a runtime, which then drives the connection.
pub(super) async fn connect(
    settings: &ConnectionSettings,
    adjust: impl Fn(&mut Config),
) -> Result<(Client, ConnectionSettings), SessionError> {
    let mut failed = None;
    for wanted in settings.attrs.passes() {
        for endpoint in &settings.endpoints {
            match connect_to(settings, endpoint, *wanted, &adjust).await {
                Ok(client) => return Ok((client, settings.only(endpoint))),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
    }
    Err(failed.expect("there is at least one host"))
}

async fn connect_to(
    settings: &ConnectionSettings,
    endpoint: &Endpoint,
    wanted: SessionAttrs,
    adjust: &impl Fn(&mut Config),
) -> Result<Client, SessionError> {
    let mut config = settings.driver(endpoint);
    adjust(&mut config);
    config.channel_binding(match settings.tls.binding {
        ChannelBindingMode::Disable => ChannelBinding::Disable,
        ChannelBindingMode::Prefer => ChannelBinding::Prefer,
        ChannelBindingMode::Require => ChannelBinding::Require,
    });
    let local = [Attempt::Plain];
    let attempts = if endpoint.socket().is_some() { &local } else { settings.tls.mode.attempts() };
    let mut failed = None;
    for attempt in attempts {
        match connect_once(settings, endpoint, config.clone(), *attempt).await {
            Ok(client) => {
                check_role(&client, endpoint, wanted).await?;
                return Ok(client);
            }
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    Err(failed.expect("there is at least one way"))
}

async fn connect_once(
    settings: &ConnectionSettings,
    endpoint: &Endpoint,
    mut config: Config,
    attempt: Attempt,
) -> Result<Client, SessionError> {
    let failed = |source| SessionError::Connect { target: endpoint.target(), source };
    // The connection's end shows as an error of the next statement.
    if attempt == Attempt::Plain {
        config.ssl_mode(DriverMode::Disable);
        let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
        tokio::spawn(async { drop(connection.await) });
        return Ok(client);
    }
    let configuration = settings.tls.configuration();
    let configuration =
        configuration.map_err(|source| SessionError::Encryption { target: endpoint.target(), source })?;
    config.ssl_mode(if attempt == Attempt::Encrypted { DriverMode::Require } else { DriverMode::Prefer });
    if settings.tls.direct {
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    let (client, connection) = config.connect(Connector(configuration)).await.map_err(failed)?;
    tokio::spawn(async { drop(connection.await) });
    Ok(client)
}

async fn check_role(client: &Client, endpoint: &Endpoint, wanted: SessionAttrs) -> Result<(), SessionError> {
    const ACTION: &str = "ask the server for its role";
    if wanted == SessionAttrs::Any {
        return Ok(());
    }
    let asked = "select pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'";
    let failed = |source| SessionError::Statement { action: ACTION, source };
    let row = client.query_one(asked, &[]).await.map_err(failed)?;
    let (standby, read_only) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
    match wanted.accepts(standby, read_only) {
        true => Ok(()),
        false => Err(SessionError::OtherRole { target: endpoint.target(), wanted: wanted.as_str() }),
    }
}
