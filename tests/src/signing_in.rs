//! People who sign in at a real provider to enroll a device.

use std::{process::ExitStatus, time::Duration};

use serde_json::json;

use crate::{
    ollama::Options,
    process::Process,
    provider::Provider,
    world::{Device, SOON, World},
};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The table `[oidc]` for a provider, with the groups `admins` and `users`.
pub fn table(provider: &Provider) -> String {
    format!(
        "[oidc]\nissuer = \"{}\"\nclient_id = \"adit\"\nclient_secret_file = \"{}\"\n\
         scopes = [\"openid\", \"email\", \"groups\", \"offline_access\"]\nuser_claim = \"email\"\n\
         roles = {{ admins = \"admin\", users = \"infer\" }}\n",
        provider.issuer(),
        provider.secret_file().display()
    )
}

/// A world whose server lets people sign in at `provider`.
pub async fn start(this: &str, provider: &Provider, flags: &[&str], more: &str) -> World {
    let config = format!("{}{more}", table(provider));
    World::start_configured(this, Options::default(), flags, &config).await
}

/// An `adit enroll --sso` that waits for a person.
pub struct SigningIn {
    pub adit: Process,
}

impl SigningIn {
    /// Begins on a device, with this code, or with the one that the device knows.
    pub async fn begin(world: &World, device: &Device, code: Option<&str>, flags: &[&str]) -> Self {
        let mut args = ["enroll", "--sso", "--no-browser"].map(str::to_owned).to_vec();
        if let Some(code) = code {
            let file = world.scratch("code");
            std::fs::write(&file, code).expect("written");
            args.extend(["--code-file".to_owned(), file.to_str().expect("a path").to_owned()]);
        }
        args.extend(flags.iter().map(ToString::to_string));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let adit = Process::spawn(device.command(&args), "adit").expect("adit starts");
        Self { adit }
    }

    /// What the person is shown: the last line of its own.
    pub async fn shown(&mut self, behind: &str) -> String {
        self.adit.says(behind).await;
        let line = |log: &str| {
            let shown = log.split(behind).nth(1)?;
            let mut lines = shown.lines().filter(|line| line.starts_with("    "));
            lines.next().map(|line| line.trim().to_owned())
        };
        let seen = async {
            loop {
                if let Some(line) = line(&self.adit.log()) {
                    return line;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(SOON, seen).await.expect("it is shown")
    }

    /// The code that a person has to type.
    pub async fn code(&mut self) -> String {
        self.shown("type this code there").await
    }

    /// The page that a person has to open.
    pub async fn page(&mut self) -> String {
        self.shown("sign in at this page").await
    }

    /// The person signs in with the code.
    pub async fn approve(&mut self, provider: &Provider, person: &str) {
        let code = self.code().await;
        provider.tell("approve", json!({ "code": code, "name": person })).await;
    }

    /// How it ends, and what it has said.
    pub async fn end(mut self) -> (ExitStatus, String) {
        tokio::time::timeout(4 * SOON, self.adit.ended_saying())
            .await
            .expect("in time")
            .expect("ended")
    }
}

/// A person signs in on a new device.
pub async fn enroll(
    world: &World,
    provider: &Provider,
    code: &str,
    name: &str,
    person: &str,
) -> Device {
    let device = world.stranger(name);
    let mut signing_in = SigningIn::begin(world, &device, Some(code), &["--device", name]).await;
    signing_in.approve(provider, person).await;
    let (status, said) = signing_in.end().await;
    assert!(status.success(), "{said}");
    device
}

/// A code that opens sign-ins.
pub async fn code(world: &World) -> String {
    let made = world.aditd(&["invite", "--sso"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    made.stdout.trim().to_owned()
}
