//! Actions put together.

pub mod check;
pub mod demo;
mod install;
mod start;
pub mod status;

pub use install::{InstallError, Installed, PROGRAM, install};
pub use start::{Start, StartError, Started, start};
