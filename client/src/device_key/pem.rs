//! The device's private key, in memory and in its files.

use std::{fmt, path::Path};

use common::machine::files::FileError;
use serde::Serialize;
use zeroize::Zeroizing;

/// In bytes. A longer file is not an error.
const LARGEST_FILE: usize = 16 << 10;

/// The device's private key in PKCS #8 PEM. It is in memory once, and is wiped when its last owner
/// drops it. It can be shared but not copied.
///
/// ```compile_fail
/// fn copied<T: Clone>() {}
/// copied::<client::profile::SecretPem>();
/// ```
#[derive(PartialEq, Eq)]
pub struct SecretPem(Zeroizing<String>);

impl SecretPem {
    /// Takes a new key.
    pub fn new(pem: String) -> Self {
        Self(Zeroizing::new(pem))
    }

    /// The key as PEM.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How serde reads and writes the key.
pub(crate) mod stored_key {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::SecretPem;

    pub(crate) fn serialize<S: Serializer>(
        key: &Option<Arc<SecretPem>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        key.as_ref().map(|key| key.as_str()).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Arc<SecretPem>>, D::Error> {
        let pem = Option::<String>::deserialize(from)?;
        Ok(pem.map(|pem| Arc::new(SecretPem::new(pem))))
    }
}

/// The bytes of a file with a key in it, wiped when they are dropped.
pub(crate) fn to_bytes(
    path: &Path,
    stored: &impl Serialize,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // Allocated with its final size: a buffer that grows leaves copies in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST_FILE));
    serde_json::to_writer_pretty(&mut *bytes, stored).map_err(|e| FileError::damaged(path, e))?;
    Ok(bytes)
}

impl fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretPem(…)")
    }
}

/// Takes the key out of a file's text before the text is parsed, because a parser of JSON leaves
/// copies of strings with escapes in memory. `None`, and the text is unchanged, if the key is not
/// in the form that [`to_bytes`] writes.
pub(crate) fn take_key(text: &mut [u8]) -> Option<SecretPem> {
    const NAME: &[u8] = b"\"private_key\"";
    let at = text.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let is_between = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b':');
    let start = at + text[at..].iter().position(|byte| !is_between(byte))?;
    if text[start] != b'"' {
        return None;
    }
    let len = text[start + 1..].iter().position(|byte| *byte == b'"')?;
    let value = &mut text[start + 1..][..len];
    let mut pem = Zeroizing::new(String::with_capacity(len));
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if bytes.next() == Some(&b'n') => pem.push('\n'),
            b' '..=b'~' if *byte != b'\\' => pem.push(char::from(*byte)),
            _ => return None,
        }
    }
    value.fill(b' ');
    Some(SecretPem(pem))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct File {
        name: String,
        #[serde(with = "stored_key")]
        private_key: Option<Arc<SecretPem>>,
    }

    #[test]
    fn a_key_is_taken_out_of_the_file_as_it_was_written() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGH+/==\n-----END PRIVATE KEY-----\n";
        let file = File {
            name: "a \"private_key\": \"x\"".to_owned(),
            private_key: Some(Arc::new(SecretPem::new(pem.to_owned()))),
        };
        let mut pretty = to_bytes(Path::new("file"), &file).expect("written");
        let mut short = serde_json::to_vec(&file).expect("written");
        for bytes in [&mut *pretty, &mut short] {
            assert_eq!(take_key(bytes).expect("a key").as_str(), pem);
            let rest: File = serde_json::from_slice(bytes).expect("still JSON");
            let left = rest.private_key.expect("a text");
            assert_eq!((rest.name, left.as_str().trim()), (file.name.clone(), ""));
        }
    }

    #[test]
    fn what_stands_there_otherwise_is_left_to_others() {
        for text in [
            "",
            "{}",
            r#""private_key""#,
            r#"{"private_key": 7}"#,
            r#"{"private_key": "a"#,
            r#"{"private_key": "a\u0041"}"#,
            "{\"private_key\": \"\u{e4}\"}",
        ] {
            let mut bytes = text.as_bytes().to_vec();
            assert!(take_key(&mut bytes).is_none(), "{text}");
            assert_eq!(bytes, text.as_bytes());
        }
    }
}
