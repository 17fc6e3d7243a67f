//! Profiles of the files that AWS's tools share: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Keys, region and endpoint are read. What a profile may ask for besides (single sign-on, another program, a chain of
//! roles) is refused by name and not passed over: other credentials than those meant could write somewhere else.
//!
//! Source: "Configuration and credential file settings" in the guide to the AWS SDKs and Tools.

use std::collections::BTreeMap;
use std::path::PathBuf;

use object_store::aws::AwsCredential;

use super::error::BackendError;
use super::http::BadFile;
use crate::error::ErrorKind;

/// Settings of one profile; empty if there is none of that name and none was asked for.
#[derive(Default)]
pub(super) struct Profile {
    name: String,
    settings: BTreeMap<String, String>,
}

/// Settings that say where credentials come from, and that are not offered here.
const NOT_OFFERED: [&str; 5] = ["sso_session", "sso_start_url", "credential_process", "source_profile", "role_arn"];

impl Profile {
    /// Reads the profile `named`, or the environment's.
    pub(super) fn load(named: Option<&str>, environment: &BTreeMap<String, String>) -> Result<Self, BackendError> {
        let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let asked = named.or_else(|| variable("AWS_PROFILE").map(String::as_str));
        let name = asked.unwrap_or("default");
        let home = variable("HOME").map(PathBuf::from);
        let file = |set: &str, usual: &str| {
            variable(set).map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(".aws").join(usual)))
        };
        let mut settings = BTreeMap::new();
        let mut found = false;
        // In the second file only the default profile's section is called by its name alone.
        let in_config = if name == "default" { name.to_owned() } else { format!("profile {name}") };
        for (file, section) in [
            (file("AWS_CONFIG_FILE", "config"), in_config.as_str()),
            (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), name),
        ] {
            let Some(file) = file else { continue };
            match std::fs::read_to_string(&file) {
                Ok(text) => found |= take(&text, section, &mut settings),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // A home that may not be entered has no profile for us, unless one was asked for.
                Err(_) if asked.is_none() => {}
                Err(error) => {
                    let problem = BadFile { doing: "read", file, source: error.into() };
                    return Err(BackendError::new(ErrorKind::Denied, problem));
                }
            }
        }
        if !found && asked.is_some() {
            let text = format!("there is no profile {name:?} in the files shared by AWS's tools");
            return Err(BackendError::new(ErrorKind::Invalid, text));
        }
        Ok(Self { name: name.to_owned(), settings })
    }

    pub(super) fn get(&self, setting: &str) -> Option<String> {
        self.settings.get(setting).cloned()
    }

    /// Returns the profile's keys, if it has any.
    pub(super) fn keys(&self) -> Result<Option<AwsCredential>, BackendError> {
        let (id, secret) = (self.get("aws_access_key_id"), self.get("aws_secret_access_key"));
        if let (Some(key_id), Some(secret_key)) = (id, secret) {
            return Ok(Some(AwsCredential { key_id, secret_key, token: self.get("aws_session_token") }));
        }
        match NOT_OFFERED.iter().find(|setting| self.settings.contains_key(**setting)) {
            Some(setting) => {
                let text = format!(
                    "profile {:?} has {setting}, which is not supported here; give keys, or a web identity \
                     (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN)",
                    self.name
                );
                Err(BackendError::new(ErrorKind::Invalid, text))
            }
            None => Ok(None),
        }
    }
}

/// Takes a section's settings; returns whether it is there.
fn take(text: &str, section: &str, settings: &mut BTreeMap<String, String>) -> bool {
    let (mut inside, mut found) = (false, false);
    for line in text.lines() {
        let plain = line.trim();
        if plain.is_empty() || plain.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = plain.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            inside = name.split_whitespace().eq(section.split_whitespace());
            found |= inside;
            continue;
        }
        // Settings of a service are indented below its name, and are not the profile's own.
        if !inside || line.starts_with([' ', '\t']) {
            continue;
        }
        if let Some((name, value)) = plain.split_once('=') {
            settings.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::tests::Scratch;

    fn loaded(named: Option<&str>, config: &str, credentials: &str) -> Result<Profile, BackendError> {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path().join(".aws")).unwrap();
        std::fs::write(scratch.path().join(".aws/config"), config).unwrap();
        std::fs::write(scratch.path().join(".aws/credentials"), credentials).unwrap();
        let home = scratch.path().to_str().unwrap().to_owned();
        Profile::load(named, &BTreeMap::from([("HOME".to_owned(), home)]))
    }

    #[test]
    fn keys_and_region_come_from_the_two_files() {
        let config = "[default]\nregion = eu-west-1\n[profile other]\nregion=us-west-2\ns3 =\n  region = nowhere\n";
        let credentials = "# keys\n[default]\naws_access_key_id = AK\naws_secret_access_key = s=cret\n[other]\n\
                           aws_access_key_id=AK2\naws_secret_access_key=two\naws_session_token=t\n";
        let keys = |profile: &Profile| profile.keys().unwrap().unwrap();
        let default = loaded(None, config, credentials).unwrap();
        assert_eq!(
            (keys(&default).secret_key.as_str(), default.get("region").as_deref()),
            ("s=cret", Some("eu-west-1"))
        );
        let other = loaded(Some("other"), config, credentials).unwrap();
        assert_eq!((keys(&other).token.as_deref(), other.get("region").as_deref()), (Some("t"), Some("us-west-2")));
    }

    #[test]
    fn what_cannot_be_followed_is_refused_and_nothing_else_is_taken_instead() {
        assert!(loaded(Some("missing"), "", "").is_err());
        assert!(loaded(None, "", "").unwrap().keys().unwrap().is_none());
        for setting in NOT_OFFERED {
            let profile = loaded(None, &format!("[default]\n{setting} = x\n"), "").unwrap();
            assert!(profile.keys().err().unwrap().to_string().contains(setting));
        }
    }
}
