//! From a socket to a session: the startup message, and whatever proof of identity the server asks for.
//!
//! A password in clear text is given through an encrypted connection or a local socket only, and a server that was asked
//! to prove that it knows the password must do so before anything else it says counts.
//!
//! Source: "Message Flow" and "SASL Authentication" in the manual's chapter on the protocol; `fe-auth.c`.

use std::collections::BTreeMap;
use std::io;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;

use super::error::ReplicationError;
use super::frames::{Frames, refusal, text};
use super::link::Link;
use crate::instance::tls::ChannelBindingMode;

/// As whom, and what is asked of the server before it is believed.
pub(super) struct Identity<'a> {
    pub target: &'a str,
    pub user: &'a str,
    pub password: Option<&'a str>,
    pub binding: ChannelBindingMode,
}

/// What the server says once it has let us in.
#[derive(Debug, Default)]
pub(super) struct Welcome {
    pub parameters: BTreeMap<String, String>,
    /// Its process and the secret that ends what it does.
    pub cancel: Option<(i32, i32)>,
}

/// How far the proof is.
enum Proof {
    None,
    Scram(Box<ScramSha256>),
    /// The server has proved that it knows the password; whether over the channel.
    Done {
        bound: bool,
    },
}

/// Logs in for physical replication.
pub(super) fn log_in(frames: &mut Frames<Link>, identity: &Identity<'_>) -> Result<Welcome, ReplicationError> {
    let mut startup = BytesMut::new();
    let parameters = [
        ("user", identity.user),
        ("replication", "true"),
        ("application_name", "walvault"),
        ("client_encoding", "UTF8"),
    ];
    frontend::startup_message(parameters, &mut startup).map_err(|source| lost(identity, source))?;
    frames.send(&startup).map_err(|source| lost(identity, source))?;
    let mut login = Login { identity, proof: Proof::None, bound: false };
    let mut welcome = Welcome::default();
    let mut let_in = false;
    loop {
        let link = frames.stream();
        let channel = Channel { encrypted: link.is_encrypted(), private: link.is_private(), binding: link.binding() };
        let (tag, body) = frames.next().map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => stranger(identity, source.to_string()),
            _ => lost(identity, source),
        })?;
        match tag {
            b'R' => match login.answer(body, &channel)? {
                Answer::Send(bytes) => frames.send(&bytes).map_err(|source| lost(identity, source))?,
                Answer::Nothing => {}
                Answer::In => let_in = true,
            },
            b'E' => {
                return Err(ReplicationError::Login { target: identity.target.to_owned(), source: refusal(body) });
            }
            b'S' if let_in => {
                let pair = text(body).and_then(|(name, rest)| Some((name, text(rest)?.0)));
                welcome.parameters.extend(pair);
            }
            b'K' if let_in => {
                let numbers = body.split_first_chunk::<4>().and_then(|(process, rest)| {
                    Some((i32::from_be_bytes(*process), i32::from_be_bytes(*rest.first_chunk::<4>()?)))
                });
                welcome.cancel = numbers;
            }
            b'Z' if let_in => return Ok(welcome),
            b'N' | b'v' => {}
            other => return Err(stranger(identity, format!("a message {:?} at the login", char::from(other)))),
        }
    }
}

/// What is known of the way to the server.
struct Channel {
    encrypted: bool,
    private: bool,
    binding: Option<Vec<u8>>,
}

enum Answer {
    Send(BytesMut),
    Nothing,
    In,
}

struct Login<'a> {
    identity: &'a Identity<'a>,
    proof: Proof,
    /// Whether the proof under way is over the channel.
    bound: bool,
}

