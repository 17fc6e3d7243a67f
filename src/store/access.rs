//! What an operator says about reaching stores, for all kinds of stores at once.

use std::collections::BTreeMap;
use std::fmt;

use super::gcs::GcsAccess;
use super::http::Network;
use super::s3::S3Access;

/// How stores are reached. A volume needs none of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Buckets of S3.
    pub s3: S3Access,
    /// Buckets of Google Cloud Storage.
    pub gcs: GcsAccess,
    /// Both.
    pub network: Network,
    /// Variables that the tools of both clouds read, such as `AWS_REGION`; secrets are among them.
    pub environment: BTreeMap<String, String>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.environment.keys().collect();
        f.debug_struct("Access").field("s3", &self.s3).field("gcs", &self.gcs).field("environment", &names).finish()
    }
}
