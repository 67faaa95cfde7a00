//! The code that a person copies from the server to a device. It contains the server's addresses,
//! the hash of its CA's key, and a one-time secret.

use std::{fmt, str::FromStr};

use aws_lc_rs::hmac;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    crypto::{fill_random, sha256},
    knock::SharedKey,
};

/// The format of a code that enrolls one device, and of one that opens a sign-in: an older program
/// refuses the second as that of a newer version.
const VERSION: u8 = 1;
const VERSION_SIGN_IN: u8 = 2;
/// The beginning of every code.
pub const PREFIX: &str = "adit";
/// The version, the hash of the CA, the end, the secret, and the number of addresses.
const FIXED_LEN: usize = 1 + 32 + 8 + 16 + 1;
const CHECK_LEN: usize = 4;
/// The most addresses that a code can contain.
pub const MAX_ADDRESSES: usize = 8;
const MAX_ADDRESS_LEN: usize = 255;
/// The most characters that a code can have.
pub const MAX_CODE_LEN: usize = 4096;

/// The contents of an invitation. Its text form is the code: `adit` and base32, case-insensitive,
/// with a checksum against typing errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Where the server listens, as `host:port`, best first.
    pub addresses: Vec<String>,
    /// SHA-256 of the CA's SubjectPublicKeyInfo. Before the device has enrolled, it trusts nothing
    /// else.
    pub ca: [u8; 32],
    /// When the invitation expires, Unix time. The server does not answer a knock of an expired
    /// invitation, so only the code can tell the device why.
    pub expires: i64,
    /// The one-time secret; that of a sign-in code is for many devices.
    pub secret: Secret,
    /// Whether the code only opens a sign-in at the server's OpenID Provider, for any number of
    /// devices. It enrolls nobody by itself.
    pub sign_in: bool,
}

/// The one-time secret of an invitation. The knock key and the token are derived from it; the
/// secret itself is never sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Secret {
    /// A fresh random secret.
    pub fn generate() -> Self {
        let mut secret = Self([0; 16]);
        fill_random(&mut secret.0);
        secret
    }

    /// The key for the knock of an enrollment. The server accepts it while the invitation is open.
    pub fn knock_key(&self) -> SharedKey {
        SharedKey::from_bytes(*self.derive(b"adit/1 invitation door"))
    }

    /// The token that the device sends to redeem the invitation. The server stores only its hash.
    pub fn token(&self) -> Zeroizing<[u8; 32]> {
        self.derive(b"adit/1 invitation token")
    }

    fn derive(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), label);
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(tag.as_ref());
        out
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Invitation {
    /// The invitation as text.
    pub fn code(&self) -> Zeroizing<String> {
        // Allocated with their final size: a buffer that grows leaves copies in memory.
        let addresses: usize = self.addresses.iter().map(|address| 1 + address.len()).sum();
        let len = FIXED_LEN + addresses + CHECK_LEN;
        let mut bytes = Zeroizing::new(Vec::with_capacity(len));
        bytes.push(if self.sign_in { VERSION_SIGN_IN } else { VERSION });
        bytes.extend_from_slice(&self.ca);
        bytes.extend_from_slice(&self.expires.to_be_bytes());
        bytes.extend_from_slice(&self.secret.0);
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            bytes.push(address.len() as u8);
            bytes.extend_from_slice(address.as_bytes());
        }
        let check = sha256(&bytes);
        bytes.extend_from_slice(&check[..CHECK_LEN]);
        let body = Zeroizing::new(data_encoding::BASE32_NOPAD.encode(&bytes));
        let mut code = Zeroizing::new(String::with_capacity(PREFIX.len() + body.len()));
        code.push_str(PREFIX);
        code.push_str(&body);
        code.make_ascii_lowercase();
        code
    }
}

/// Why some text is not an invitation code.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodeError {
    /// The text is empty.
    #[error("the code is empty")]
    Empty,
    /// It does not begin with `adit`, is too long, or has characters that no code has.
    #[error(
        "this is not an invitation code: one begins with `{PREFIX}` and has only letters and the digits 2 to 7"
    )]
    NotACode,
    /// Its end is missing.
    #[error("the code is incomplete: its end is missing")]
    Incomplete,
    /// The checksum does not match: a character is missing or changed.
    #[error("the code has a typing error in it (its checksum does not match)")]
    Damaged,
    /// Its format is that of a newer server.
    #[error("the code was made by a newer version of aditd (format {0})")]
    Version(u8),
}

impl FromStr for Invitation {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Self, CodeError> {
        // Mail and chat programs break long words and add quotation marks.
        let mut bare = Zeroizing::new(String::with_capacity(text.len()));
        bare.extend(text.chars().filter(|c| !is_packaging(*c)));
        bare.make_ascii_lowercase();
        let text = bare;
        if text.is_empty() {
            return Err(CodeError::Empty);
        }
        let body = text
            .strip_prefix(PREFIX)
            .filter(|_| text.len() <= MAX_CODE_LEN)
            .ok_or(CodeError::NotACode)?;
        let alphabet = |c: char| c.is_ascii_lowercase() || ('2'..='7').contains(&c);
        if !body.chars().all(alphabet) {
            return Err(CodeError::NotACode);
        }
        let body = Zeroizing::new(body.to_ascii_uppercase());
        let sound = |bytes: &Zeroizing<Vec<u8>>| {
            bytes
                .split_last_chunk::<CHECK_LEN>()
                .is_some_and(|(payload, check)| sha256(payload).starts_with(check))
        };
        match data_encoding::BASE32_NOPAD
            .decode(body.as_bytes())
            .ok()
            .map(Zeroizing::new)
            .filter(sound)
        {
            Some(bytes) => parse(&bytes[..bytes.len() - CHECK_LEN]),
            None if is_beginning(body.as_bytes()) => Err(CodeError::Incomplete),
            None => Err(CodeError::Damaged),
        }
    }
}

