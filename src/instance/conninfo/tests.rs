use super::*;

fn resolved(text: &str) -> Result<ConnectionSettings, ConnectionError> {
    ConnectionSettings::resolve(Some(text), &LibpqEnvironment::default(), None)
}

fn places(text: &str) -> Vec<String> {
    resolved(text).expect("settings").endpoints.iter().map(Endpoint::target).collect()
}

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
fn every_sslmode_is_understood_and_none_is_left_out() {
    let mode = |text: &str| resolved(text).map(|settings| settings.tls.mode);
    for (text, expected) in [
        ("host=db", SslMode::Prefer),
        ("host=db sslmode=disable", SslMode::Disable),
        ("host=db sslmode=allow", SslMode::Allow),
        ("host=db sslmode=require", SslMode::Require),
        ("host=db sslmode=require sslrootcert=/r", SslMode::VerifyCa),
        ("host=db sslmode=verify-full sslrootcert=/r", SslMode::VerifyFull),
        ("host=db sslrootcert=system", SslMode::VerifyFull),
        ("host=db sslmode=require sslnegotiation=direct", SslMode::Require),
    ] {
        assert_eq!(mode(text).expect(text), expected, "{text}");
    }
    for text in ["sslmode=on", "sslrootcert=system sslmode=require", "sslnegotiation=direct", "channel_binding=maybe"] {
        assert!(matches!(mode(text), Err(ConnectionError::Value { .. })), "{text}");
    }
    for text in ["gssencmode=require", "sslcrl=/c", "require_auth=scram-sha-256", "requirepeer=postgres"] {
        assert!(matches!(mode(text), Err(ConnectionError::Unsupported { .. })), "{text}");
    }
    let refused = resolved("sslpassword=secret").err().expect("not supported").to_string();
    assert!(!refused.contains("secret"), "{refused}");
    let demanded = LibpqEnvironment { sslmode: Some("verify-full".to_owned()), ..Default::default() };
    let settings = ConnectionSettings::resolve(None, &demanded, None).expect("settings");
    assert_eq!(settings.tls.mode, SslMode::VerifyFull);
}

#[test]
fn hosts_have_ports_and_addresses_of_their_own() {
    assert_eq!(places("host=a,b port=1,2"), ["a:1", "b:2"]);
    assert_eq!(places("host=a,b port=7"), ["a:7", "b:7"]);
    assert_eq!(places("host=a,/run port=,3"), ["a:5432", "/run:3"]);
    assert_eq!(places("postgresql://one:1,[::1]:2/db"), ["one:1", "::1:2"]);
    assert_eq!(places("hostaddr=127.0.0.1"), ["127.0.0.1:5432"]);
    assert!(matches!(resolved("host=a,b,c port=1,2"), Err(ConnectionError::Count { .. })));
    assert!(matches!(resolved("host=a hostaddr=nowhere"), Err(ConnectionError::Value { .. })));
}

#[test]
fn the_string_comes_before_the_environment() {
    let environment =
        LibpqEnvironment { host: Some("elsewhere".to_owned()), port: Some("6000".to_owned()), ..Default::default() };
    let settings = ConnectionSettings::resolve(Some("host=db port=7000"), &environment, None).expect("settings");
    assert_eq!(settings.target(), "db:7000");
    let settings = ConnectionSettings::resolve(None, &environment, None).expect("settings");
    assert_eq!(settings.target(), "elsewhere:6000");
    let bad = LibpqEnvironment { port: Some("x".to_owned()), ..Default::default() };
    assert!(matches!(ConnectionSettings::resolve(None, &bad, None), Err(ConnectionError::Port { .. })));
}

#[test]
fn connections_of_sql_are_watched_as_the_connection_string_says() {
    let driver = |text: &str| {
        let settings = resolved(text).expect("settings");
        settings.driver(&settings.endpoints[0])
    };
    let seconds = Duration::from_secs;
    let config = driver("host=db");
    assert_eq!((config.get_keepalives(), config.get_keepalives_idle()), (true, seconds(30)));
    assert_eq!((config.get_keepalives_interval(), config.get_keepalives_retries()), (Some(seconds(10)), Some(4)));
    assert_eq!((config.get_tcp_user_timeout(), config.get_connect_timeout()), (None, Some(&seconds(5))));
    let config = driver(
        "host=db keepalives_idle=70 keepalives_interval=7 keepalives_count=9 tcp_user_timeout=45000 connect_timeout=1",
    );
    assert_eq!((config.get_keepalives(), config.get_keepalives_idle()), (true, seconds(70)));
    assert_eq!((config.get_keepalives_interval(), config.get_keepalives_retries()), (Some(seconds(7)), Some(9)));
    assert_eq!((config.get_tcp_user_timeout(), config.get_connect_timeout()), (Some(&seconds(45)), Some(&seconds(1))));
    let config = driver("host=db keepalives_interval=0 keepalives_count=-1 tcp_user_timeout=0 connect_timeout=-5");
    assert_eq!((config.get_keepalives_interval(), config.get_keepalives_retries()), (None, None));
    assert_eq!((config.get_tcp_user_timeout(), config.get_connect_timeout()), (None, None));
    assert!(!driver("host=db keepalives=0").get_keepalives());
    for text in [
        "connect_timeout=soon",
        "keepalives=yes",
        "keepalives_idle=1m",
        "keepalives_interval=32768",
        "keepalives_count=128",
        "tcp_user_timeout=5s",
    ] {
        assert!(matches!(resolved(text), Err(ConnectionError::Value { .. })), "{text}");
    }
}

#[test]
fn a_server_is_taken_for_what_was_asked_for() {
    use SessionAttrs as Attrs;
    for (attrs, primary, standby) in [
        (Attrs::Any, true, true),
        (Attrs::ReadWrite, true, false),
        (Attrs::ReadOnly, false, true),
        (Attrs::Primary, true, false),
        (Attrs::Standby, false, true),
    ] {
        assert_eq!((attrs.accepts(false, false), attrs.accepts(true, true)), (primary, standby), "{attrs:?}");
        assert_eq!(SessionAttrs::parse(attrs.as_str()), Some(attrs));
    }
    assert_eq!(Attrs::PreferStandby.passes(), [Attrs::Standby, Attrs::Any]);
    assert!(Attrs::Primary.accepts(false, true) && !Attrs::ReadWrite.accepts(false, true));
}
