//! The check of the services besides Ollama: whether each is reached, and what travels unencrypted.

use serde::{Deserialize, Serialize};

use super::{BoxFound, ollama::VersionAnswer};
use crate::doctor::{Judgement, bad, ok, warn};

/// A service of the configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceFound {
    pub name: String,
    /// Where it is.
    pub upstream: String,
    pub answer: VersionAnswer,
    /// What travels unencrypted, if it is not on this machine.
    pub unencrypted: Option<String>,
}

pub(super) fn services(found: &BoxFound) -> Option<Judgement> {
    let all = &found.services;
    let is_reached = |service: &&ServiceFound| {
        !matches!(service.answer, VersionAnswer::Refused | VersionAnswer::Silent(_))
    };
    if let Some(service) = all.iter().find(|service| !is_reached(service)) {
        let ServiceFound { name, upstream, answer, .. } = service;
        let judged = bad(match answer {
            VersionAnswer::Silent(why) => format!("`{name}` at {upstream} does not answer ({why})"),
            _ => format!("`{name}` is not running at {upstream}"),
        });
        return Some(match upstream.split_once("unix:") {
            Some((_, path)) => {
                judged.cure_by("see who may use its socket", format!("ls -l '{path}'"))
            }
            None => judged.cure_by("see what listens there", "sudo ss -ltnp"),
        });
    }
    let unencrypted: Vec<_> =
        all.iter().filter_map(|service| service.unencrypted.as_deref()).collect();
    if !unencrypted.is_empty() {
        return Some(warn(unencrypted.join("; ")).cure_by(
            "if others can reach that network: run aditd on the machine of the service instead",
            format!("aditd status{}", found.argument),
        ));
    }
    let shown = all.iter().map(|service| format!("`{}` at {}", service.name, service.upstream));
    (!all.is_empty()).then(|| ok(shown.collect::<Vec<_>>().join(", ")))
}
