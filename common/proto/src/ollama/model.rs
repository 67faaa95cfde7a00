//! Finds which models a request names, as Ollama will read it. Ollama has two readers of JSON, and
//! only one of them distinguishes upper and lower case. So a body with a repeated key, or with a
//! key in another case, is ambiguous and is refused.

use std::{borrow::Cow, cell::Cell, fmt, str::FromStr};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor},
};

use crate::glob;

/// Why no model can be read from a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Ollama would not read it either.
    #[error("the body is not one JSON object that names its model as a string")]
    Malformed,
    /// Two readers could find two different models in it.
    #[error("the body's model name is ambiguous: its key is there twice, or in another case")]
    Ambiguous,
}

/// The models that a whole JSON body names: for each list of keys, the first value that is not
/// empty (`cmp.Or` in Ollama's code).
///
/// This is the reference reader. The programs use [`super::named_models`], which reads a body while
/// it comes, with a parser of its own; tests and the fuzzer check that both agree. This one uses
/// `serde_json`, so that both do not share a mistake.
///
/// # Errors
/// If Ollama would refuse the body too, or could read other models in it.
pub fn named(body: &[u8], lists: &[&[&str]]) -> Result<Vec<String>, Unreadable> {
    let keys: Vec<&str> = lists.concat();
    let mut json = serde_json::Deserializer::from_slice(body);
    let ambiguous = Cell::new(false);
    let fields = Fields { keys: &keys, ambiguous: &ambiguous };
    let values = fields.deserialize(&mut json).map_err(|_| match ambiguous.get() {
        true => Unreadable::Ambiguous,
        false => Unreadable::Malformed,
    })?;
    // Ollama reads the first JSON value and ignores the rest.
    json.end().map_err(|_| Unreadable::Malformed)?;
    let value =
        |key: &&str| keys.iter().position(|k| k == key).map_or("", |at| values[at].as_str());
    Ok(lists
        .iter()
        .filter_map(|list| list.iter().map(value).find(|value| !value.is_empty()))
        .map(str::to_owned)
        .collect())
}

/// The string values of these keys in an object.
struct Fields<'a> {
    keys: &'a [&'a str],
    /// Set when a key is repeated or is in another case.
    ambiguous: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<String>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Vec<String>, M::Error> {
        let (mut values, mut seen) =
            (vec![String::new(); self.keys.len()], vec![false; self.keys.len()]);
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match self.keys.iter().position(|wanted| is_same_key(wanted, &key.0)) {
                // Go's structs ignore case and take the last of repeated keys, but Ollama reads
                // requests for its cloud into a map, where case matters. The two could read
                // different models.
                Some(at) if std::mem::replace(&mut seen[at], true) || key.0 != self.keys[at] => {
                    self.ambiguous.set(true);
                    return Err(M::Error::custom("could be read in two ways"));
                }
                // For Go, null leaves a string as it is.
                Some(at) => match map.next_value::<Option<String>>()? {
                    Some(value) if value.len() > MOST_NAME => {
                        return Err(M::Error::custom("too long"));
                    }
                    Some(value) => values[at] = value,
                    None => {}
                },
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(values)
    }
}

/// A string that is borrowed if possible.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Compares as Go does, with Unicode's case folding: two characters outside ASCII fold to ASCII
/// letters.
pub(super) fn is_same_key(wanted: &str, key: &str) -> bool {
    let folded = key.chars().map(|c| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    folded.eq(wanted.chars())
}

/// Longer than any name that Ollama takes.
const MOST_NAME: usize = 512;

/// A pattern of models that may be used, written like Ollama's names. `*` matches any characters
/// except `/`; `*` alone matches every model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelPattern {
    text: String,
    full: String,
}

impl ModelPattern {
    /// Whether the pattern matches the model that a request names. It does not match a name that
    /// Ollama could read differently.
    pub fn means(&self, model: &str) -> bool {
        self.text == "*"
            || full_name(model, false)
                .is_some_and(|name| glob::matches(&self.full, &name, Some(b'/')))
    }
}

impl FromStr for ModelPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let full = full_name(text, true).ok_or_else(|| {
            format!("`{text}` names no model: write it like `llama3.2:1b` or `llama3*`")
        })?;
        Ok(Self { text: text.to_owned(), full })
    }
}

