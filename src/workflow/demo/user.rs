//! Whom the servers run as, and what that user can reach.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::DemoError;

/// A user of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerUser {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
}

/// Finds whom the story runs as: the caller, or for root, as which no server starts, `postgres` or `nobody`.
pub(super) fn server_user() -> Result<Option<ServerUser>, DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    choose_user(&passwd).map(Some).ok_or(DemoError::NoUser)
}

fn choose_user(passwd: &str) -> Option<ServerUser> {
    let named = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(str::parse);
        let (uid, gid) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (uid != 0).then(|| ServerUser { name: name.to_owned(), uid, gid })
    };
    named("postgres").or_else(|| named("nobody"))
}

/// Whether every user can reach a path; a directory to create in must be writable for them or us, which creating shows.
pub(super) fn is_open_to_all(path: &Path, directory: bool) -> bool {
    let Ok(path) = std::fs::canonicalize(path) else { return false };
    let allows = |path: &Path, bits: u32| std::fs::metadata(path).is_ok_and(|found| found.mode() & bits == bits);
    let own = if directory { 0o001 } else { 0o005 };
    allows(&path, own) && path.ancestors().skip(1).all(|parent| allows(parent, 0o001))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_runs_it_as_postgres_or_else_as_nobody() {
        let nobody = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        let user = |name: &str, uid, gid| Some(ServerUser { name: name.to_owned(), uid, gid });
        assert_eq!(choose_user(nobody), user("nobody", 65534, 65533));
        assert_eq!(choose_user(&format!("{nobody}postgres:x:101:104::/:/bin/sh\n")), user("postgres", 101, 104));
        assert_eq!(choose_user("root:x:0:0::/root:/bin/sh\n"), None);
        assert_eq!(choose_user("postgres:x:0:0::/:/bin/sh\n"), None, "another name for root is root");
    }
}
