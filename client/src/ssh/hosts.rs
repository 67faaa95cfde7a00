//! Checks a host's key: reads known_hosts, judges the key, asks about an unknown key, and stores an
//! accepted one.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use common::machine::{process::unix_now, report::say};
use proto::crypto::fill_random;
use ssh_key::Algorithm;
use tracing::{debug, warn};

use super::{
    ask,
    config::{HostConfig, Strict},
    known_hosts::{self, FileLine, HostLine, KeyJudgement, Offered},
};

/// Why a host is not trusted.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum HostKeyError {
    /// Its key is not the known one.
    #[error(
        "the host key of {name} HAS CHANGED: somebody may be intercepting the connection, or the host was reinstalled.\n    \
         Its key is now {fingerprint}; another key is in {}:{line}", file.display()
    )]
    Changed {
        /// As known_hosts calls it.
        name: String,
        /// What it shows.
        fingerprint: String,
        /// The file with the other key.
        file: PathBuf,
        line: usize,
    },
    /// The key, or its authority, was revoked.
    #[error("the host key of {name} ({fingerprint}) is REVOKED in {}:{line}: somebody may have stolen it", file.display())]
    Revoked {
        /// As known_hosts calls it.
        name: String,
        /// What it shows.
        fingerprint: String,
        /// Where it is revoked.
        file: PathBuf,
        line: usize,
    },
    /// The key is unknown, and was not accepted.
    #[error("the host key of {name} ({fingerprint}) is not known{why}")]
    Unknown {
        /// As known_hosts calls it.
        name: String,
        /// What it shows.
        fingerprint: String,
        /// Why it was not accepted.
        why: &'static str,
    },
}

impl HostKeyError {
    /// What cures it. `by_hand` is the command that connects to the same host.
    pub(crate) fn hint(&self, by_hand: &str) -> String {
        match self {
            Self::Changed { name, file, .. } => format!(
                "ask the owner of the host for its fingerprint; if it is this one, remove the old key: `ssh-keygen -f '{}' -R '{name}'`",
                file.display()
            ),
            Self::Revoked { .. } => "do not connect; ask the owner of the host".to_owned(),
            Self::Unknown { why, .. } => {
                let ask = if why.contains("StrictHostKeyChecking") {
                    " -o StrictHostKeyChecking=ask"
                } else {
                    ""
                };
                format!(
                    "compare the fingerprint with the host's own, on the host: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`; if it is \
                     the same, accept it once at a terminal: `{by_hand}{ask}`"
                )
            }
        }
    }
}

/// What known_hosts says about one host.
#[derive(Debug)]
pub(crate) struct KnownHost {
    name: String,
    /// The name without its port. Certificates contain it, and OpenSSH looks for it if the name
    /// with a port is unknown.
    bare: String,
    lines: Vec<HostLine>,
    strict: Strict,
    learn: Option<PathBuf>,
    hash: bool,
    may_ask: bool,
}

impl KnownHost {
    /// Reads the files. With `may_ask`, a person at a terminal is asked about an unknown key.
    pub(crate) fn read(config: &HostConfig, may_ask: bool) -> Self {
        let bare = config.alias.as_ref().unwrap_or(&config.host_name).to_ascii_lowercase();
        // An alias is used without the port.
        let name = if config.alias.is_some() {
            bare.clone()
        } else {
            known_hosts::stored_name(&bare, config.port)
        };
        let mut lines = Vec::new();
        for file in config.user_known_hosts.iter().chain(&config.global_known_hosts) {
            match fs::read(file) {
                Ok(bytes) => {
                    lines.extend(known_hosts::parse(file, &String::from_utf8_lossy(&bytes)))
                }
                Err(e) => debug!("{}: {e}", file.display()),
            }
        }
        let learn = config.user_known_hosts.first().cloned();
        Self {
            name,
            bare,
            lines,
            strict: config.strict,
            learn,
            hash: config.hash_known_hosts,
            may_ask,
        }
    }

    /// The kinds of keys that are known for it, and whether a certificate would be accepted.
    pub(crate) fn kinds(&self) -> (Vec<Algorithm>, bool) {
        known_hosts::kinds(&self.lines, &self.name)
    }

