//! The value of `adit enroll --key`: `file`, `tpm`, or a PKCS#11 URI (RFC 7512).

use std::{borrow::Cow, fmt, str::FromStr};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize, de};

/// The device of the kernel's resource manager for the TPM.
const TPM: &str = "/dev/tpmrm0";
const PKCS11: &str = "pkcs11:";
/// What is written with `%` in an attribute (RFC 7512 section 2.3 allows more than is left here).
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b';')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Where a device's key is made and kept. It contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyUri {
    /// In a file of the state directory.
    File,
    /// In the TPM behind this character device or Unix socket.
    Tpm(String),
    /// In a PKCS#11 token.
    Token(TokenUri),
}

/// A key in a PKCS#11 token (RFC 7512). Every attribute that is set must be that of the token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenUri {
    /// The token's label.
    pub token: Option<String>,
    pub manufacturer: Option<String>,
    pub serial: Option<String>,
    pub model: Option<String>,
    pub slot_id: Option<u64>,
    /// The label of the key.
    pub object: Option<String>,
    /// The id of the key.
    pub id: Option<Vec<u8>>,
    /// The library that speaks to the token, an absolute path.
    pub module_path: Option<String>,
    /// The file with the PIN, an absolute path.
    pub pin_source: Option<String>,
}

/// What is wrong with the value of `--key`. It never shows the value, which may contain a PIN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("it is neither `file`, nor `tpm`, nor begins with `pkcs11:`")]
    Scheme,
    #[error("behind `tpm:` stands no absolute path")]
    TpmPath,
    #[error(
        "a PIN does not belong in it: other users can see it; write the PIN into a file, and add `pin-source=file:/PATH`"
    )]
    Pin,
    #[error("`{0}` is not an attribute of a PKCS#11 URI that adit knows")]
    Unknown(String),
    #[error(
        "`{0}` stands in it before the `?`, and belongs behind it: `pkcs11:token=LABEL?{0}={value}`",
        value = if *.0 == "module-path" { "/PATH" } else { "file:/PATH" }
    )]
    NotBehind(&'static str),
    #[error("`{0}` stands in it twice")]
    Twice(&'static str),
    #[error("the value of `{0}` is not valid")]
    Value(&'static str),
    #[error("the value of `{0}` is not the absolute path of a file")]
    Path(&'static str),
    #[error("`type` is not `private`")]
    Type,
}

impl TokenUri {
    /// The token for people: its label, or what else is known of it.
    pub fn token_name(&self) -> String {
        let named = [
            ("", &self.token),
            ("serial ", &self.serial),
            ("model ", &self.model),
            ("manufacturer ", &self.manufacturer),
        ];
        let known = named.into_iter().find_map(|(what, value)| Some((what, value.as_ref()?)));
        match (known, self.slot_id) {
            (Some((what, value)), _) => format!("{what}`{value}`"),
            (None, Some(slot)) => format!("in slot {slot}"),
            (None, None) => "that is plugged in".to_owned(),
        }
    }

    /// The key for people.
    pub fn key_name(&self) -> String {
        match (&self.object, &self.id) {
            (Some(label), _) => format!("`{label}`"),
            (None, Some(id)) => {
                format!("with the id {}", id.iter().map(|b| format!("{b:02x}")).collect::<String>())
            }
            (None, None) => "without a label".to_owned(),
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        let once = |field: &mut Option<String>, name: &'static str| match field {
            Some(_) => Err(UriError::Twice(name)),
            None => {
                *field = Some(text(name, value)?.into_owned());
                Ok(())
            }
        };
        match name {
            "token" => once(&mut self.token, "token"),
            "manufacturer" => once(&mut self.manufacturer, "manufacturer"),
            "serial" => once(&mut self.serial, "serial"),
            "model" => once(&mut self.model, "model"),
            "object" => once(&mut self.object, "object"),
            "slot-id" if self.slot_id.is_some() => Err(UriError::Twice("slot-id")),
            "slot-id" => {
                self.slot_id = Some(value.parse().map_err(|_| UriError::Value("slot-id"))?);
                Ok(())
            }
            "id" if self.id.is_some() => Err(UriError::Twice("id")),
            "id" => {
                let id: Vec<u8> = decoded("id", value)?.into_owned();
                self.id = Some(Some(id).filter(|id| !id.is_empty()).ok_or(UriError::Value("id"))?);
                Ok(())
            }
            "type" if value == "private" => Ok(()),
            "type" => Err(UriError::Type),
            "pin-value" => Err(UriError::Pin),
            "pin-source" => Err(UriError::NotBehind("pin-source")),
            "module-path" => Err(UriError::NotBehind("module-path")),
            other => Err(UriError::Unknown(shown(other))),
        }
    }

    fn set_query(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        let once = |field: &mut Option<String>, name: &'static str, path: String| match field {
            Some(_) => Err(UriError::Twice(name)),
            None if path.starts_with('/') && !path.ends_with('/') => {
                *field = Some(path);
                Ok(())
            }
            None => Err(UriError::Path(name)),
        };
        match name {
            "module-path" => {
                once(&mut self.module_path, "module-path", text("module-path", value)?.into_owned())
            }
            "pin-source" => {
                let source = text("pin-source", value)?;
                let path = source.strip_prefix("file:").unwrap_or(&source);
                let path = path.strip_prefix("//").unwrap_or(path);
                once(&mut self.pin_source, "pin-source", path.to_owned())
            }
            "pin-value" => Err(UriError::Pin),
            other => Err(UriError::Unknown(shown(other))),
        }
    }
}

/// A name of an attribute that may be shown: only if it looks like one.
fn shown(name: &str) -> String {
    let is_name = name.len() <= 32 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    if is_name { name.to_owned() } else { "…".to_owned() }
}

fn decoded<'a>(name: &'static str, value: &'a str) -> Result<Cow<'a, [u8]>, UriError> {
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let is_hex = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_hexdigit());
        if byte == b'%' && !(is_hex(rest.next()) && is_hex(rest.next())) {
            return Err(UriError::Value(name));
        }
    }
    Ok(percent_decode_str(value).into())
}

