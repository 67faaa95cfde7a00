//! Logs in, in OpenSSH's order: keys of the agent, key files, and at a terminal
//! keyboard-interactive and a password last.

use std::sync::Arc;

use ssh_key::PublicKey;
use tracing::{debug, warn};

use super::{
    SshError, ask,
    bounds::Patience,
    config::{self, HostConfig},
    keys::{self, KeyFile, Keyring},
    session::{LoginResult, Methods, SshSession},
};

/// How often a passphrase or a password may be wrong.
const TRIES: usize = 3;
/// The most steps of a login: a host may require several methods, one after the other.
const ROUNDS: usize = 8;

/// A login under way.
pub(crate) struct Login<'a> {
    /// The connection.
    pub(crate) session: &'a mut SshSession,
    /// The settings for this host.
    pub(crate) config: &'a HostConfig,
    /// Keys and passwords that were unlocked before.
    pub(crate) keyring: &'a Keyring,
    /// Whether a person may be asked.
    pub(crate) may_ask: bool,
    /// How long the host may be silent.
    pub(crate) patience: &'a Arc<Patience>,
    /// What was shown to the host last, for people.
    pub(crate) shown: String,
}

/// Why a host has not accepted the login.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LoginDenied {
    /// `user@host`.
    pub(crate) who: String,
    /// The methods that the host offers.
    pub(crate) methods: String,
    /// Keys whose passphrase was not given.
    pub(crate) locked: Vec<String>,
    /// Why other keys could not be used.
    pub(crate) unusable: Vec<String>,
    /// A person could be asked.
    pub(crate) asked: bool,
    /// An agent has answered.
    pub(crate) agent: bool,
    /// How many keys were offered to the host, or would have been.
    pub(crate) keys: usize,
    /// The port, for the commands in the hint.
    pub(crate) port: u16,
}

/// The result of one method.
enum MethodResult {
    In,
    /// It was right, but the host requires more.
    More(Methods),
    Failed,
}

