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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_buckets_server_is_the_one_that_a_request_would_go_to() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        std::fs::write(&config, "[default]\nendpoint_url = http://profile:9000/\n").unwrap();
        let url: StoreUrl = "s3://bucket/folder".parse().unwrap();
        let mut access = Access::default();
        assert_eq!(access.server(&url), None);
        let mut expect = |name: &str, value: &str, server: &str| {
            access.environment.insert(name.to_owned(), value.to_owned());
            assert_eq!(access.server(&url).as_deref(), Some(server), "with {name}");
        };
        expect("AWS_CONFIG_FILE", config.to_str().unwrap(), "http://profile:9000");
        expect("AWS_ENDPOINT_URL", "http://all:9000", "http://all:9000");
        expect("AWS_ENDPOINT_URL_S3", "http://s3:9000/", "http://s3:9000");
        access.s3.endpoint = Some("http://set:9000".to_owned());
        assert_eq!(access.server(&url).as_deref(), Some("http://set:9000"));
        assert_eq!(access.server(&"file:///backups".parse().unwrap()), None);
    }
}