impl TryFrom<String> for ModelPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ModelPattern> for String {
    fn from(pattern: ModelPattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for ModelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// The full name `HOST/NAMESPACE/MODEL:TAG`, with Ollama's defaults for missing parts. It is in
/// lower case, because Ollama ignores case.
fn full_name(text: &str, pattern: bool) -> Option<String> {
    let known =
        |b: u8| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b) || (pattern && b == b'*');
    if text.is_empty() || text.len() > MOST_NAME || !text.bytes().all(known) {
        return None;
    }
    let (path, model) =
        text.rsplit_once('/').map_or((None, text), |(path, model)| (Some(path), model));
    let tagged = match model.split_once(':') {
        Some((name, tag)) if !name.is_empty() && !tag.is_empty() && !tag.contains(':') => {
            model.to_owned()
        }
        Some(_) => return None,
        // The star of a pattern matches tags too.
        None if model.ends_with('*') => model.to_owned(),
        None if model.is_empty() => return None,
        None => format!("{model}:latest"),
    };
    let (host, namespace) = match path {
        None => ("registry.ollama.ai", "library"),
        Some(path) => path.rsplit_once('/').unwrap_or(("registry.ollama.ai", path)),
    };
    let whole = |part: &str| !part.is_empty() && !part.contains('/');
    (whole(host) && whole(namespace) && !namespace.contains(':'))
        .then(|| format!("{host}/{namespace}/{tagged}").to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(body: &str) -> Result<String, Unreadable> {
        named(body.as_bytes(), &[&["model", "name"]])
            .map(|names| names.first().cloned().unwrap_or_default())
    }

    #[test]
    fn a_model_is_read_as_go_reads_it() {
        for (body, model) in [
            (r#"{"model":"a"}"#, "a"),
            (r#"{"mod\u0065l":"a"}"#, "a"),
            (r#"{"model":"","name":"n"}"#, "n"),
            (r#"{"name":"n","model":"m"}"#, "m"),
            (r#"{"name":"n"}"#, "n"),
            (r#"{"options":{"model":"inner"},"model":"a","messages":[{"model":"x"}]}"#, "a"),
            (r#"{}"#, ""),
            (" {\"model\" : \"a\" } \n", "a"),
            (r#"{"prompt":"\ud800 \u0000","model":"a"}"#, "a"),
        ] {
            assert_eq!(one(body).as_deref(), Ok(model), "{body}");
        }
        assert!(is_same_key("key", "\u{212a}EY"));
    }

    #[test]
    fn what_go_would_not_read_or_could_read_otherwise_is_refused() {
        for body in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","MODEL":"b"}"#,
            r#"{"Model":"b","model":"a"}"#,
            r#"{"MODEL":"a"}"#,
            r#"{"model":"a","model":null}"#,
            "{\"model\":\"a\",\"mode\u{17f}\":\"b\",\"\u{17f}\":1,\"MODEL\":\"x\"}",
        ] {
            assert_eq!(one(body), Err(Unreadable::Ambiguous), "{body}");
        }
        for body in [
            "",
            "null",
            "[]",
            "\"model\"",
            "{",
            "{\"model\":1}",
            "{\"model\":[\"a\"]}",
            "{\"model\":{}}",
            "{\"model\":\"a\"}{\"model\":\"b\"}",
            "{\"model\":\"a\"} x",
            "{\"model\":\"a\",}",
            "{'model':'a'}",
            "\u{feff}{\"model\":\"a\"}",
            "{\"model\":\"\\ud800\"}",
            "{\"model\":\"a\nb\"}",
        ] {
            assert_eq!(one(body), Err(Unreadable::Malformed), "{body}");
        }
        assert_eq!(named(b"{\"model\":\"a\xff\"}", &[&["model"]]), Err(Unreadable::Malformed));
        assert_eq!(named(b"{\"mo\xffdel\":\"a\"}", &[&["model"]]), Err(Unreadable::Malformed));
        assert_eq!(
            one(&format!("{{\"model\":\"{}\"}}", "x".repeat(MOST_NAME + 1))),
            Err(Unreadable::Malformed)
        );
        assert_eq!(
            named(
                format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes(),
                &[&["model"]]
            ),
            Err(Unreadable::Malformed)
        );
    }

    #[test]
    fn one_model_has_many_names_and_all_are_the_same() {
        let means =
            |pattern: &str, model| pattern.parse::<ModelPattern>().expect(pattern).means(model);
        for model in [
            "llama3",
            "llama3:latest",
            "LLAMA3",
            "library/llama3",
            "registry.ollama.ai/library/llama3:latest",
        ] {
            for pattern in [
                "llama3",
                "llama3:latest",
                "library/llama3",
                "registry.ollama.ai/library/llama3:latest",
                "*",
                "llama3*",
                "llama3:*",
            ] {
                assert!(means(pattern, model), "{pattern} {model}");
            }
            for pattern in
                ["llama3:8b", "llama", "me/llama3", "hf.co/library/llama3", "*/llama3:8b"]
            {
                assert!(!means(pattern, model), "{pattern} {model}");
            }
        }
        assert!(
            means("llama3*", "llama3.2:1b")
                && means("*:1b", "llama3.2:1b")
                && !means("*:1b", "llama3.2")
        );
        assert!(!means("llama3*", "evil.example/library/llama3") && !means("llama3*", "me/llama3"));
        assert!(
            means("hf.co/bartowski/*", "hf.co/Bartowski/Llama-GGUF:Q4")
                && !means("hf.co/*", "hf.co/a/b")
        );
        for odd in [
            "",
            "llama3@sha256:00",
            "http://evil/library/llama3",
            "a/b/c/d",
            "llama3:",
            ":latest",
            "llama3 ",
            "llama3:a:b",
            "../llama3",
            "/x",
        ] {
            assert!(!means("llama3*", odd), "{odd}");
        }
        assert!(
            "".parse::<ModelPattern>().is_err()
                && "a b".parse::<ModelPattern>().is_err()
                && "a//b".parse::<ModelPattern>().is_err()
        );
    }
}