    /// Judges what the host has offered.
    pub(crate) async fn check(&self, offered: &Offered) -> Result<(), HostKeyError> {
        let (name, fingerprint) = (self.name.clone(), offered.fingerprint());
        match self.judge(&self.name, offered) {
            KeyJudgement::Known | KeyJudgement::ByAuthority => Ok(()),
            KeyJudgement::Changed(FileLine { file, line }) => {
                Err(HostKeyError::Changed { name, fingerprint, file, line })
            }
            KeyJudgement::Revoked(FileLine { file, line }) => {
                Err(HostKeyError::Revoked { name, fingerprint, file, line })
            }
            KeyJudgement::Unknown { others, because } => {
                if let Some(why) = because {
                    warn!("the certificate of {name} is not accepted: {why}");
                }
                // As in OpenSSH, a host that is known on the default port may have the same key on
                // another port.
                if self.name != self.bare && self.judge(&self.bare, offered) == KeyJudgement::Known
                {
                    return Ok(());
                }
                match self.ask(offered, &others).await {
                    Ok(()) => Ok(()),
                    Err(why) => Err(HostKeyError::Unknown { name, fingerprint, why }),
                }
            }
        }
    }

    fn judge(&self, name: &str, offered: &Offered) -> KeyJudgement {
        known_hosts::judge(&self.lines, name, &self.bare, offered, unix_now().unsigned_abs())
    }

    async fn ask(&self, offered: &Offered, others: &[FileLine]) -> Result<(), &'static str> {
        if self.strict == Strict::Refuse {
            return Err(", and StrictHostKeyChecking forbids asking");
        }
        if !self.may_ask || !ask::somebody_is_there() {
            return Err(", and there is nobody to ask");
        }
        let kind = offered.key().algorithm();
        say(format!("The authenticity of host '{}' can't be established.", self.name));
        for FileLine { file, line } in others {
            say(format!("A key of another kind is known for it: {}:{line}.", file.display()));
        }
        if self.strict == Strict::AskAnyway {
            say("(StrictHostKeyChecking would accept the key without a question, but adit asks.)");
        }
        say(format!("Its {} key has the fingerprint {}.", kind.as_str(), offered.fingerprint()));
        if !ask::yes_or_fingerprint(
            "Are you sure that you want to continue connecting (yes/no/[fingerprint])? ",
            &offered.fingerprint(),
        )
        .await
        {
            return Err(", and it was not accepted");
        }
        if let Some(file) = &self.learn {
            match self.keep(file, offered) {
                Ok(()) => say(format!("Added '{}' to {}.", self.name, file.display())),
                Err(e) => warn!("cannot add the key to {}: {e}", file.display()),
            }
        }
        Ok(())
    }

    fn keep(&self, path: &Path, offered: &Offered) -> std::io::Result<()> {
        let salt = self.hash.then(|| {
            let mut salt = [0; 20];
            fill_random(&mut salt);
            salt
        });
        let line = known_hosts::line(&self.name, offered.key(), salt)
            .ok_or(std::io::ErrorKind::InvalidData)?;
        if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
            fs::DirBuilder::new().mode(0o700).create(dir)?;
        }
        let ends_well =
            fs::read(path).map_or(true, |bytes| bytes.last().is_none_or(|last| *last == b'\n'));
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.write_all(format!("{}{line}", if ends_well { "" } else { "\n" }).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learned_key_begins_a_line_of_its_own() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let file = tmp.path().join("new/known_hosts");
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let key = ssh_key::PublicKey::from_openssh(key).expect("a key");
        let host = |name: &str, hash| KnownHost {
            name: name.to_owned(),
            bare: name.to_owned(),
            lines: Vec::new(),
            strict: Strict::Ask,
            learn: None,
            hash,
            may_ask: false,
        };
        let offered = Offered::Key(key.key_data().clone());
        host("[gpu]:2222", false).keep(&file, &offered).expect("kept");
        fs::write(&file, fs::read_to_string(&file).expect("read").trim_end()).expect("written");
        host("box", true).keep(&file, &offered).expect("kept");
        let text = fs::read_to_string(&file).expect("read");
        assert!(
            text.starts_with("[gpu]:2222 ssh-ed25519 ")
                && text.lines().nth(1).is_some_and(|l| l.starts_with("|1|")),
            "{text}"
        );
        let lines = known_hosts::parse(&file, &text);
        for name in ["[gpu]:2222", "box"] {
            assert_eq!(
                known_hosts::judge(&lines, name, name, &offered, 0),
                KeyJudgement::Known,
                "{name}"
            );
        }
    }
}
