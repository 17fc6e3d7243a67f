//! Which configuration files a server reads.

use std::path::PathBuf;

/// Where a server's configuration is, as the server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigurationPaths {
    /// `config_file`; empty if the server did not say.
    pub config_file: PathBuf,
    /// `hba_file`.
    pub hba_file: PathBuf,
    /// `ident_file`.
    pub ident_file: PathBuf,
    /// Every file that a setting was read from, as far as this user may know.
    pub settings_files: Vec<PathBuf>,
    /// Every file that a rule of authentication was read from, as far as the server and this user's rights allow.
    pub authentication_files: Vec<PathBuf>,
}
