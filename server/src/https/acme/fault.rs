//! Why an order has failed, and what the owner can do about it.

use std::error::Error as StdError;

use instant_acme::{Error, Problem};
use proto::{failure::in_one_line, human::misleads};
use serde::{Deserialize, Serialize};

use super::settings::AcmeSettings;

const URN: &str = "urn:ietf:params:acme:error:";
/// The longest text that is shown, in characters.
const LONGEST: usize = 600;

/// Why an order has failed.
#[derive(Debug)]
pub(super) struct Fault {
    what: String,
    /// The type of the authority's problem (RFC 8555 section 6.7), without what all types begin with.
    kind: Option<String>,
    /// Whether the authority was not reached at all.
    is_unreached: bool,
}

/// What the owner can do: a sentence, and a command that helps with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeCure {
    pub note: String,
    pub command: String,
}

impl Fault {
    /// A failure of our own.
    pub(super) fn inside(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { what: shown(&in_one_line(&*error.into())), kind: None, is_unreached: false }
    }

    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), kind: None, is_unreached: false }
    }

    /// What an authority says about one of the names.
    pub(super) fn of_name(name: &str, problem: &Problem) -> Self {
        let fault = Self::of_problem(problem);
        Self { what: format!("{name}: {}", fault.what), ..fault }
    }

    fn of_problem(problem: &Problem) -> Self {
        let kind = problem.r#type.as_deref().map(|kind| kind.strip_prefix(URN).unwrap_or(kind));
        let mut said: Vec<_> = problem.detail.iter().cloned().collect();
        said.extend(problem.subproblems.iter().map(ToString::to_string));
        if said.is_empty() {
            said.push("the authority does not say why".to_owned());
        }
        let kind = kind.map(str::to_owned);
        let of = kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
        let what = shown(&format!("{}{of}", said.join("; ")));
        Self { what, kind, is_unreached: false }
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Whether the authority does not know our account any more.
    pub(super) fn is_without_account(&self) -> bool {
        self.kind.as_deref() == Some("accountDoesNotExist")
    }

    /// What to do about it. `restart`: how the server is started again, which takes up other settings.
    pub(super) fn cure(&self, settings: &AcmeSettings, restart: &AcmeCure) -> AcmeCure {
        let name = settings.names.first().map(ToString::to_string).unwrap_or_default();
        let (note, command) = match self.kind.as_deref() {
            Some("connection" | "tls" | "unauthorized" | "incorrectResponse") => (
                format!(
                    "the authority connects to port 443 of each name: the name has to lead to this server, and a firewall or router has to let port 443 through to where aditd listens for HTTPS. From another network, try `curl -v https://{name}/`; here, see who listens"
                ),
                "sudo ss -ltnp".to_owned(),
            ),
            Some("dns") => (
                "the name has no address in the DNS that everybody sees: see what it has".to_owned(),
                format!("getent ahosts {name}"),
            ),
            Some("caa") => (
                "a CAA record of the domain allows other authorities only: see the record"
                    .to_owned(),
                format!("dig CAA {name}"),
            ),
            Some("rateLimited") => (
                "the authority wants to be left alone: aditd waits for that by itself. See until when"
                    .to_owned(),
                "aditd status".to_owned(),
            ),
            Some("externalAccountRequired") => (
                format!(
                    "this authority wants an account that you have there: name it with `external_account` below `[https.acme]`, then {}",
                    restart.note
                ),
                restart.command.clone(),
            ),
            Some("accountDoesNotExist") => (
                "aditd makes a new account by itself".to_owned(),
                "aditd status".to_owned(),
            ),
            Some("badCSR" | "invalidContact" | "rejectedIdentifier" | "unsupportedContact"
                | "unsupportedIdentifier" | "userActionRequired" | "invalidProfile") => {
                (
                    format!("change `[https.acme]` in the configuration, then {}", restart.note),
                    restart.command.clone(),
                )
            }
            _ if self.is_unreached => {
                let ca = settings.directory_ca.as_ref();
                let ca = ca.map(|ca| format!(" --cacert '{}'", ca.display())).unwrap_or_default();
                (
                    "the authority has to be reached from this machine; to try".to_owned(),
                    format!("curl -sS{ca} {}", settings.directory),
                )
            }
            _ => ("aditd tries again by itself; to have it try now".to_owned(), "aditd reload".to_owned()),
        };
        AcmeCure { note, command }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Self::of_problem(&problem),
            Error::Other(e) => Self {
                what: shown(&in_one_line(&*e)),
                kind: None,
                is_unreached: e.downcast_ref::<reqwest::Error>().is_some(),
            },
            Error::Timeout(_) => Self::new("the authority has not come to a result in time"),
            Error::Json(e) => Self::new(format!("the authority's answer cannot be read: {e}")),
            e => Self::new(shown(&in_one_line(&e))),
        }
    }
}

/// A text of others in one line of a bounded length.
fn shown(text: &str) -> String {
    let line = text.chars().map(|char| if misleads(char) { ' ' } else { char });
    line.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> AcmeSettings {
        AcmeSettings {
            names: vec!["gpu.example.com".to_owned().try_into().expect("a name")],
            contact: Vec::new(),
            directory: Default::default(),
            directory_ca: Some("/etc/adit/ca.pem".into()),
            profile: None,
            external_account: None,
        }
    }

    fn problem(kind: &str) -> Problem {
        serde_json::from_value(serde_json::json!({
            "type": format!("{URN}{kind}"), "detail": "Connection refused", "status": 400,
        }))
        .expect("a problem")
    }

    #[test]
    fn each_problem_of_an_authority_has_a_cure() {
        let restart = AcmeCure {
            note: "start aditd again".to_owned(),
            command: "sudo systemctl restart aditd".to_owned(),
        };
        for (kind, command) in [
            ("connection", "sudo ss -ltnp"),
            ("unauthorized", "sudo ss -ltnp"),
            ("dns", "getent ahosts gpu.example.com"),
            ("caa", "dig CAA gpu.example.com"),
            ("rateLimited", "aditd status"),
            ("externalAccountRequired", "sudo systemctl restart aditd"),
            ("invalidContact", "sudo systemctl restart aditd"),
            ("serverInternal", "aditd reload"),
        ] {
            let fault = Fault::of_name("gpu.example.com", &problem(kind));
            assert_eq!(fault.what(), format!("gpu.example.com: Connection refused ({kind})"));
            let cure = fault.cure(&settings(), &restart);
            assert_eq!(cure.command, command, "{kind}");
            assert_eq!(cure.note.ends_with(&restart.note), command == restart.command, "{kind}");
        }
        assert!(Fault::from(Error::Api(problem("accountDoesNotExist"))).is_without_account());
    }

    #[test]
    fn an_authority_that_says_nothing_is_quoted_so() {
        let problem = serde_json::from_str("{}").expect("a problem");
        let fault = Fault::from(Error::Api(problem));
        assert_eq!(fault.what(), "the authority does not say why");
        let said = Fault::inside("a\u{1b}[2J\nb\u{202e}c");
        assert_eq!(said.what(), "a [2J b c");
    }
}
