//! The HTTPS listener and its keys, with real clients.

mod acme;
mod browser;
mod certificates;
mod clients;
mod endless;
mod keys;
mod pages;
mod reload;
mod replaced;
mod restored;
mod rotation;
mod strangers;
mod tokens;
mod users;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use rcgen::{CertificateParams, KeyPair};
use tests::{
    ollama::Options,
    state_files::chmod,
    world::{SOON, World},
};

use crate::PROGRAM;

/// A world whose server also listens for HTTPS, with a certificate of its own CA.
struct Https {
    world: World,
    address: SocketAddr,
    /// The certificate of the CA.
    ca: PathBuf,
}

/// What curl got.
#[derive(Debug)]
struct Got {
    /// The exit code of curl.
    code: Option<i32>,
    status: u16,
    headers: String,
    body: String,
}

impl Https {
    async fn start(options: Options, config: &str) -> Self {
        Self::start_with(options, config, &[]).await
    }

    async fn start_with(options: Options, config: &str, flags: &[&str]) -> Self {
        let flags = [&["--https", "127.0.0.1:0"], flags].concat();
        let world = World::start_configured(PROGRAM, options, &flags, config).await;
        let address = address(&world).await;
        let shown = world.aditd(&["ca", "show"]).await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        let ca = world.scratch("ca.pem");
        std::fs::write(&ca, &shown.stdout).expect("written");
        Self { world, address, ca }
    }

    /// Makes a key with these flags.
    async fn key(&self, name: &str, flags: &[&str]) -> String {
        let made = self.world.aditd(&[&["key", "create", name], flags].concat()).await;
        assert_eq!(made.code, Some(0), "{}", made.stderr);
        made.stdout.trim().to_owned()
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// A curl that trusts the CA.
    fn curl_command(&self, path: &str, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--no-buffer",
            "--noproxy",
            "*",
            "--max-time",
            "120",
        ]);
        command.arg("--cacert").arg(&self.ca).args(args).arg(self.url(path));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn curl(&self, path: &str, args: &[&str]) -> Got {
        let out = self.curl_command(path, &[&["--include"], args].concat()).output();
        let out = tokio::time::timeout(4 * SOON, out).await.expect("in time").expect("curl runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (headers, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = headers.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        if status == 0 {
            eprintln!("{}", String::from_utf8_lossy(&out.stderr));
        }
        Got { code: out.status.code(), status, headers: headers.to_owned(), body: body.to_owned() }
    }

    /// [`Https::curl`] with this key.
    async fn with_key(&self, key: &str, path: &str, args: &[&str]) -> Got {
        let header = format!("Authorization: Bearer {key}");
        self.curl(path, &[&["--header", &header], args].concat()).await
    }
}

/// The address of the HTTPS listener.
async fn address(world: &World) -> SocketAddr {
    let status = world.status().await;
    let listening = status["https"]["listening"][0].as_str();
    listening.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{status}"))
}

/// Makes a certificate for `localhost` in `tls.crt` of this directory, and its key in `tls.key`.
fn own_certificate(dir: &Path) -> KeyPair {
    let pair = KeyPair::generate().expect("a key");
    let named = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let key = dir.join("tls.key");
    std::fs::write(dir.join("tls.crt"), named.self_signed(&pair).expect("signed").pem())
        .expect("written");
    std::fs::write(&key, pair.serialize_pem()).expect("written");
    chmod(&key, 0o600);
    pair
}
