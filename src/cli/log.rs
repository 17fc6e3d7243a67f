//! The agent's log: one line an event on stderr, with its fields.
//!
//! A time, a level, what happened, and fields as `name=value`. Whoever collects the lines adds host and service.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::output;
use crate::clock;

/// Writes events to stderr.
struct Lines {
    most: Level,
}

/// Writes events of this process to stderr from now on; the finer ones only if `verbose`.
pub(super) fn to_stderr(verbose: bool) {
    let most = if verbose { Level::DEBUG } else { Level::INFO };
    // Fails only if it was done already.
    let _ = tracing::subscriber::set_global_default(Lines { most });
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries below talk about themselves.
        *metadata.level() <= self.most && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let moment = clock::now().format("%Y-%m-%dT%H:%M:%S%.3fZ");
        output::complain(&format!("{moment} {:5} {}{}", event.metadata().level(), line.message, line.fields));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn add(&mut self, field: &Field, value: &str) {
        let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '=');
        // Quoted as Rust quotes: a line stays a line whatever an error says.
        let _ = match (field.name(), plain) {
            ("message", _) => self.message.write_str(value),
            (name, true) => write!(self.fields, " {name}={value}"),
            (name, false) => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}
