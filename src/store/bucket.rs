//! A folder of a bucket as a store: what S3 and Google Cloud Storage have in common.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::path::Path as Location;
use object_store::prefix::PrefixStore;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::Key;

/// A bucket, and the folder in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The bucket's name.
    pub bucket: String,
    /// The folder; `None` for the whole bucket.
    pub folder: Option<Key>,
}

impl Place {
    /// Returns the bucket's name as Google's client spells it in a URL.
    pub(super) fn bucket_in_url(&self) -> String {
        let spelt = |c: char| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("%{:02X}", u32::from(c)) };
        self.bucket.chars().map(spelt).collect()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bucket)?;
        self.folder.iter().try_for_each(|folder| write!(f, "/{folder}"))
    }
}

/// A folder of a bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    objects: PrefixStore<Arc<dyn ObjectStore>>,
    /// What every URL of it begins with.
    address: String,
    /// Given to each object that is stored.
    attributes: Attributes,
}

impl Bucket {
    pub(super) fn new(bucket: Arc<dyn ObjectStore>, place: &Place, address: String, attributes: Attributes) -> Self {
        let folder = place.folder.as_ref().map_or("", Key::as_str);
        Self { objects: PrefixStore::new(bucket, Location::from(folder)), address, attributes }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

fn not_offered(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "bucket".to_owned() }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, location: &Location, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        options.attributes = self.attributes.clone();
        self.objects.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, _: &Location, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_offered("multipart upload"))
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        match self.objects.get_opts(location, options).await {
            // A reply without a body cannot say whether it is the key or the bucket that does not exist.
            Err(Error::NotFound { .. }) if head => {
                let first = GetOptions { range: Some(GetRange::Bounded(0..1)), ..Default::default() };
                self.objects.get_opts(location, first).await
            }
            answer => answer,
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Location>, offset: &Location) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Location, _: &Location, _: CopyOptions) -> Result<()> {
        Err(not_offered("copying"))
    }
}