fn text<'a>(name: &'static str, value: &'a str) -> Result<Cow<'a, str>, UriError> {
    decoded(name, value)?;
    let text = percent_decode_str(value).decode_utf8().map_err(|_| UriError::Value(name))?;
    match text.is_empty() || text.chars().any(char::is_control) {
        true => Err(UriError::Value(name)),
        false => Ok(text),
    }
}

impl FromStr for KeyUri {
    type Err = UriError;

    fn from_str(from: &str) -> Result<Self, UriError> {
        if from == "file" {
            return Ok(Self::File);
        }
        if from == "tpm" {
            return Ok(Self::Tpm(TPM.to_owned()));
        }
        if let Some(path) = from.strip_prefix("tpm:") {
            let is_path = path.starts_with('/') && !path.chars().any(char::is_control);
            return is_path.then(|| Self::Tpm(path.to_owned())).ok_or(UriError::TpmPath);
        }
        let rest = from.strip_prefix(PKCS11).ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = TokenUri::default();
        let pairs = |list: &str, by: char| {
            let parts = list.split(by).filter(|part| !part.is_empty());
            parts
                .map(|part| part.split_once('=').unwrap_or((part, "")))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<Vec<_>>()
        };
        for (name, value) in pairs(path, ';') {
            uri.set(&name, &value)?;
        }
        for (name, value) in pairs(query, '&') {
            uri.set_query(&name, &value)?;
        }
        Ok(Self::Token(uri))
    }
}

