//! One SQL session that gives up when the story is interrupted.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_postgres::types::{FromSql, ToSql};
use tokio_postgres::{Client, Config, NoTls, Row};

use super::error::DemoError;
use super::stage::Interrupt;

/// A superuser's session, used by one thread.
pub(super) struct Sql<'a> {
    runtime: Runtime,
    client: Client,
    interrupt: Interrupt<'a>,
}

impl<'a> Sql<'a> {
    /// Connects through the socket in `directory`.
    pub fn connect(directory: &Path, port: u16, interrupt: Interrupt<'a>) -> Result<Self, DemoError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| DemoError::Io {
            action: "start a runtime beside",
            path: directory.into(),
            source,
        })?;
        let mut config = Config::new();
        config.host_path(directory).port(port).user("postgres").dbname("postgres").application_name("walvault demo");
        let connected = within(&runtime, interrupt, config.connect(NoTls))?;
        let (client, connection) =
            connected.map_err(|source| DemoError::Sql { action: "connect to the server", source })?;
        // Its end shows as an error of the next statement.
        runtime.spawn(async { drop(connection.await) });
        Ok(Self { runtime, client, interrupt })
    }

    /// Runs statements that answer nothing.
    pub fn batch(&self, action: &'static str, statements: &str) -> Result<(), DemoError> {
        let done = within(&self.runtime, self.interrupt, self.client.batch_execute(statements))?;
        done.map_err(|source| DemoError::Sql { action, source })
    }

    /// Runs one statement that answers nothing.
    pub fn execute(
        &self,
        action: &'static str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<(), DemoError> {
        let done = within(&self.runtime, self.interrupt, self.client.execute(statement, values))?;
        done.map(|_| ()).map_err(|source| DemoError::Sql { action, source })
    }

    /// Asks for one row.
    pub fn row(&self, action: &'static str, statement: &str) -> Result<Answer, DemoError> {
        let row = within(&self.runtime, self.interrupt, self.client.query_one(statement, &[]))?;
        row.map(|row| Answer { row, action }).map_err(|source| DemoError::Sql { action, source })
    }

    /// Asks until a statement answers true.
    pub fn wait_until(&self, what: &'static str, statement: &str, patience: Duration) -> Result<(), DemoError> {
        let began = Instant::now();
        while !self.row(what, statement)?.get::<bool>(0)? {
            if began.elapsed() > patience {
                return Err(DemoError::TooLong { what, waited: patience });
            }
            self.interrupt.pause(Duration::from_millis(2))?;
        }
        Ok(())
    }
}

/// One row, and what it was asked for.
pub(super) struct Answer {
    row: Row,
    action: &'static str,
}

impl Answer {
    pub fn get<'r, T: FromSql<'r>>(&'r self, column: usize) -> Result<T, DemoError> {
        self.row.try_get(column).map_err(|source| DemoError::Sql { action: self.action, source })
    }
}

/// Runs to the end, or to the interruption.
fn within<T>(runtime: &Runtime, interrupt: Interrupt<'_>, work: impl Future<Output = T>) -> Result<T, DemoError> {
    const LOOK: Duration = Duration::from_millis(20);
    let interrupted = async {
        while interrupt.check().is_ok() {
            tokio::time::sleep(LOOK).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = interrupted => Err(DemoError::Interrupted),
        }
    })
}
