//! Checks of the readers of Ollama's requests and answers.

use std::net::IpAddr;

use super::however_cut;
use crate::ollama::{
    host::{self, Own},
    json_scan::JsonScan,
    model::{self, ModelPattern, Unreadable},
    named_models::NamedModels,
    route::{Api, Models, Pattern, Target, route},
    usage::AnswerUsage,
};

const LISTS: [&[&[&str]]; 4] = [
    &[&["model"]],
    &[&["model", "name"]],
    &[&["model", "name"], &["from"]],
    &[&["source"], &["destination"]],
];

/// The models read from a body in parts are those that serde's reader finds in the whole body.
pub fn named_models(bytes: &[u8]) {
    for lists in LISTS {
        let read = however_cut(bytes, |parts| {
            let mut named = NamedModels::new(lists);
            let mut settled = None;
            for part in parts {
                named.push(part);
                if named.fault().is_none() && settled.is_some() {
                    assert_eq!(named.settled(), settled, "what was settled has changed");
                }
                settled = named.settled();
            }
            let read = named.finish();
            if let (Some(settled), Ok(models)) = (settled, &read) {
                assert_eq!(&settled, models);
            }
            read
        });
        if is_deep(bytes) && read.is_err() {
            continue;
        }
        let whole = model::named(bytes, lists);
        // The end of a key that is too long to be one of these is not checked.
        if bytes.len() > 6 * 512 && whole == Err(Unreadable::Malformed) && read != whole {
            continue;
        }
        assert_eq!(whole, read, "{}", String::from_utf8_lossy(bytes));
    }
}

/// Whether objects and arrays may be nested too deep. Serde's reader skips what it does not need,
/// however deep that is.
fn is_deep(bytes: &[u8]) -> bool {
    bytes.iter().filter(|byte| b"[{".contains(byte)).count() > 127
}

/// What the scans find in a body and in an answer does not depend on how they are split.
pub fn usage(bytes: &[u8]) {
    however_cut(bytes, |parts| {
        let mut usage = AnswerUsage::default();
        parts.iter().for_each(|part| usage.push(part));
        (usage.tokens(), usage.pieces(), usage.says_done())
    });
    let model = however_cut(bytes, |parts| {
        let mut scan = JsonScan::default();
        parts.iter().for_each(|part| scan.push(part));
        assert!(scan.prompt_tokens() <= bytes.len() as u64 / 4 + 1);
        (scan.model(), scan.stream(), scan.prompt_tokens(), scan.is_whole())
    });
    // The record names the model that was judged.
    if let Ok(named) = model::named(bytes, &[&["model", "name"]]) {
        assert!(model.3);
        assert_eq!(model.0.as_deref(), named.first().map(String::as_str));
    }
}

/// Hosts, routes and models, one in each line: an accepted pattern matches its own text.
pub fn patterns(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for line in text.split('\n') {
        host(line);
        target(line);
        pattern(line);
        model_pattern(line);
    }
}

struct NoNames;

impl Own for NoNames {
    fn is_name(&self, _: &str) -> bool {
        false
    }

    fn is_address(&self, _: IpAddr) -> bool {
        false
    }
}

fn host(text: &str) {
    let is_allowed = host::allows(text, &NoNames);
    assert_eq!(host::allows(&text.to_ascii_uppercase(), &NoNames), is_allowed, "{text}");
    if is_allowed {
        let text = text.to_ascii_lowercase();
        let name = text.rsplit_once(':').map_or(&text[..], |(name, _)| name);
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let is_near = |name: &str| {
            ["", "localhost"].contains(&name)
                || [".localhost", ".local", ".internal"].iter().any(|end| name.ends_with(end))
                || name.parse::<IpAddr>().is_ok()
        };
        assert!(is_near(&text) || is_near(name), "{text}");
    }
}

fn target(text: &str) {
    let target = Target::new(text);
    let _ = target.last_segment();
    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
        for api in [Api::Ollama, Api::OpenAi] {
            let models = route(api, method, target).models;
            assert!(target.canonical || models == Models::Unread || models == Models::None);
        }
    }
    if target.canonical {
        assert!(target.path.starts_with('/') && !target.path.contains("//"), "{text}");
        assert!(!format!("{}/", target.path).contains("/../"), "{text}");
        assert!(!format!("{}/", target.path).contains("/./"), "{text}");
        let path = target.path.to_ascii_lowercase();
        assert!(!path.contains('\\') && !path.contains("%2f") && !path.contains("%5c"), "{text}");
    }
}

fn pattern(text: &str) {
    let Ok(pattern) = text.parse::<Pattern>() else { return };
    let (method, path) = text.split_once(' ').unwrap_or(("PATCH", text));
    let path = path.replace('*', "x");
    assert!(pattern.means(method, None, Target::new(&path)), "{text}");
    assert!(pattern.means("OPTIONS", Some(method), Target::new(&path)), "{text}");
    assert!(!pattern.means(method, None, Target::new(&format!("/.{path}"))), "{text}");
}

fn model_pattern(text: &str) {
    let Ok(pattern) = text.parse::<ModelPattern>() else { return };
    assert_eq!(String::from(pattern.clone()), text);
    assert!(text.contains('*') || pattern.means(text), "{text}");
    assert!(pattern.means(&text.replace('*', "x")), "{text}");
    assert!(pattern.means(&text.replace('*', "X").to_ascii_uppercase()), "{text}");
    assert!(text == "*" || !pattern.means(&format!("{text} ")), "{text}");
}