impl Login<'_> {
    /// Logs in. Returns how, for people.
    pub(crate) async fn run(mut self) -> Result<String, SshError> {
        let user = self.config.user.clone();
        let who = match self.config.port {
            config::SSH_PORT => format!("{user}@{}", self.config.host_name),
            port => format!("{user}@{}:{port}", self.config.host_name),
        };
        let mut denied = LoginDenied {
            who: who.clone(),
            asked: self.may_ask,
            port: self.config.port,
            ..LoginDenied::default()
        };
        let mut methods = match self.session.none(&user).await? {
            LoginResult::In => return Ok("its name alone".to_owned()),
            LoginResult::Not { methods, .. } => methods,
            LoginResult::Asked(_) => Methods::default(),
        };
        self.patience.again();
        for _ in 0..ROUNDS {
            self.patience.again();
            denied.methods.clone_from(&methods.names);
            let mut step = MethodResult::Failed;
            if methods.public_key {
                step = self.keys(&user, &mut denied).await?;
            }
            if matches!(step, MethodResult::Failed) && methods.interactive {
                self.shown = "what was typed".to_owned();
                step = self.interactive(&user, &who).await?;
            }
            if matches!(step, MethodResult::Failed) && methods.password {
                self.shown = "a password".to_owned();
                step = self.password(&user, &who).await?;
            }
            match step {
                MethodResult::In => return Ok(self.shown),
                MethodResult::More(more) => methods = more,
                MethodResult::Failed => break,
            }
        }
        Err(SshError::Denied(denied))
    }

    async fn keys(
        &mut self,
        user: &str,
        denied: &mut LoginDenied,
    ) -> Result<MethodResult, SshError> {
        let named: Vec<PublicKey> =
            self.config.identity_files.iter().filter_map(|path| keys::public_half(path)).collect();
        let mut tried: Vec<PublicKey> = Vec::new();
        if let Some(path) = &self.config.agent {
            let step = match self.session.agent_at(path).await {
                Ok((mut agent, mut identities)) => {
                    denied.agent = true;
                    identities.retain(|identity| {
                        !self.config.identities_only || is_among(&named, &identity.key())
                    });
                    // First those that the configuration names.
                    identities.sort_by_key(|identity| !is_among(&named, &identity.key()));
                    let mut step = MethodResult::Failed;
                    for identity in identities {
                        debug!("trying {} of the agent", identity.name());
                        self.shown = format!("the agent's key `{}`", identity.name());
                        tried.push(identity.key().into_owned());
                        denied.keys += 1;
                        // The agent may ask for a touch or a confirmation.
                        let attempt = self
                            .patience
                            .with_a_person(self.session.agent(user, &mut agent, identity))
                            .await?;
                        step = method_result(attempt);
                        if !matches!(step, MethodResult::Failed) {
                            break;
                        }
                    }
                    step
                }
                Err(why) => {
                    denied.unusable.push(format!("the agent at `{}`: {why}", path.display()));
                    MethodResult::Failed
                }
            };
            if !matches!(step, MethodResult::Failed) {
                return Ok(step);
            }
        }
        for path in &self.config.identity_files {
            self.patience.again();
            let file = match KeyFile::read(path) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                Err(e) => {
                    denied.unusable.push(e.to_string());
                    continue;
                }
            };
            if file.public.as_ref().is_some_and(|public| is_among(&tried, public)) {
                continue;
            }
            denied.keys += 1;
            let Some(key) = self.unlocked(user, &file, denied).await? else { continue };
            debug!("trying {}", path.display());
            self.shown = format!("the key `{}`", path.display());
            let step = method_result(self.session.key(user, key).await?);
            self.patience.again();
            if !matches!(step, MethodResult::Failed) {
                return Ok(step);
            }
        }
        Ok(MethodResult::Failed)
    }

    /// The key in a file. A person is asked for its passphrase only if the host would accept the
    /// key.
    async fn unlocked(
        &mut self,
        user: &str,
        file: &KeyFile,
        denied: &mut LoginDenied,
    ) -> Result<Option<Arc<ssh_key::PrivateKey>>, SshError> {
        if let Some(key) = self.keyring.key(&file.path) {
            return Ok(Some(key));
        }
        let shown = file.path.display();
        if !file.locked {
            let key = file.open(None).await;
            if key.is_none() {
                denied.unusable.push(format!("`{shown}` can't be read as a private key"));
            }
            return Ok(key);
        }
        if let Some(public) = &file.public {
            let wanted = self.session.would_take(user, public).await?;
            self.patience.again();
            if !wanted {
                return Ok(None);
            }
        }
        for _ in 0..TRIES {
            if !self.may_ask {
                break;
            }
            let prompt = format!("Enter passphrase for key '{shown}': ");
            let Some(passphrase) = self.patience.with_a_person(ask::secret(&prompt)).await else {
                break;
            };
            if let Some(key) = file.open(Some(passphrase)).await {
                self.keyring.keep_key(&file.path, key.clone());
                return Ok(Some(key));
            }
            warn!("wrong passphrase for {shown}");
        }
        denied.locked.push(shown.to_string());
        Ok(None)
    }

    async fn interactive(&mut self, user: &str, who: &str) -> Result<MethodResult, SshError> {
        let kept = self.keyring.password(who);
        if !self.may_ask && kept.is_none() {
            return Ok(MethodResult::Failed);
        }
        for _ in 0..TRIES {
            let mut attempt = self.session.interactive(user).await?;
            self.patience.again();
            let mut typed = None;
            for _ in 0..ROUNDS {
                let LoginResult::Asked(prompts) = attempt else { break };
                // A single hidden question for a password counts as the password. A one-time code
                // is not kept.
                let password = matches!(prompts.as_slice(), [(text, false)] if text.to_ascii_lowercase().contains("password"));
                let mut answers = Vec::new();
                for (text, echo) in &prompts {
                    let known =
                        kept.clone().filter(|_| password && typed.is_none() && !self.may_ask);
                    let answer = match known {
                        Some(known) => Some(known),
                        None if !self.may_ask => None,
                        None if *echo => {
                            self.patience.with_a_person(ask::line(&format!("({who}) {text}"))).await
                        }
                        None => {
                            self.patience
                                .with_a_person(ask::secret(&format!("({who}) {text}")))
                                .await
                        }
                    };
                    let Some(answer) = answer else { return Ok(MethodResult::Failed) };
                    if password {
                        typed = Some(answer.clone());
                    }
                    // The library takes a plain text and may leave it in memory.
                    answers.push(answer.to_string());
                }
                attempt = self.session.answer(answers).await?;
                self.patience.again();
            }
            let step = method_result(attempt);
            if matches!(step, MethodResult::Failed) {
                // The password may have changed, so it is not tried again.
                self.keyring.forget_password(who);
            }
            match step {
                MethodResult::Failed if self.may_ask => {}
                step => {
                    if let (Some(typed), MethodResult::In) = (typed, &step) {
                        self.keyring.keep_password(who, typed);
                    }
                    return Ok(step);
                }
            }
        }
        Ok(MethodResult::Failed)
    }

    async fn password(&mut self, user: &str, who: &str) -> Result<MethodResult, SshError> {
        for _ in 0..TRIES {
            let known = self.keyring.password(who);
            let password = match known {
                Some(known) => Some(known),
                None if !self.may_ask => None,
                None => {
                    self.patience.with_a_person(ask::secret(&format!("{who}'s password: "))).await
                }
            };
            let Some(password) = password else { break };
            let attempt = self.session.password(user, &password).await?;
            self.patience.again();
            match method_result(attempt) {
                MethodResult::Failed => self.keyring.forget_password(who),
                step => {
                    self.keyring.keep_password(who, password);
                    return Ok(step);
                }
            }
            if self.may_ask {
                warn!("permission denied, please try again");
            }
        }
        Ok(MethodResult::Failed)
    }
}

