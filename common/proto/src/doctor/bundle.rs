//! The file for a bug report. Secrets are removed from it.

use serde::Serialize;
use serde_json::{Map, Value};

/// Written in place of a secret.
const REMOVED: &str = "(removed)";
/// Base64 of this length may be a secret: the shortest secret that Adit has is a key of 32 bytes.
const SHORTEST_SECRET: usize = 40;

/// The file for a bug report: named parts, each with a sentence about it.
#[derive(Debug, Default)]
pub struct Bundle {
    parts: Vec<(&'static str, String, Value)>,
}

impl Bundle {
    /// Adds a part, without what looks like a secret.
    pub fn add(&mut self, name: &'static str, about: impl Into<String>, part: &impl Serialize) {
        let part = serde_json::to_value(part).unwrap_or_default();
        self.parts.push((name, about.into(), cleaned(part)));
    }

    /// The contents of the file.
    pub fn to_json(&self) -> String {
        let mut all = Map::new();
        all.insert("schema".to_owned(), super::SCHEMA.into());
        let about =
            |(name, about, _): &(_, String, _)| (String::from(*name), Value::from(about.clone()));
        all.insert(
            "contents".to_owned(),
            self.parts.iter().map(about).collect::<Map<_, _>>().into(),
        );
        all.extend(self.parts.iter().map(|(name, _, part)| (String::from(*name), part.clone())));
        serde_json::to_string_pretty(&Value::Object(all)).unwrap_or_default() + "\n"
    }

    /// The list of its contents, for people.
    pub fn list(&self) -> Vec<String> {
        let row = |(name, about, part): &(&str, String, Value)| {
            format!("{name:<12} {about} ({})", crate::human::size(part.to_string().len() as u64))
        };
        self.parts.iter().map(row).collect()
    }
}

/// The same without secrets.
fn cleaned(value: Value) -> Value {
    match value {
        Value::String(text) => without_secrets(&text).into(),
        Value::Array(all) => all.into_iter().map(cleaned).collect::<Vec<_>>().into(),
        Value::Object(all) => {
            let clean = |(key, value): (String, Value)| {
                let value = if names_a_secret(&key) { REMOVED.into() } else { cleaned(value) };
                (key, value)
            };
            all.into_iter().map(clean).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}

/// Whether a value with this name is a secret, whatever the value looks like.
fn names_a_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["private_key", "door_key", "knock_key", "password", "passphrase", "secret", "api_key", "csr"]
        .iter()
        .any(|name| key.contains(name))
}

/// A text without what looks like a secret: keys in PEM, codes, long base64, passwords in URLs, and
/// tokens.
pub fn without_secrets(text: &str) -> String {
    let text = match (text.find("-----BEGIN"), text.rfind("-----END")) {
        (Some(from), Some(to)) if from < to => {
            let end = text[to..].find('\n').map_or(text.len(), |at| to + at);
            format!("{}{REMOVED}{}", &text[..from], &text[end..])
        }
        (Some(from), _) => format!("{}{REMOVED}", &text[..from]),
        _ => text.to_owned(),
    };
    let is_apart = |c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | ';' | '(' | ')' | '<' | '>')
    };
    let mut clean = String::with_capacity(text.len());
    for piece in text.split_inclusive(is_apart) {
        let end = piece.chars().next_back().filter(|c| is_apart(*c)).map_or(0, char::len_utf8);
        let (word, apart) = piece.split_at(piece.len() - end);
        clean += &clean_word(word);
        clean += apart;
    }
    clean
}

fn clean_word(word: &str) -> String {
    // In NAME=VALUE, the name is kept.
    if let Some((name, value)) = word.split_once('=')
        && !value.trim_matches('=').is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        && !name.is_empty()
    {
        let value = if names_a_secret(name) { REMOVED.to_owned() } else { clean_word(value) };
        return format!("{name}={value}");
    }
    let in_alphabet =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '-' | '_');
    let is_path = word.starts_with('/') || word.matches('/').count() > 2;
    let is_token = ["sk-", "ghp_", "hf_"].iter().any(|prefix| word.starts_with(prefix));
    let is_long = word.len() >= SHORTEST_SECRET && word.chars().all(in_alphabet) && !is_path;
    let is_hex = word.chars().all(|c| c.is_ascii_hexdigit()) && word.len() < 64;
    if is_token || (is_long && !is_hex) {
        return REMOVED.to_owned();
    }
    without_password(word)
}

/// A URL without the user and password in it.
pub fn without_password(url: &str) -> String {
    let (scheme, rest) = match url.find("://") {
        Some(at) => url.split_at(at + 3),
        None => return url.to_owned(),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((user, host)) = authority.rsplit_once('@') else { return url.to_owned() };
    // A user name without a password is not a secret: ssh://me@gpu.
    let user = if user.contains(':') { String::new() } else { format!("{user}@") };
    format!("{scheme}{user}{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invitation::{Invitation, Secret};

    #[test]
    fn secrets_are_taken_out_and_what_is_needed_stays() {
        let code = Invitation {
            sign_in: false,
            addresses: vec!["gpu.lan:11435".to_owned()],
            ca: [7; 32],
            expires: 1_800_000_000,
            secret: Secret::generate(),
        }
        .code()
        .to_string();
        for (text, clean) in [
            (format!("the code `{code}`"), "the code `(removed)`"),
            (
                "a\n-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\nb".to_owned(),
                "a\n(removed)\nb",
            ),
            ("-----BEGIN X".to_owned(), "(removed)"),
            (
                "key Dm9QDm9QDm9QDm9QDm9QDm9QDm9QDm9QDm9QDm9QDm8= end".to_owned(),
                "key (removed) end",
            ),
            (
                "HTTP_PROXY=http://me:hunter2@proxy:3128/".to_owned(),
                "HTTP_PROXY=http://proxy:3128/",
            ),
            ("OPENAI_API_KEY=x".to_owned(), "OPENAI_API_KEY=(removed)"),
            ("sk-ant-1".to_owned(), "(removed)"),
            ("ssh://me@gpu.lan:22".to_owned(), "ssh://me@gpu.lan:22"),
            (
                "`/home/me/.local/share/adit/servers/default/identity.json` is damaged".to_owned(),
                "`/home/me/.local/share/adit/servers/default/identity.json` is damaged",
            ),
            ("laptop 0e6f-5090, 18 ms".to_owned(), "laptop 0e6f-5090, 18 ms"),
        ] {
            assert_eq!(without_secrets(&text), clean);
        }
    }

    #[test]
    fn a_bundle_says_what_it_holds_and_holds_no_key() {
        let mut bundle = Bundle::default();
        let part =
            serde_json::json!({"private_key": "short", "deep": [{"url": "http://a:b@c"}], "n": 7});
        bundle.add("status", "what the running adit says", &part);
        let json: Value = serde_json::from_str(&bundle.to_json()).expect("JSON");
        assert_eq!(
            json["status"],
            serde_json::json!({"private_key": REMOVED, "deep": [{"url": "http://c"}], "n": 7})
        );
        assert_eq!(json["contents"]["status"], "what the running adit says");
        assert!(
            bundle.list()[0].starts_with("status       what the running adit says ("),
            "{:?}",
            bundle.list()
        );
    }
}
