//! P-256 keys and signatures in the forms that hardware and TLS have for them. Without IO.

/// The length of a coordinate and of each half of a signature, in bytes.
const HALF: usize = 32;
/// SubjectPublicKeyInfo (RFC 5480) of a P-256 key, up to the point.
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The curve P-256 as an object identifier, in DER.
pub(super) const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// The two halves of a signature, `r` and `s`, each with 32 bytes.
pub(super) type Signature = [u8; 2 * HALF];

/// A public key: a point, uncompressed (SEC 1 section 2.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point([u8; 1 + 2 * HALF]);

impl Point {
    /// The uncompressed form. Whether the point is on the curve is not looked at: the server does.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let point = Self(bytes.try_into().ok()?);
        (point.0[0] == 4).then_some(point)
    }

    /// What tokens give: a DER OCTET STRING (PKCS #11 section 6.3.3), or, against the standard, the
    /// point itself.
    pub(super) fn from_attribute(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x04, 0x41, point @ ..] if bytes.len() == 67 => Self::from_bytes(point),
            bare => Self::from_bytes(bare),
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As SubjectPublicKeyInfo, in DER.
    pub(super) fn to_spki(self) -> Vec<u8> {
        [&SPKI_HEAD[..], &self.0].concat()
    }
}

/// A signature in DER (RFC 3279 section 2.2.3).
pub(super) fn to_der(signature: &Signature) -> Vec<u8> {
    let (r, s) = signature.split_at(HALF);
    let both = [integer(r), integer(s)].concat();
    // At most 70 bytes: the short form of a length suffices.
    [&[0x30, both.len() as u8], &both[..]].concat()
}

/// A positive INTEGER: without leading zeros, but with one where the first bit is set.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = &bytes[zeros.min(bytes.len() - 1)..];
    let sign: &[u8] = if digits[0] & 0x80 == 0 { &[] } else { &[0] };
    [&[0x02, (sign.len() + digits.len()) as u8], sign, digits].concat()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{
            ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
            UnparsedPublicKey,
        },
    };

    use super::*;

    #[test]
    fn an_integer_has_as_few_bytes_as_der_wants() {
        for (bytes, der) in [
            (&[0, 0][..], &[2, 1, 0][..]),
            (&[0, 1], &[2, 1, 1]),
            (&[0, 0x80], &[2, 2, 0, 0x80]),
            (&[0x7f, 0xff], &[2, 2, 0x7f, 0xff]),
            (&[0xff, 0xff], &[2, 3, 0, 0xff, 0xff]),
        ] {
            assert_eq!(integer(bytes), der);
        }
    }

    #[test]
    fn signatures_of_another_library_are_the_same_in_der() {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).expect("a key");
        let point = key.public_key().as_ref();
        // Enough that some halves begin with zeros or with a set bit.
        for i in 0..2000_u32 {
            let message = i.to_be_bytes();
            let fixed = key.sign(&random, &message).expect("signed");
            let der = to_der(fixed.as_ref().try_into().expect("64 bytes"));
            let verifier = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
            verifier.verify(&message, &der).expect("a signature");
        }
    }

    #[test]
    fn a_point_is_read_in_both_forms() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let bare = key.public_key_raw();
        let point = Point::from_attribute(bare).expect("a point");
        assert_eq!(Point::from_attribute(&[&[4, 0x41], bare].concat()), Some(point));
        assert_eq!(point.to_spki(), rcgen::PublicKeyData::subject_public_key_info(&key));
        for wrong in [&[][..], &bare[1..], &[4, 0x41], &[&[4, 0x40], bare].concat()] {
            assert_eq!(Point::from_attribute(wrong), None);
        }
    }
}