fn method_result(attempt: LoginResult) -> MethodResult {
    match attempt {
        LoginResult::In => MethodResult::In,
        LoginResult::Not { partly: true, methods } => MethodResult::More(methods),
        LoginResult::Not { .. } | LoginResult::Asked(_) => MethodResult::Failed,
    }
}

fn is_among(keys: &[PublicKey], key: &PublicKey) -> bool {
    keys.iter().any(|one| one.key_data() == key.key_data())
}

impl std::fmt::Display for LoginDenied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} does not accept the login of this computer (it accepts: {})",
            self.who, self.methods
        )?;
        if !self.locked.is_empty() {
            write!(f, "; locked with a passphrase: {}", self.locked.join(", "))?;
        }
        if !self.unusable.is_empty() {
            write!(f, "; cannot be used: {}", self.unusable.join(", "))?;
        }
        Ok(())
    }
}

impl LoginDenied {
    /// How to cure it. The commands can be typed as they are.
    pub(crate) fn hint(&self) -> String {
        // Without an agent, `ssh-add` fails.
        let agent = if self.agent { "" } else { "eval \"$(ssh-agent)\" && " };
        let to = match self.who.rsplit_once(':') {
            Some((who, port)) if port.parse() == Ok(self.port) => format!("-p {port} {who}"),
            _ => self.who.clone(),
        };
        match self.locked.first() {
            Some(key) if !self.asked => {
                format!(
                    "add the key to the agent: `{agent}ssh-add '{key}'` (or start this at a terminal)"
                )
            }
            _ if self.keys == 0
                && self.unusable.is_empty()
                && self.methods.contains("publickey") =>
            {
                format!(
                    "this computer has no SSH key: make one with `ssh-keygen -t ed25519`, and copy it to the host with `ssh-copy-id {to}`"
                )
            }
            _ => {
                format!(
                    "copy a key of this computer to the host: `ssh-copy-id {to}`; or use the system's ssh: `--ssh-client system`"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cure_fits_what_this_computer_has() {
        let denied = LoginDenied {
            who: "me@gpu".into(),
            methods: "publickey".into(),
            port: 22,
            ..LoginDenied::default()
        };
        let locked =
            LoginDenied { locked: vec!["/home/me/.ssh/my key".into()], keys: 1, ..denied.clone() };
        for (denied, cure) in [
            (LoginDenied { agent: true, ..locked.clone() }, "`ssh-add '/home/me/.ssh/my key'`"),
            (locked.clone(), "`eval \"$(ssh-agent)\" && ssh-add '/home/me/.ssh/my key'`"),
            (
                denied.clone(),
                "`ssh-keygen -t ed25519`, and copy it to the host with `ssh-copy-id me@gpu`",
            ),
            (LoginDenied { keys: 1, ..denied.clone() }, "`ssh-copy-id me@gpu`; or"),
            (
                LoginDenied { who: "me@gpu:2222".into(), port: 2222, keys: 1, ..denied },
                "`ssh-copy-id -p 2222 me@gpu`; or",
            ),
        ] {
            assert!(denied.hint().contains(cure), "{}", denied.hint());
        }
    }
}
