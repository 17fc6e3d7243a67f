//! What an operator says about reaching stores, for all kinds of stores at once.

use std::collections::BTreeMap;
use std::fmt;

use super::gcs::GcsAccess;
use super::http::{Network, Roots};
use super::s3::{self, S3Access};
use super::url::StoreUrl;

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

impl Access {
    /// Returns whose signatures on a server's certificate are believed.
    pub fn roots(&self, url: &StoreUrl) -> Roots {
        let bundle = || matches!(url, StoreUrl::S3(_)) && s3::bundle(&self.environment).is_some();
        if self.network.ca_file.is_none() && bundle() { Roots::File } else { self.network.roots() }
    }

    /// Returns the server that is named for a bucket, which its URL does not tell; `None` where nobody names one, and for a
    /// volume.
    pub fn server(&self, url: &StoreUrl) -> Option<String> {
        let named = match url {
            StoreUrl::Volume(_) => None,
            StoreUrl::S3(_) => s3::endpoint_named(&self.s3, &self.environment),
            StoreUrl::Gcs(_) => self.gcs.endpoint.clone(),
        };
        named.map(|server| server.trim_end_matches('/').to_owned())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.environment.keys().collect();
        f.debug_struct("Access").field("s3", &self.s3).field("gcs", &self.gcs).field("environment", &names).finish()
    }
}
