//! The environment variables that tell a program where Ollama is. Names no process.

use clap::Args;

/// An API key that clients require and Ollama ignores.
const PLACEHOLDER: &str = "ollama";
const LOCAL: [&str; 2] = ["127.0.0.1", "localhost"];
const PROXIES: [&str; 6] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// For whose clients variables are set, besides Ollama's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
pub(crate) struct Interfaces {
    /// Also set what OpenAI's clients read: OPENAI_BASE_URL, and OPENAI_API_KEY to a placeholder
    #[arg(long)]
    pub(crate) openai: bool,
    /// Also set what Anthropic's clients read: ANTHROPIC_BASE_URL, and ANTHROPIC_API_KEY and
    /// ANTHROPIC_AUTH_TOKEN to a placeholder
    #[arg(long)]
    pub(crate) anthropic: bool,
}

impl Interfaces {
    /// The variables for what listens at `address`: Ollama, or another service that `speaks` this.
    pub(crate) fn variables(
        self,
        address: &str,
        speaks: Option<&str>,
    ) -> Vec<(&'static str, String)> {
        let url = format!("http://{address}");
        let mut variables = Vec::new();
        if speaks.is_some() {
            variables.push(("ADIT_ADDRESS", address.to_owned()));
        }
        match speaks {
            Some("tcp") => return variables,
            None | Some("http") => {
                variables.push(("OLLAMA_HOST", url.clone()));
                // aider and other programs that use LiteLLM read this one only.
                variables.push(("OLLAMA_API_BASE", url.clone()));
            }
            _ => {}
        }
        if self.openai || speaks == Some("openai") {
            variables.push(("OPENAI_BASE_URL", format!("{url}/v1")));
            variables.push(("OPENAI_API_KEY", PLACEHOLDER.to_owned()));
        }
        if self.anthropic {
            variables.push(("ANTHROPIC_BASE_URL", url));
            variables.push(("ANTHROPIC_API_KEY", PLACEHOLDER.to_owned()));
            variables.push(("ANTHROPIC_AUTH_TOKEN", PLACEHOLDER.to_owned()));
        }
        variables
    }
}

/// The variables that keep a program from using a proxy for this computer's own addresses, if
/// `current` names a proxy.
pub(crate) fn around_proxies(
    current: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, String)> {
    if !PROXIES.iter().any(|name| current(name).is_some_and(|proxy| !proxy.is_empty())) {
        return Vec::new();
    }
    let known = ["no_proxy", "NO_PROXY"].iter().find_map(|name| current(name)).unwrap_or_default();
    let hosts: Vec<&str> =
        known.split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
    let missing = LOCAL.iter().copied().filter(|local| !hosts.contains(local));
    let value = hosts.iter().copied().chain(missing).collect::<Vec<_>>().join(",");
    ["no_proxy", "NO_PROXY"].map(|name| (name, value.clone())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interface_is_told_where_ollama_is_and_nobody_elses_key_goes_there() {
        let told = |interfaces: Interfaces| {
            let variables = interfaces.variables("127.0.0.1:7", None);
            variables.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let (openai, anthropic) = (true, true);
        let ollama = ["OLLAMA_HOST=http://127.0.0.1:7", "OLLAMA_API_BASE=http://127.0.0.1:7"];
        assert_eq!(told(Interfaces::default()), ollama);
        assert_eq!(
            told(Interfaces { openai, ..Interfaces::default() })[2..],
            ["OPENAI_BASE_URL=http://127.0.0.1:7/v1", "OPENAI_API_KEY=ollama"]
        );
        assert_eq!(
            told(Interfaces { anthropic, ..Interfaces::default() })[2..],
            [
                "ANTHROPIC_BASE_URL=http://127.0.0.1:7",
                "ANTHROPIC_API_KEY=ollama",
                "ANTHROPIC_AUTH_TOKEN=ollama"
            ]
        );
        assert_eq!(told(Interfaces { openai, anthropic }).len(), 7);
    }

    #[test]
    fn another_service_has_the_variables_of_what_it_speaks() {
        let names = |interfaces: Interfaces, speaks| -> Vec<&str> {
            let variables = interfaces.variables("127.0.0.1:7", Some(speaks));
            assert_eq!(variables[0], ("ADIT_ADDRESS", "127.0.0.1:7".to_owned()));
            variables.into_iter().skip(1).map(|(name, _)| name).collect()
        };
        let none = Interfaces::default();
        assert_eq!(names(none, "tcp"), [""; 0]);
        assert_eq!(names(none, "http"), ["OLLAMA_HOST", "OLLAMA_API_BASE"]);
        assert_eq!(names(none, "openai"), ["OPENAI_BASE_URL", "OPENAI_API_KEY"]);
        let anthropic = Interfaces { anthropic: true, ..none };
        assert_eq!(names(anthropic, "openai").len(), 5);
    }

    #[test]
    fn where_there_is_a_proxy_it_is_not_asked_for_this_computer() {
        let around = |set: &[(&str, &str)]| {
            let set = set.to_vec();
            around_proxies(|name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(around(&[]), []);
        assert_eq!(around(&[("http_proxy", ""), ("no_proxy", "a")]), []);
        for (known, value) in [
            ("", "127.0.0.1,localhost"),
            ("a.lan", "a.lan,127.0.0.1,localhost"),
            ("localhost , a.lan", "localhost,a.lan,127.0.0.1"),
            ("127.0.0.1,localhost", "127.0.0.1,localhost"),
        ] {
            let both = [("no_proxy", value.to_owned()), ("NO_PROXY", value.to_owned())];
            assert_eq!(around(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", known)]), both);
        }
    }
}
