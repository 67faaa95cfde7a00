//! Private keys in PEM files, and the CA's key in memory: once, in the form of the crypto library,
//! which wipes it when it is dropped. Every buffer in between is wiped, too.

use std::path::Path;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use common::machine::files::{self, FileError};
use data_encoding::BASE64;
use proto::crypto::{BEGIN, END, private_key_from_pem};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::Zeroizing;

/// Characters per line (RFC 7468 section 2).
const LINE: usize = 64;

/// An ECDSA P-256 key that can sign and can't be read or copied.
pub(super) struct CaKey(EcdsaKeyPair);

impl CaKey {
    /// Reads the key at `path`, or creates it.
    pub(super) fn read_or_create(path: &Path) -> Result<Self, FileError> {
        Self::from_der(path, &read_or_create(path)?)
    }

    /// Reads the key at `path`.
    pub(super) fn read(path: &Path) -> Result<Self, FileError> {
        Self::from_der(path, &read(path)?)
    }

    fn from_der(path: &Path, der: &[u8]) -> Result<Self, FileError> {
        parsed(der).map(Self).ok_or_else(|| not_a_key(path))
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| rcgen::Error::RingUnspecified)?.as_ref().to_vec())
    }
}

/// Reads the PKCS #8 DER (RFC 5958) of the ECDSA P-256 key at `path`, or creates it.
///
/// # Errors
/// Also when the file has no such key.
pub(super) fn read_or_create(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // If no key can be generated, an empty file is written, and reading it back fails.
    from_file(path, &files::read_or_create(path, || generate().unwrap_or_default())?)
}

/// Reads the PKCS #8 DER of the ECDSA P-256 key at `path`.
///
/// # Errors
/// Also when there is no such file.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    from_file(path, &files::read(path)?)
}

fn from_file(path: &Path, pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let der = from_pem(pem).ok_or_else(|| not_a_key(path))?;
    parsed(&der).map(|_| der).ok_or_else(|| not_a_key(path))
}

fn parsed(der: &[u8]) -> Option<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).ok()
}

fn not_a_key(path: &Path) -> FileError {
    FileError::damaged(path, "it is not an ECDSA P-256 private key in PEM")
}

fn generate() -> Option<Zeroizing<Vec<u8>>> {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).ok()?;
    let der = der.as_ref();
    let text = Zeroizing::new(BASE64.encode(der));
    // Allocated in its final size: a buffer that grows leaves copies behind.
    let mut pem = Zeroizing::new(Vec::with_capacity(BEGIN.len() + END.len() + 2 * text.len()));
    for line in std::iter::once(BEGIN.as_bytes())
        .chain(text.as_bytes().chunks(LINE))
        .chain(std::iter::once(END.as_bytes()))
    {
        pem.extend_from_slice(line);
        pem.push(b'\n');
    }
    Some(pem)
}

fn from_pem(pem: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    private_key_from_pem(std::str::from_utf8(pem).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_can_be_read_here_and_by_other_programs() {
        let pem = generate().expect("a key");
        let der = from_pem(&pem).expect("PEM");
        assert!(parsed(&der).is_some());
        let text = std::str::from_utf8(&pem).expect("text");
        let other = rcgen::KeyPair::from_pem(text).expect("another reader");
        assert_eq!(other.serialized_der(), &**der);
        let theirs = other.serialize_pem();
        assert_eq!(*from_pem(theirs.as_bytes()).expect("PEM"), *der);
        assert_eq!(*from_pem(theirs.replace('\n', "\r\n").as_bytes()).expect("PEM"), *der);
    }
}
