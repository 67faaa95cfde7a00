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
    pub now: i64,
    /// The end of each key that has one, and the keys' names.
    pub keys: Vec<(Name, i64)>,
}

pub(super) fn https(found: &BoxFound) -> Option<Judgement> {
    let https = found.https.as_ref()?;
    let file = https.file.as_deref().unwrap_or_default();
    if let Some(why) = &https.failing {
        let judged =
            bad(format!("the certificate in use is an old one, because of `{file}`: {why}"));
        return Some(judged.cure(format!("openssl x509 -noout -text -in '{file}'")));
    }
    if let Some(until) = https.until.filter(|until| until - https.now < SOON) {
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
