//! The checks of Ollama: whether it answers, who else can reach it, and how many requests it runs
//! at once.

use serde::{Deserialize, Serialize};

use super::{BoxFound, InFlight, cure_with};
use crate::{
    doctor::{Judgement, bad, ok, warn},
    human::{self, misleads},
    typed::quoted,
};

/// What was found of Ollama.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ollama {
    /// The address at which it was asked, for example `127.0.0.1:11434`.
    pub address: String,
    /// Its answer.
    pub answer: VersionAnswer,
    /// Other addresses of this machine at which it answers, too.
    pub exposed: Vec<String>,
    /// systemd has a unit `ollama`.
    pub has_unit: bool,
    /// The statuses that web pages get.
    pub pages: Option<Pages>,
    /// What `OLLAMA_NUM_PARALLEL` is, where its environment can be read.
    pub parallel: Option<Parallel>,
    /// The settings of [`KEPT`] in its environment, where that can be read: names and values.
    #[serde(default)]
    pub set: Vec<(String, String)>,
    /// How many models there are, and which are loaded, with their sizes in bytes.
    pub models: Option<(u64, Vec<(String, u64)>)>,
}

/// The answer to `GET /api/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionAnswer {
    /// Its version.
    Version(String),
    /// The upstream is another service (`tcp://`), and it accepts connections.
    Connected,
    /// No program listens there.
    Refused,
    /// No answer in time, or the connection was cut.
    Silent(String),
    /// An answer that is not Ollama's.
    Other {
        status: u16,
        /// The answer has no body.
        is_empty: bool,
    },
}

/// The statuses that Ollama answers to web pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// The status for a page of another site.
    pub other_site: u16,
    /// The status for a browser extension.
    pub extension: u16,
}

/// The value of `OLLAMA_NUM_PARALLEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parallel {
    /// Not set: Ollama's own default.
    NotSet,
    /// Set to this number.
    Set(u64),
}

/// Ollama's own default.
const DEFAULT_PARALLEL: u64 = 1;
/// The value of `OLLAMA_ORIGINS` that lets browser extensions in.
const EXTENSIONS: &str = "chrome-extension://*,moz-extension://*,safari-web-extension://*";

/// The settings of Ollama that a cure keeps which starts it anew. None of them is a secret.
pub const KEPT: [&str; 12] = [
    "OLLAMA_CONTEXT_LENGTH",
    "OLLAMA_DEBUG",
    "OLLAMA_FLASH_ATTENTION",
    "OLLAMA_HOST",
    "OLLAMA_KEEP_ALIVE",
    "OLLAMA_KV_CACHE_TYPE",
    "OLLAMA_LOAD_TIMEOUT",
    "OLLAMA_MAX_LOADED_MODELS",
    "OLLAMA_MAX_QUEUE",
    "OLLAMA_MODELS",
    "OLLAMA_NUM_PARALLEL",
    "OLLAMA_ORIGINS",
];

impl Ollama {
    /// A command that sets one of its environment variables and restarts it. What the others are set to
    /// stays so.
    fn with(&self, judged: Judgement, name: &str, value: &str) -> Judgement {
        if !self.has_unit {
            let kept = |(other, value): &(String, String)| {
                let is_plain = KEPT.contains(&other.as_str()) && !value.contains(misleads);
                (is_plain && other != name).then(|| format!("{other}={} ", quoted(value)))
            };
            let kept: String = self.set.iter().filter_map(kept).collect();
            let serve = format!("{kept}{name}='{value}' ollama serve");
            return judged.cure_by("stop Ollama, then", serve);
        }
        let file = name.to_ascii_lowercase().replace('_', "-");
        judged.cure(format!(
            "printf '[Service]\\nEnvironment=\"{name}={value}\"\\n' | sudo install -D -m 644 /dev/stdin \
             /etc/systemd/system/ollama.service.d/zz-{file}.conf && sudo systemctl daemon-reload && sudo systemctl restart ollama"
        ))
    }

    fn start(&self) -> &'static str {
        if self.has_unit { "sudo systemctl start ollama" } else { "ollama serve" }
    }
}