/// Whether a character can surround or split a code without being part of it: white space,
/// quotation marks, the `>` of a quoted mail, a shell's line continuation.
fn is_packaging(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '“' | '”' | '‘' | '’' | '>' | '|' | '\\')
}

/// Whether `body` (base32) is shorter than the lengths in it require.
fn is_beginning(body: &[u8]) -> bool {
    let whole_groups = body.len() - body.len() % 8;
    let Ok(bytes) = data_encoding::BASE32_NOPAD.decode(&body[..whole_groups]) else { return false };
    let bytes = Zeroizing::new(bytes);
    let mut wanted = FIXED_LEN;
    let count = bytes.get(wanted - 1).copied();
    for _ in 0..count.unwrap_or(0) {
        let Some(len) = bytes.get(wanted) else { return true };
        wanted += 1 + usize::from(*len);
    }
    count.is_none() || body.len() * 5 / 8 < wanted + CHECK_LEN
}

fn parse(mut rest: &[u8]) -> Result<Invitation, CodeError> {
    let [version] = take::<1>(&mut rest)?;
    let sign_in = match version {
        VERSION => false,
        VERSION_SIGN_IN => true,
        newer => return Err(CodeError::Version(newer)),
    };
    let ca = take::<32>(&mut rest)?;
    let expires = i64::from_be_bytes(take::<8>(&mut rest)?);
    let secret = Secret(take::<16>(&mut rest)?);
    let [count] = take::<1>(&mut rest)?;
    let mut addresses = Vec::new();
    for _ in 0..count {
        let [len] = take::<1>(&mut rest)?;
        let (address, after) = rest.split_at_checked(len.into()).ok_or(CodeError::Damaged)?;
        addresses.push(std::str::from_utf8(address).map_err(|_| CodeError::Damaged)?.to_owned());
        rest = after;
    }
    let sound = addresses.iter().all(|address| is_address(address));
    if addresses.is_empty() || addresses.len() > MAX_ADDRESSES || !sound || !rest.is_empty() {
        return Err(CodeError::Damaged);
    }
    Ok(Invitation { addresses, ca, expires, secret, sign_in })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], CodeError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(CodeError::Damaged)?;
    *rest = tail;
    Ok(*head)
}

/// Whether `address` fits into a code: `host:port`, at most 255 bytes.
pub fn is_address(address: &str) -> bool {
    address.len() <= MAX_ADDRESS_LEN
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            let host_is_fine = match bare {
                Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
                None => {
                    !host.is_empty()
                        && host
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
                }
            };
            host_is_fine && port.parse::<u16>().is_ok_and(|p| p != 0)
        })
}

/// Whether `address` is a loopback address.
pub fn is_loopback(address: &str) -> bool {
    address.starts_with("localhost:")
        || address.parse::<std::net::SocketAddr>().is_ok_and(|a| a.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Invitation {
        Invitation {
            addresses: vec![
                "192.168.1.7:11435".into(),
                "[fd00::1]:11435".into(),
                "gpu.lan:443".into(),
            ],
            ca: [0xa5; 32],
            expires: 1_800_000_000,
            secret: Secret::generate(),
            sign_in: false,
        }
    }

    #[test]
    fn a_code_says_what_the_invitation_said() {
        let invitation = sample();
        let code = invitation.code();
        assert_eq!(code.parse::<Invitation>(), Ok(invitation.clone()));
        assert_eq!(code.capacity(), code.len(), "it did not grow");
        let folded = format!("  {}\n{} ", &code[..30].to_ascii_uppercase(), &code[30..]);
        assert_eq!(folded.parse::<Invitation>(), Ok(invitation.clone()));
        let quoted = format!("> '{}\\\r\n> {}'", &code[..30], &code[30..]);
        assert_eq!(quoted.parse::<Invitation>(), Ok(invitation.clone()));
        let sign_in = Invitation { sign_in: true, ..invitation };
        assert_eq!(sign_in.code().parse::<Invitation>(), Ok(sign_in));
    }

    #[test]
    fn a_typing_error_anywhere_is_found_before_anything_is_sent() {
        let code = sample().code();
        for at in PREFIX.len()..code.len() {
            let mut bad: Vec<u8> = code.as_bytes().to_vec();
            bad[at] = if bad[at] == b'a' { b'b' } else { b'a' };
            let bad = String::from_utf8(bad).expect("ascii");
            assert!(bad.parse::<Invitation>().is_err(), "position {at}");
            assert_eq!(code[..at].parse::<Invitation>(), Err(CodeError::Incomplete), "cut at {at}");
        }
        assert_eq!("".parse::<Invitation>(), Err(CodeError::Empty));
        assert_eq!("hello".parse::<Invitation>(), Err(CodeError::NotACode));
        assert_eq!("adit-é".parse::<Invitation>(), Err(CodeError::NotACode));
    }

    #[test]
    fn the_secret_shows_in_no_debug_output() {
        let text = format!("{:?}", sample());
        assert!(!text.contains("ecret"), "{text}");
    }

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["gpu.lan:11435", "10.0.0.1:1", "[::1]:11435"] {
            assert!(is_address(good), "{good}");
        }
        for bad in
            ["gpu.lan", ":11435", "gpu.lan:0", "gpu.lan:99999", "::1:11435", "a b:1", "[x]:1"]
        {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
