//! Judges a host's key by the lines of known_hosts (`sshd(8)`, SSH_KNOWN_HOSTS FILE FORMAT). Pure:
//! it takes bytes and returns a judgement.

use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use proto::glob;
use ssh_key::{
    Algorithm, Certificate, HashAlg, PublicKey,
    certificate::CertType,
    known_hosts::{HostPatterns, Marker},
    public::KeyData,
};

/// A line of known_hosts.
#[derive(Debug, Clone)]
pub(crate) struct HostLine {
    position: FileLine,
    marker: Option<Marker>,
    hosts: HostPatterns,
    key: KeyData,
}

/// The position of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileLine {
    pub(crate) file: PathBuf,
    /// The first line is 1.
    pub(crate) line: usize,
}

/// What a host has offered.
#[derive(Debug, Clone)]
pub(crate) enum Offered {
    /// A key.
    Key(KeyData),
    /// A key with a certificate.
    Certificate(Box<Certificate>),
}

/// The judgement of what a host has offered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyJudgement {
    /// It is the host's key.
    Known,
    /// A trusted authority has signed its certificate.
    ByAuthority,
    /// Another key of this kind is known for the host.
    Changed(FileLine),
    /// The key or its authority is revoked.
    Revoked(FileLine),
    /// The key is not known.
    Unknown {
        /// The lines with other kinds of keys of this host.
        others: Vec<FileLine>,
        /// Why a certificate of a trusted authority was not accepted.
        because: Option<&'static str>,
    },
}

impl Offered {
    /// The key itself.
    pub(crate) fn key(&self) -> &KeyData {
        match self {
            Self::Key(key) => key,
            Self::Certificate(certificate) => certificate.public_key(),
        }
    }

    /// The fingerprint that people compare.
    pub(crate) fn fingerprint(&self) -> String {
        self.key().fingerprint(HashAlg::Sha256).to_string()
    }
}

/// The name under which OpenSSH stores a host and port.
pub(crate) fn stored_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == super::config::SSH_PORT { host } else { format!("[{host}]:{port}") }
}

/// Reads a file. Comments, malformed lines, and unknown markers and kinds of keys are skipped.
pub(crate) fn parse(file: &Path, text: &str) -> Vec<HostLine> {
    let read = |(at, line): (usize, &str)| {
        let mut words = line.split_ascii_whitespace().peekable();
        let marker = match words.peek()? {
            word if word.starts_with('#') => return None,
            word if word.starts_with('@') => Some(words.next()?.parse().ok()?),
            _ => None,
        };
        let hosts = words.next()?.parse().ok()?;
        let key = PublicKey::from_openssh(&format!("{} {}", words.next()?, words.next()?)).ok()?;
        let position = FileLine { file: file.to_owned(), line: at + 1 };
        Some(HostLine { position, marker, hosts, key: key.key_data().clone() })
    };
    text.lines().enumerate().filter_map(read).collect()
}

/// Judges what the host that is stored as `name` has offered. `principal` is the name that its
/// certificate must contain; `now` is in Unix seconds.
pub(crate) fn judge(
    lines: &[HostLine],
    name: &str,
    principal: &str,
    offered: &Offered,
    now: u64,
) -> KeyJudgement {
    let (key, certificate) = match offered {
        Offered::Key(key) => (key, None),
        Offered::Certificate(certificate) => (certificate.public_key(), Some(certificate)),
    };
    let of_host = || lines.iter().filter(|line| line.is_for(name));
    let revoked = of_host().filter(|line| line.marker == Some(Marker::Revoked));
    for line in revoked {
        if line.key == *key || certificate.is_some_and(|c| *c.signature_key() == line.key) {
            return KeyJudgement::Revoked(line.position.clone());
        }
    }
    let mut because = None;
    if let Some(certificate) = certificate {
        let mut authorities = of_host().filter(|line| line.marker == Some(Marker::CertAuthority));
        if let Some(line) = authorities.find(|line| line.key == *certificate.signature_key()) {
            match vouched(certificate, &line.key, principal, now) {
                Ok(()) => return KeyJudgement::ByAuthority,
                Err(why) => because = Some(why),
            }
        }
    }
    let plain: Vec<&HostLine> = of_host().filter(|line| line.marker.is_none()).collect();
    if plain.iter().any(|line| line.key == *key) {
        return KeyJudgement::Known;
    }
    match plain.iter().find(|line| line.key.algorithm() == key.algorithm()) {
        Some(line) => KeyJudgement::Changed(line.position.clone()),
        None => KeyJudgement::Unknown {
            others: plain.iter().map(|line| line.position.clone()).collect(),
            because,
        },
    }
}

/// The kinds of keys that are known for a host, and whether there is an authority for it. They are
/// offered first in the key exchange.
pub(crate) fn kinds(lines: &[HostLine], name: &str) -> (Vec<Algorithm>, bool) {
    let (authorities, keys): (Vec<&HostLine>, Vec<&HostLine>) = lines
        .iter()
        .filter(|line| line.marker != Some(Marker::Revoked) && line.is_for(name))
        .partition(|line| line.marker == Some(Marker::CertAuthority));
    (keys.iter().map(|line| line.key.algorithm()).collect(), !authorities.is_empty())
}

/// A line for a host's key, as OpenSSH writes it. With a salt the host's name is hashed.
pub(crate) fn line(name: &str, key: &KeyData, salt: Option<[u8; 20]>) -> Option<String> {
    let hosts = match salt {
        Some(salt) => {
            HostPatterns::HashedName { salt: salt.to_vec(), hash: hashed(&salt, name) }.to_string()
        }
        None => name.to_owned(),
    };
    Some(format!("{hosts} {}\n", PublicKey::new(key.clone(), "").to_openssh().ok()?))
}

fn vouched(
    certificate: &Certificate,
    authority: &KeyData,
    principal: &str,
    now: u64,
) -> Result<(), &'static str> {
    let weak = matches!(
        certificate.signature().algorithm(),
        Algorithm::Rsa { hash: None } | Algorithm::Dsa
    );
    if certificate.cert_type() != CertType::Host {
        return Err("it is not a host certificate");
    }
    if weak {
        return Err("it is signed with SHA-1");
    }
    if !certificate.critical_options().is_empty() {
        return Err("it has critical options that nobody knows");
    }
    if !certificate
        .valid_principals()
        .iter()
        .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), principal, None))
    {
        return Err("it is for another host");
    }
    if now < certificate.valid_after() || now >= certificate.valid_before() {
        return Err("it is not valid at this computer's time");
    }
    certificate
        .validate_at(now, [&authority.fingerprint(HashAlg::Sha256)])
        .map_err(|_| "its signature is wrong")
}

impl HostLine {
    fn is_for(&self, name: &str) -> bool {
        match &self.hosts {
            HostPatterns::HashedName { salt, hash } => hashed(salt, name) == *hash,
            HostPatterns::Patterns(patterns) => {
                let matches =
                    |pattern: &str| glob::matches(&pattern.to_ascii_lowercase(), name, None);
                let denied = patterns.iter().filter_map(|p| p.strip_prefix('!')).any(matches);
                !denied && patterns.iter().filter(|p| !p.starts_with('!')).any(|p| matches(p))
            }
        }
    }
}

fn hashed(salt: &[u8], name: &str) -> [u8; 20] {
    let tag =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt), name.as_bytes());
    let mut out = [0; 20];
    out.copy_from_slice(tag.as_ref());
    out
}

#[cfg(test)]
mod tests;
