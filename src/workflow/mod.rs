//! Actions put together.

pub mod check;
pub mod demo;
mod install;
mod left_out;
mod start;
pub mod status;

pub use install::{InstallError, Installed, PROGRAM, install};
pub use left_out::{ClosedDatabase, LeftOutError, close_left_out};
pub use start::{Start, StartError, Started, start};
