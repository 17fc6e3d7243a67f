//! Where a store is, as the operator writes it.
//!
//! `file:///absolute/path` is a directory of a volume, `s3://bucket/folder` and `gs://bucket/folder` are folders of
//! buckets. Other schemes are refused by name.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use url::Url;

use super::bucket::Place;
use super::{Key, KeyError};
use crate::error::ErrorKind;

/// The place of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoreUrl {
    /// `file:///path`: a directory, absolute and without `.` or `..` parts.
    Volume(PathBuf),
    /// `s3://bucket/folder`, the folder may be missing.
    S3(Place),
    /// `gs://bucket/folder`, the folder may be missing.
    Gcs(Place),
}

/// A text that is not the place of a store this build can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL at all. The text is not repeated: it may hold a password.
    #[error("the repository URL cannot be read; one looks like file:///mnt/backup or s3://bucket/folder")]
    Unreadable {
        /// What the URL parser said.
        source: url::ParseError,
    },
    /// A path of this host, without what makes a URL of it. Not repeated either: two slashes may begin a URL's rest.
    #[error("a directory of this host is written with file:// before its path, as in file:///mnt/backup")]
    Path,
    /// A store that exists elsewhere and not in this build.
    #[error("{scheme}:// is not supported by this build; file:///path, s3://bucket/folder and gs://bucket/folder are")]
    Unsupported {
        /// The scheme of the URL.
        scheme: String,
    },
    /// Not an absolute path on this host.
    #[error("{text:?} names no absolute path on this host; three slashes begin one, as in file:///mnt/backup")]
    NotLocal {
        /// The URL as given.
        text: String,
    },
    /// A `?` or `#`, which would silently end the path.
    #[error("{text:?} has a '?' or '#'; as part of the path these are written %3F and %23")]
    Suffix {
        /// The URL as given.
        text: String,
    },
    /// More than a bucket and a folder. The text is not repeated: it may hold a password.
    #[error(
        "a bucket's URL is {scheme}://bucket/folder and nothing else; endpoint and credentials have settings of their own"
    )]
    NotABucket {
        /// The scheme of the URL.
        scheme: String,
    },
    /// A folder that cannot be part of a key.
    #[error("the folder in {text:?} cannot be used")]
    Folder {
        /// The URL as given.
        text: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A `.` or `..` part, whose meaning depends on links.
    #[error("{text:?} has a '.' or '..' part; name the directory itself")]
    Dots {
        /// The URL as given.
        text: String,
    },
}

impl UrlError {
    /// Returns [`ErrorKind::Invalid`]: only another URL can help.
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl StoreUrl {
    /// Returns the place of the directory `path`.
    ///
    /// # Errors
    /// [`UrlError::NotLocal`] if it is relative, [`UrlError::Dots`] if it climbs.
    pub fn volume(path: &Path) -> Result<Self, UrlError> {
        let text = || path.to_string_lossy().into_owned();
        if !path.is_absolute() {
            return Err(UrlError::NotLocal { text: text() });
        }
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            return Err(UrlError::Dots { text: text() });
        }
        Ok(Self::Volume(path.components().collect()))
    }

    /// Returns the directory of a volume; `None` for a store of another kind.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Volume(path) => Some(path),
            Self::S3(_) | Self::Gcs(_) => None,
        }
    }
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.starts_with('/') {
            return Err(UrlError::Path);
        }
        let url = Url::parse(text).map_err(|source| UrlError::Unreadable { source })?;
        let owned = || text.to_owned();
        match url.scheme() {
            "file" => {}
            "s3" => return bucket(&url, text).map(Self::S3),
            "gs" => return bucket(&url, text).map(Self::Gcs),
            scheme => return Err(UrlError::Unsupported { scheme: scheme.to_owned() }),
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(UrlError::Suffix { text: owned() });
        }
        if !text.get(5..).is_some_and(|rest| rest.starts_with("///")) {
            return Err(UrlError::NotLocal { text: owned() });
        }
        // The parser resolves these without a word, `%2e` spellings included.
        if text.to_ascii_lowercase().replace("%2e", ".").split('/').any(|part| part == "." || part == "..") {
            return Err(UrlError::Dots { text: owned() });
        }
        let path = url.to_file_path().map_err(|()| UrlError::NotLocal { text: owned() })?;
        Self::volume(&path)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self {
            Self::Volume(path) => path,
            Self::S3(place) => return write!(f, "s3://{place}"),
            Self::Gcs(place) => return write!(f, "gs://{place}"),
        };
        match Url::from_file_path(path) {
            Ok(url) => write!(f, "{url}"),
            Err(()) => write!(f, "{}", path.display()),
        }
    }
}