pub(super) fn ollama(found: &BoxFound) -> Option<Judgement> {
    let Ollama { address, answer, has_unit, .. } = &found.ollama;
    let by_hand = format!("curl -i http://{address}/api/version");
    let who = format!("sudo ss -ltnp 'sport = :{}'", address.rsplit(':').next().unwrap_or("11434"));
    Some(match answer {
        VersionAnswer::Version(version) => ok(format!("version {version} at {address}")),
        VersionAnswer::Connected => ok(format!("{address} takes connections (`tcp://`: what is behind it is not looked at)")),
        VersionAnswer::Refused => {
            let judged = bad(format!("nothing listens at {address}")).cure(found.ollama.start());
            let note = "if it listens elsewhere";
            let at = "http://127.0.0.1:PORT";
            let (flag, line) = (format!("--upstream {at}"), format!("upstream = \"{at}\""));
            cure_with(found, judged, note, &flag, &line)
        }
        VersionAnswer::Silent(why) => {
            let restart = if *has_unit { "sudo systemctl restart ollama" } else { &by_hand };
            bad(format!("{address} does not answer: {why}")).cure(restart)
        }
        VersionAnswer::Other { status: 403, is_empty: true } => bad(format!(
            "{address} answers 403 without a body, as Ollama does to a `Host` or an `Origin` that it does not know; it should know `localhost`"
        ))
        .cure_by("see who answers there", who),
        VersionAnswer::Other { status, .. } => bad(format!("{address} answers {status}: that is not Ollama"))
            .cure_by("see who answers there", who),
    })
}

pub(super) fn exposed(found: &BoxFound) -> Option<Judgement> {
    let Ollama { address, exposed, .. } = &found.ollama;
    if exposed.is_empty() {
        return Some(ok("loopback alone, so adit can't be bypassed"));
    }
    let judged = bad(format!(
        "OPEN TO THE NETWORK. Ollama also answers at {}: anyone who reaches that address can use it and delete its models, without adit",
        exposed.join(", ")
    ));
    let port = address.rsplit(':').next().unwrap_or("11434");
    Some(found.ollama.with(judged, "OLLAMA_HOST", &format!("127.0.0.1:{port}")))
}

pub(super) fn pages(found: &BoxFound) -> Option<Judgement> {
    let Pages { other_site, extension } = found.ollama.pages?;
    if other_site != 403 {
        let judged = warn(
            "OLLAMA_ORIGINS lets every site in: any web page in a laptop's browser can use the GPU",
        );
        return Some(found.ollama.with(judged, "OLLAMA_ORIGINS", EXTENSIONS));
    }
    if extension == 403 {
        let judged =
            warn("a browser extension gets 403 without a body: Ollama does not know its `Origin`");
        return Some(found.ollama.with(judged, "OLLAMA_ORIGINS", EXTENSIONS));
    }
    Some(ok(
        "a page of another site gets 403 without a body (OLLAMA_ORIGINS lets more in), and an extension is let in",
    ))
}

pub(super) fn parallel(found: &BoxFound) -> Option<Judgement> {
    let InFlight::Most(most) = found.max_in_flight? else {
        return Some(ok(
            "max_in_flight is not set: requests wait in Ollama's own queue, where devices do not take turns",
        ));
    };
    let requests = human::count(most, "request");
    let (runs, whence) = match found.ollama.parallel {
        None => {
            return Some(ok(format!(
                "{requests} (max_in_flight); what OLLAMA_NUM_PARALLEL is can't be read"
            )));
        }
        Some(Parallel::NotSet) => (DEFAULT_PARALLEL, "OLLAMA_NUM_PARALLEL is not set"),
        Some(Parallel::Set(runs)) => (runs, "OLLAMA_NUM_PARALLEL"),
    };
    if most > runs {
        let judged = warn(format!(
            "{requests} (max_in_flight), and Ollama runs {runs} of one model ({whence}): the others wait in Ollama's own queue, where devices do not take turns"
        ));
        let judged = found.ollama.with(judged, "OLLAMA_NUM_PARALLEL", &most.to_string());
        let unit = found.unit.as_ref().and_then(|unit| unit.state.as_ref());
        // Who runs a server without the system's unit owns its file.
        let sudo = if unit.is_some_and(|unit| !unit.is_users) { "sudo " } else { "" };
        return Some(match &found.config {
            Some(Ok(Some(path))) => judged.cure_by(
                "or let fewer through",
                format!("{sudo}sed -i 's/^max_in_flight *=.*/max_in_flight = {runs}/' '{path}' && {sudo}aditd reload{}", found.argument),
            ),
            _ => judged,
        });
    }
    Some(ok(format!("{requests} (max_in_flight), of the {runs} that Ollama runs ({whence})")))
}

pub(super) fn models(found: &BoxFound) -> Option<Judgement> {
    let (models, loaded) = found.ollama.models.as_ref()?;
    if *models == 0 {
        return Some(warn("Ollama has none").cure("ollama pull llama3.2"));
    }
    let all = human::count(*models, "model");
    let loaded: Vec<_> =
        loaded.iter().map(|(name, size)| format!("{name} ({})", human::size(*size))).collect();
    Some(ok(match loaded.is_empty() {
        true => format!("{all}, none loaded"),
        false => format!("{all}, loaded: {}", loaded.join(", ")),
    }))
}
