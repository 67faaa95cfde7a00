//! The check of the device that asks: what it may do, and how near it is to its limits.

use serde::{Deserialize, Serialize};

use super::BoxFound;
use crate::{
    doctor::{Judgement, bad, ok, warn},
    human,
    identity::Name,
};

/// The device that asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceFound {
    /// What the server calls it.
    pub name: Name,
    pub role: Name,
    /// Whether the configuration has such a role.
    pub role_is_known: bool,
    /// The only models that it may use. A model has to be in each of these lists.
    pub models: Vec<Vec<String>>,
    /// Tokens that it has used today (UTC), and the limit, if there is one.
    pub tokens: (u64, Option<u64>),
    /// How many of its requests run now, and the limit, if there is one.
    pub at_once: (u64, Option<u64>),
    /// The limit of requests per minute.
    pub per_minute: Option<u64>,
    /// The limit for the body of a request, in bytes.
    pub body: Option<u64>,
}

pub(super) fn device(found: &BoxFound) -> Option<Judgement> {
    let device = found.device.as_ref()?;
    let DeviceFound { name, role, .. } = device;
    if !device.role_is_known {
        let judged = bad(format!(
            "{name} has the role `{role}`, which is not in the configuration: it may do nothing"
        ));
        return Some(judged.cure(format!("aditd device role {name} infer{}", found.argument)));
    }
    let text = format!("{name} has the role `{role}`; {}", device.rights().join("; "));
    let raise = "sudoedit /etc/adit/aditd.toml && sudo aditd reload";
    Some(match (device.tokens, device.at_once) {
        ((used, Some(most)), _) if used >= most => bad(format!(
            "{text}. The day's tokens are used up: requests get 429 until midnight, UTC"
        ))
        .cure_by("raise `tokens_per_day`", raise),
        ((used, Some(most)), _) if used >= most - most / 5 => {
            warn(text).cure_by("raise `tokens_per_day` before they are used up", raise)
        }
        (_, (running, Some(most))) if running >= most => {
            warn(format!("{text}. As many run as may: the next one gets 429"))
                .cure_by("wait for one to end, or raise `at_once`", raise)
        }
        _ => ok(text),
    })
}

impl DeviceFound {
    /// Its models and limits, as people read them.
    fn rights(&self) -> Vec<String> {
        let models = match self.models.is_empty() {
            true => "all models".to_owned(),
            false => {
                let lists: Vec<_> = self.models.iter().map(|list| list.join(", ")).collect();
                format!("only the models {}", lists.join(" and of those "))
            }
        };
        let of = |(now, most): (u64, Option<u64>), what: &str| {
            most.map(|most| format!("{now} of {most} {what}"))
        };
        let limits = [
            of(self.tokens, "tokens today"),
            of(self.at_once, "requests at once"),
            self.per_minute
                .map(|most| format!("at most {} per minute", human::count(most, "request"))),
            self.body.map(|most| format!("bodies up to {}", human::size(most))),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        let none = limits.is_empty().then(|| "no limits".to_owned());
        std::iter::once(models).chain(limits).chain(none).collect()
    }
}
