//! One SQL session that stays open: for work that a new `psql` per statement would slow down or make untrue.

use std::fmt::Write as _;

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// A session in autocommit; ends when dropped.
pub struct Session {
    runtime: Runtime,
    client: Client,
}

impl Session {
    /// Opens a session; `conninfo` is a libpq connection string.
    ///
    /// # Errors
    /// What the server or the socket said.
    pub fn connect(conninfo: &str) -> Result<Self, tokio_postgres::Error> {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime for one thread");
        let (client, connection) = runtime.block_on(tokio_postgres::connect(conninfo, NoTls))?;
        // Lives as long as the runtime; its error is also the error of the statement under way.
        runtime.spawn(connection);
        Ok(Self { runtime, client })
    }

    /// Runs the statements of `sql` and returns all rows of all of them; NULL is the empty text.
    ///
    /// # Errors
    /// What the server said, or that the session broke: then it is unknown whether `sql` was committed.
    pub fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        let messages = self.runtime.block_on(self.client.simple_query(sql))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }
}

/// Returns an error of the driver with the server's own words.
pub fn words_of(error: &tokio_postgres::Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(words, ": {error}");
        cause = error.source();
    }
    words
}