/// Takes a bucket's URL apart.
fn bucket(url: &Url, text: &str) -> Result<Place, UrlError> {
    let more = url.query().is_some() || url.fragment().is_some() || url.port().is_some();
    let named = url.host_str().filter(|name| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (3..=222).contains(&name.len()) && name.chars().all(fits)
    });
    match named {
        Some(name) if !more && url.username().is_empty() && url.password().is_none() => {
            let folder = url.path().trim_matches('/');
            let folder = (!folder.is_empty()).then(|| folder.parse::<Key>()).transpose();
            let folder = folder.map_err(|source| UrlError::Folder { text: text.to_owned(), source })?;
            Ok(Place { bucket: name.to_owned(), folder })
        }
        _ => Err(UrlError::NotABucket { scheme: url.scheme().to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_path_and_its_url_are_the_same_place() {
        let table = [
            ("file:///mnt/backup", "/mnt/backup", "file:///mnt/backup"),
            ("file:///mnt/my%20backup", "/mnt/my backup", "file:///mnt/my%20backup"),
            ("file:///mnt/my backup/", "/mnt/my backup", "file:///mnt/my%20backup"),
            ("file:///mnt/a%23b%3Fc", "/mnt/a#b?c", "file:///mnt/a%23b%3Fc"),
            ("FILE:///mnt//x", "/mnt/x", "file:///mnt/x"),
            ("file:///mnt/gr%C3%BC%C3%9Fe", "/mnt/grüße", "file:///mnt/gr%C3%BC%C3%9Fe"),
        ];
        for (text, path, shown) in table {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url, StoreUrl::Volume(path.into()), "{text}");
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse::<StoreUrl>().unwrap(), url);
        }
    }

    #[test]
    fn a_bucket_and_its_folder_are_one_place() {
        let place = |bucket: &str, folder: Option<&str>| Place {
            bucket: bucket.to_owned(),
            folder: folder.map(|folder| folder.parse().unwrap()),
        };
        let table = [
            ("s3://backups", StoreUrl::S3(place("backups", None)), "s3://backups"),
            ("s3://backups/", StoreUrl::S3(place("backups", None)), "s3://backups"),
            ("s3://my.backups/pg/a+b", StoreUrl::S3(place("my.backups", Some("pg/a+b"))), "s3://my.backups/pg/a+b"),
            ("gs://my_backups/pg/", StoreUrl::Gcs(place("my_backups", Some("pg"))), "gs://my_backups/pg"),
        ];
        for (text, url, shown) in table {
            assert_eq!(text.parse::<StoreUrl>().unwrap(), url, "{text}");
            assert_eq!(url.to_string(), shown);
        }
        for text in
            ["s3://", "s3:///x", "s3:backups", "s3://ab", "gs://back%20ups/x", "s3://backups/a//b", "s3://backups/.a"]
        {
            assert!(text.parse::<StoreUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_name_one_directory_of_this_host_is_refused() {
        let refused = |text: &str| text.parse::<StoreUrl>().unwrap_err();
        for text in ["/mnt/backup", "//user:secret@host/x"] {
            let error = refused(text);
            assert!(error == UrlError::Path && !error.to_string().contains("secret"), "{error}");
        }
        for text in ["backup", "", "file"] {
            assert!(matches!(refused(text), UrlError::Unreadable { .. }), "{text}");
        }
        for text in ["file:backup", "file:/mnt/backup", "file://host/mnt", "file://mnt/backup", "file://localhost/mnt"]
        {
            assert!(matches!(refused(text), UrlError::NotLocal { .. }), "{text}");
        }
        for text in ["file:///a/../b", "file:///a/./b", "file:///a/%2e%2E/b", "file:///.."] {
            assert!(matches!(refused(text), UrlError::Dots { .. }), "{text}");
        }
        for text in ["file:///a?b", "file:///a#b"] {
            assert!(matches!(refused(text), UrlError::Suffix { .. }), "{text}");
        }
    }

    #[test]
    fn a_store_of_another_build_is_refused_by_name_and_without_its_secrets() {
        for scheme in ["az", "http"] {
            let error = format!("{scheme}://user:secret@bucket/path").parse::<StoreUrl>().unwrap_err();
            assert_eq!(error, UrlError::Unsupported { scheme: scheme.into() });
            assert!(error.to_string().starts_with(&format!("{scheme}:// is not supported")));
            assert!(!error.to_string().contains("secret"));
        }
        for scheme in ["s3", "gs"] {
            for rest in
                ["user:secret@bucket/x", "bucket:secret/x", "bucket:80/secret", "bucket/x?secret", "bucket/x#secret"]
            {
                let error = format!("{scheme}://{rest}").parse::<StoreUrl>().unwrap_err();
                assert!(!crate::error::chain(&error).to_string().contains("secret"), "{error}");
            }
        }
        let error = "s3://user:secret@[bucket/".parse::<StoreUrl>().unwrap_err();
        assert!(!crate::error::chain(&error).to_string().contains("secret"));
    }
}
