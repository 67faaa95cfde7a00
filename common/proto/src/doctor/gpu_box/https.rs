//! The check of the HTTPS listener: its certificate, and keys that end soon.

use serde::{Deserialize, Serialize};

use super::BoxFound;
use crate::{
    clock::shown,
    doctor::{Judgement, bad, ok, warn},
    identity::Name,
};

/// So many seconds before its end, a certificate or a key is to be renewed.
const SOON: i64 = 7 * 86_400;

/// The HTTPS listener. Times are Unix seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HttpsFound {
    pub listening: Vec<String>,
    /// The file of its certificate; `None` for a certificate of the server's own CA.
    pub file: Option<String>,
    /// The last second of its certificate.
    pub until: Option<i64>,
    /// Why the newest files of the certificate are not in use.
    pub failing: Option<String>,
    /// The certificate authority that issues it, if there is one.
    #[serde(default)]
    pub acme: Option<AcmeFound>,
    pub now: i64,
    /// The end of each key that has one, and the keys' names.
    pub keys: Vec<(Name, i64)>,
}

/// What became of the orders at a certificate authority.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AcmeFound {
    /// The URL of the authority's directory.
    pub directory: String,
    /// Whether the certificate in use is from there.
    pub issued: bool,
    /// Why the last order has failed, if it has; what to do about it, and a command for that.
    pub failing: Option<(String, String, String)>,
    /// When the next order is made.
    pub next: Option<i64>,
}

fn acme(acme: &AcmeFound, until: Option<i64>, now: i64) -> Option<Judgement> {
    let Some((why, note, command)) = &acme.failing else {
        let text = format!("the first certificate is being ordered from {}", acme.directory);
        return (!acme.issued)
            .then(|| warn(text).cure_by("see what becomes of it", "aditd status"));
    };
    let in_use = match until {
        Some(until) if acme.issued => {
            format!("the certificate in use is valid until {}", shown(until))
        }
        _ => "the certificate in use is of aditd's own CA, which browsers and phones do not trust"
            .to_owned(),
    };
    let next = acme.next.map(|next| format!(", tried again at {}", shown(next)));
    let next = next.unwrap_or_default();
    let text = format!("{} has issued no certificate{next}: {why}; {in_use}", acme.directory);
    let is_urgent = !acme.issued || until.is_none_or(|until| until - now < SOON);
    let judged = if is_urgent { bad(text) } else { warn(text) };
    Some(judged.cure_by(note, command))
}

pub(super) fn https(found: &BoxFound) -> Option<Judgement> {
    let https = found.https.as_ref()?;
    let file = https.file.as_deref().unwrap_or_default();
    if let Some(why) = &https.failing {
        let judged =
            bad(format!("the certificate in use is an old one, because of `{file}`: {why}"));
        return Some(judged.cure(format!("openssl x509 -noout -text -in '{file}'")));
    }
    if let Some(judged) = https.acme.as_ref().and_then(|it| acme(it, https.until, https.now)) {
        return Some(judged);
    }
    // An authority issues short ones too, and says itself when one is renewed.
    let is_followed = |until: i64| https.acme.is_some() && until > https.now;
    if let Some(until) =
        https.until.filter(|until| until - https.now < SOON && !is_followed(*until))
    {
        let of = if file.is_empty() { "of aditd's own CA" } else { file };
        let text = format!("its certificate ({of}) is valid until {} only", shown(until));
        let judged = if until < https.now { bad(text) } else { warn(text) };
        return Some(match https.file {
            Some(_) => judged.cure_by(
                "replace the files; they are read again",
                format!("openssl x509 -noout -enddate -in '{file}'"),
            ),
            None => judged.cure_by("it is issued anew at the start", super::start_again(found)),
        });
    }
    let ends = |(_, end): &&(Name, i64)| (https.now..https.now + SOON).contains(end);
    if let Some((name, end)) = https.keys.iter().find(ends) {
        let judged = warn(format!("the key `{name}` ends at {}", shown(*end)));
        return Some(judged.cure(format!("aditd key rotate {name}{}", found.argument)));
    }
    Some(ok(format!("{} (TCP), for those who have a key", https.listening.join(", "))))
}
