//! The one next thing to do about a bucket that refuses.

use crate::repo::RepoError;
use crate::store::{Obstacle, StoreError, Verb};

/// Returns what to do about a failure of the repository's store, if something stands in the way that has a name.
pub(super) fn of(error: &RepoError) -> Option<String> {
    match error {
        RepoError::Store(error) => Some(against(&error.obstacle()?, &Cloud::of(error), error.verb())),
        _ => None,
    }
}

/// The words of one cloud.
struct Cloud {
    endpoint: &'static str,
    credentials: &'static str,
    create: &'static str,
    get: &'static str,
    list: &'static str,
    delete: &'static str,
}

const S3: Cloud = Cloud {
    endpoint: "s3_endpoint",
    credentials: "S3 and its relatives",
    create: "s3:PutObject",
    get: "s3:GetObject",
    list: "s3:ListBucket",
    delete: "s3:DeleteObject",
};

const GCS: Cloud = Cloud {
    endpoint: "gcs_endpoint",
    credentials: "Google Cloud Storage",
    create: "storage.objects.create",
    get: "storage.objects.get",
    list: "storage.objects.list",
    delete: "storage.objects.delete",
};

impl Cloud {
    fn of(error: &StoreError) -> Self {
        if error.store().starts_with("gs:") { GCS } else { S3 }
    }

    fn permission(&self, verb: Verb) -> String {
        let (get, list) = (self.get, self.list);
        match verb {
            Verb::Create => self.create.to_owned(),
            Verb::Open | Verb::Get | Verb::GetRange | Verb::Head => {
                format!("{get}, and {list}, without which what is not there is refused too")
            }
            Verb::List | Verb::ListChildren => list.to_owned(),
            Verb::Delete => self.delete.to_owned(),
        }
    }
}

fn against(obstacle: &Obstacle, cloud: &Cloud, verb: Verb) -> String {
    let Cloud { endpoint, credentials, .. } = cloud;
    match obstacle {
        Obstacle::NoBucket => "make the bucket, or correct repo; walvault makes no buckets".to_owned(),
        Obstacle::OtherRegion(Some(region)) => format!("set s3_region = \"{region}\""),
        Obstacle::OtherRegion(None) => "set s3_region to the bucket's region".to_owned(),
        Obstacle::Clock => "set this host's clock: run a time service (chrony, systemd-timesyncd)".to_owned(),
        Obstacle::Authority => "set ca_file to the certificate of the authority that signed the server's".to_owned(),
        Obstacle::CertificateName => format!("let {endpoint} name the server as its certificate does"),
        Obstacle::Silence => format!("is {endpoint} right, the server up, and no firewall or proxy in the way?"),
        Obstacle::Stranger => format!("what answers is no store: is {endpoint} right, and no proxy in the way?"),
        Obstacle::Credentials => format!("correct the credentials: see `{credentials}` in docs/operations.md"),
        Obstacle::NotOffered => {
            "use another store, or walvault's mode for stores that overwrite: a new repository".to_owned()
        }
        Obstacle::Permission => format!("allow these credentials {}", cloud.permission(verb)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_permission_that_is_missing_is_named_as_its_cloud_does() {
        let table = [
            (Verb::Create, "s3:PutObject", "storage.objects.create"),
            (Verb::Get, "s3:GetObject, and s3:ListBucket,", "storage.objects.get, and storage.objects.list,"),
            (Verb::GetRange, "s3:GetObject, and s3:ListBucket,", "storage.objects.get, and storage.objects.list,"),
            (Verb::List, "s3:ListBucket", "storage.objects.list"),
            (Verb::ListChildren, "s3:ListBucket", "storage.objects.list"),
            (Verb::Delete, "s3:DeleteObject", "storage.objects.delete"),
        ];
        for (verb, s3, gcs) in table {
            for (cloud, expected) in [(&S3, s3), (&GCS, gcs)] {
                let said = against(&Obstacle::Permission, cloud, verb);
                assert!(said.starts_with(&format!("allow these credentials {expected}")), "{verb}: {said}");
            }
        }
    }
}