impl Login<'_> {
    /// Answers one `Authentication…` message.
    fn answer(&mut self, body: &[u8], channel: &Channel) -> Result<Answer, ReplicationError> {
        let Some((kind, rest)) = body.split_first_chunk::<4>() else {
            return Err(stranger(self.identity, "a login without a method".to_owned()));
        };
        let mut out = BytesMut::new();
        match u32::from_be_bytes(*kind) {
            0 => return self.let_in(),
            3 => {
                self.needs_no_binding()?;
                if !channel.private {
                    return Err(self.refused(
                        "the server asks for the password in clear text, and the connection is not encrypted; \
                         use sslmode=require, or scram-sha-256 in pg_hba.conf",
                    ));
                }
                frontend::password_message(self.password()?.as_bytes(), &mut out).map_err(|e| self.internal(e))?;
            }
            5 => {
                self.needs_no_binding()?;
                let salt = rest.first_chunk::<4>().ok_or_else(|| self.refused("a login by md5 without a salt"))?;
                let hash = md5_hash(self.identity.user.as_bytes(), self.password()?.as_bytes(), *salt);
                frontend::password_message(hash.as_bytes(), &mut out).map_err(|e| self.internal(e))?;
            }
            10 => self.begin(rest, channel, &mut out)?,
            11 => {
                let Proof::Scram(scram) = &mut self.proof else { return Err(self.refused("a login out of turn")) };
                let updated = scram.update(rest);
                updated.map_err(|_| refused(self.identity, "the server's part of SCRAM makes no sense"))?;
                frontend::sasl_response(scram.message(), &mut out).map_err(|e| internal(self.identity, e))?;
            }
            12 => {
                let Proof::Scram(scram) = &mut self.proof else { return Err(self.refused("a login out of turn")) };
                scram.finish(rest).map_err(|_| {
                    refused(self.identity, "the server cannot prove that it knows the password: it is not the server")
                })?;
                self.proof = Proof::Done { bound: self.bound };
                return Ok(Answer::Nothing);
            }
            7 | 8 => return Err(self.refused("the server asks for GSSAPI, which is not supported")),
            9 => return Err(self.refused("the server asks for SSPI, which is not supported")),
            other => return Err(self.refused(&format!("the server asks for a login of unknown kind {other}"))),
        }
        Ok(Answer::Send(out))
    }

    fn let_in(&self) -> Result<Answer, ReplicationError> {
        match self.proof {
            Proof::Scram(_) => Err(self.refused("the server skipped its own proof that it knows the password")),
            Proof::Done { bound: true } => Ok(Answer::In),
            Proof::Done { bound: false } | Proof::None => self.needs_no_binding().map(|()| Answer::In),
        }
    }

    /// Chooses among the mechanisms that the server offers.
    fn begin(&mut self, offered: &[u8], channel: &Channel, out: &mut BytesMut) -> Result<(), ReplicationError> {
        let offers = |name: &str| offered.split(|byte| *byte == 0).any(|one| one == name.as_bytes());
        let possible = self.identity.binding != ChannelBindingMode::Disable;
        let data = channel.binding.clone().filter(|_| possible && channel.encrypted);
        let (mechanism, binding) = match data {
            Some(data) if offers(SCRAM_SHA_256_PLUS) => {
                self.bound = true;
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(data))
            }
            // The server is told that it could have been done: if it did offer it, somebody in between took the offer out.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(self.refused("the server offers no login by password that is known here"));
        }
        if !self.bound {
            self.needs_no_binding()?;
        }
        let scram = ScramSha256::new(self.password()?.as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), out).map_err(|e| self.internal(e))?;
        self.proof = Proof::Scram(Box::new(scram));
        Ok(())
    }

    fn needs_no_binding(&self) -> Result<(), ReplicationError> {
        match self.identity.binding {
            ChannelBindingMode::Require => Err(self.refused(
                "channel_binding=require was asked for, and this login is not bound to an encrypted connection",
            )),
            _ => Ok(()),
        }
    }

    fn password(&self) -> Result<&str, ReplicationError> {
        self.identity.password.ok_or_else(|| {
            self.refused("the server asks for a password; set PGPASSWORD, PGPASSFILE or a line in ~/.pgpass")
        })
    }

    fn refused(&self, problem: &str) -> ReplicationError {
        refused(self.identity, problem)
    }

    fn internal(&self, source: io::Error) -> ReplicationError {
        internal(self.identity, source)
    }
}

fn refused(identity: &Identity<'_>, problem: &str) -> ReplicationError {
    ReplicationError::Authentication { target: identity.target.to_owned(), problem: problem.to_owned() }
}

fn internal(identity: &Identity<'_>, source: io::Error) -> ReplicationError {
    refused(identity, &source.to_string())
}

fn lost(identity: &Identity<'_>, source: io::Error) -> ReplicationError {
    let source = match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, "no answer within connect_timeout")
        }
        _ => source,
    };
    ReplicationError::Connect { target: identity.target.to_owned(), source }
}

fn stranger(identity: &Identity<'_>, problem: String) -> ReplicationError {
    ReplicationError::NotAServer { target: identity.target.to_owned(), problem }
}