/// As it is read: with every attribute that is set.
impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |value: &String| utf8_percent_encode(value, ESCAPED).to_string();
        let id = self.id.as_ref().map(|id| id.iter().map(|b| format!("%{b:02x}")).collect());
        let path = [
            ("token", self.token.as_ref().map(escaped)),
            ("manufacturer", self.manufacturer.as_ref().map(escaped)),
            ("serial", self.serial.as_ref().map(escaped)),
            ("model", self.model.as_ref().map(escaped)),
            ("slot-id", self.slot_id.map(|slot| slot.to_string())),
            ("object", self.object.as_ref().map(escaped)),
            ("id", id),
        ];
        let pin = self.pin_source.as_ref().map(|path| format!("file:{}", escaped(path)));
        let query = [("module-path", self.module_path.as_ref().map(escaped)), ("pin-source", pin)];
        let joined = |list: &[(&str, Option<String>)], by: &str| {
            let set = list.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
            set.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(by)
        };
        let (path, query) = (joined(&path, ";"), joined(&query, "&"));
        let mark = if query.is_empty() { "" } else { "?" };
        write!(f, "{PKCS11}{path}{mark}{query}")
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Tpm(path) if path == TPM => f.write_str("tpm"),
            Self::Tpm(path) => write!(f, "tpm:{path}"),
            Self::Token(uri) => uri.fmt(f),
        }
    }
}

impl Serialize for KeyUri {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyUri {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> TokenUri {
        match text.parse() {
            Ok(KeyUri::Token(uri)) => uri,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_uri_is_written_as_it_is_read() {
        for text in [
            "file",
            "tpm",
            "tpm:/dev/tpmrm1",
            "pkcs11:",
            "pkcs11:token=My%20token;object=adit",
            "pkcs11:serial=0123;slot-id=7;id=%01%ff",
            "pkcs11:token=a%3Bb%3fc;object=%C3%A4",
            "pkcs11:token=t;object=k?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/home/a%20b/pin",
        ] {
            let uri: KeyUri = text.parse().expect(text);
            let written = uri.to_string();
            assert_eq!(written.parse(), Ok(uri), "{written}");
        }
        let uri = token(
            "pkcs11:token=a%3Bb;object=%C3%A4;id=%01%ff;type=private?pin-source=file:///p&module-path=/m.so",
        );
        assert_eq!(uri.token.as_deref(), Some("a;b"));
        assert_eq!(uri.object.as_deref(), Some("ä"));
        assert_eq!(uri.id, Some(vec![1, 0xff]));
        assert_eq!(uri.pin_source.as_deref(), Some("/p"));
        assert_eq!(token("pkcs11:?pin-source=/p").pin_source.as_deref(), Some("/p"));
    }

    #[test]
    fn what_is_wrong_is_said_and_no_value_is_shown() {
        for (text, why) in [
            ("", UriError::Scheme),
            ("TPM", UriError::Scheme),
            ("tpm:", UriError::TpmPath),
            ("tpm:tpmrm0", UriError::TpmPath),
            ("pkcs11:pin-value=1234", UriError::Pin),
            ("pkcs11:?pin-value=1234", UriError::Pin),
            ("pkcs11:tokem=a", UriError::Unknown("tokem".to_owned())),
            ("pkcs11:12 34", UriError::Unknown("…".to_owned())),
            ("pkcs11:?module-name=softhsm2", UriError::Unknown("module-name".to_owned())),
            ("pkcs11:token=a;pin-source=file:/p", UriError::NotBehind("pin-source")),
            ("pkcs11:module-path=/m.so", UriError::NotBehind("module-path")),
            ("pkcs11:token=a;token=b", UriError::Twice("token")),
            ("pkcs11:id=%01;id=%01", UriError::Twice("id")),
            ("pkcs11:token=%zz", UriError::Value("token")),
            ("pkcs11:token=%4", UriError::Value("token")),
            ("pkcs11:token=%ff", UriError::Value("token")),
            ("pkcs11:token=%0a", UriError::Value("token")),
            ("pkcs11:token=", UriError::Value("token")),
            ("pkcs11:id=", UriError::Value("id")),
            ("pkcs11:slot-id=x", UriError::Value("slot-id")),
            ("pkcs11:type=cert", UriError::Type),
            ("pkcs11:?module-path=m.so", UriError::Path("module-path")),
            ("pkcs11:?pin-source=file:p", UriError::Path("pin-source")),
            ("pkcs11:?pin-source=|cmd", UriError::Path("pin-source")),
        ] {
            assert_eq!(text.parse::<KeyUri>(), Err(why.clone()), "{text}");
            assert!(!why.to_string().contains("1234") && !why.to_string().contains("12 34"));
        }
    }
}
