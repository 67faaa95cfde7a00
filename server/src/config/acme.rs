//! The table `[https.acme]` of the file.

use std::path::Path;

use serde::Deserialize;

use super::usage;
use crate::https::{AcmeName, AcmeSettings, DirectoryUrl, ExternalAccount};
use common::machine::{config_text::WrittenPath, report::Failure};

/// The most names in one certificate, as Let's Encrypt has it.
const MOST_NAMES: usize = 100;

/// The table as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcmeFile {
    names: Vec<AcmeName>,
    #[serde(default)]
    agree_to_terms: bool,
    contact: Option<Contact>,
    #[serde(default)]
    directory: DirectoryUrl,
    directory_ca: Option<WrittenPath>,
    profile: Option<String>,
    external_account: Option<ExternalAccountFile>,
}

/// An account that its owner has at the authority.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExternalAccountFile {
    id: String,
    key_file: WrittenPath,
}

/// One address of mail, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "an address of mail, or a list of them")]
enum Contact {
    One(Mail),
    Several(Vec<Mail>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Mail(String);

impl TryFrom<String> for Mail {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_plain = |part: &str| {
            !part.is_empty()
                && part.chars().all(|char| char.is_ascii_graphic() && !",?@".contains(char))
        };
        match text.split_once('@') {
            Some((user, host)) if is_plain(user) && is_plain(host) => Ok(Self(text)),
            _ => Err(format!("`{text}` is not an address of mail")),
        }
    }
}

/// The settings. `dir` is where the file is.
///
/// # Errors
/// Exit code 2, with what is missing.
pub(super) fn settle(file: AcmeFile, dir: &Path) -> Result<AcmeSettings, Failure> {
    if file.names.is_empty() || file.names.len() > MOST_NAMES {
        return Err(usage(format!(
            "`names` below `[https.acme]` has to name from 1 to {MOST_NAMES} names"
        ))
        .hint("write it like names = [\"gpu.example.com\"]"));
    }
    if !file.agree_to_terms {
        let terms = if file.directory == DirectoryUrl::default() {
            "for Let's Encrypt https://letsencrypt.org/repository/"
        } else {
            "its owner has them"
        };
        return Err(usage(
            "`[https.acme]` does not agree to the terms of the certificate authority",
        )
        .hint(format!(
            "read the terms ({terms}), then write `agree_to_terms = true` below `[https.acme]`"
        )));
    }
    let contact = match file.contact {
        None => Vec::new(),
        Some(Contact::One(one)) => vec![one],
        Some(Contact::Several(several)) => several,
    };
    Ok(AcmeSettings {
        names: file.names,
        contact: contact.into_iter().map(|Mail(address)| address).collect(),
        directory: file.directory,
        directory_ca: file.directory_ca.map(|path| path.resolve_in(dir)),
        profile: file.profile,
        external_account: file.external_account.map(|account| ExternalAccount {
            id: account.id,
            key_file: account.key_file.resolve_in(dir),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(text: &str) -> Result<AcmeSettings, String> {
        let file: AcmeFile = toml::from_str(text).map_err(|e| e.to_string())?;
        settle(file, Path::new("/etc/adit")).map_err(|e| format!("{e}"))
    }

    #[test]
    fn a_name_and_the_agreement_are_enough() {
        let settings = settled("names = ['gpu.example.com', '192.0.2.7']\nagree_to_terms = true");
        let settings = settings.expect("settings");
        assert_eq!(settings.directory.host(), "acme-v02.api.letsencrypt.org");
        assert_eq!(settings.names.len(), 2);
        assert!(settings.contact.is_empty() && settings.directory_ca.is_none());
        let contact =
            settled("names = ['a.example']\nagree_to_terms = true\ncontact = 'me@a.example'");
        assert_eq!(contact.expect("settings").contact, ["me@a.example"]);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (text, says) in [
            ("agree_to_terms = true", "missing field `names`"),
            ("names = []\nagree_to_terms = true", "from 1 to 100"),
            ("names = ['a.example']", "does not agree to the terms"),
            ("names = ['*.a.example']", "stands for many names"),
            ("names = ['a.example']\ncontact = 'me'", "an address of mail"),
            (
                "names = ['a.example']\ndirectory = 'http://a.example'",
                "not the address of a directory",
            ),
            ("names = ['a.example']\nname = 'b'", "unknown field"),
        ] {
            let why = settled(text).expect_err(text);
            assert!(why.contains(says), "{text}: {why}");
        }
    }
}
