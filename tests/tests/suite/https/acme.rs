//! Certificates by ACME, of a real server of that protocol.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use common::machine::network::own_addresses;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::Value;
use tests::{
    ollama,
    pebble::{EXTERNAL, NAME, Options, Pebble},
    skip::skip_test,
    state_files::chmod,
    world::{SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Https, address};
use crate::PROGRAM;

/// Longer than a new certificate takes, and the next one after one of [`BRIEF`] seconds.
const ISSUED_WITHIN: Duration = Duration::from_secs(90);
const BRIEF: u32 = 24;

/// A server that orders a certificate there. Its listener is where the authority looks.
async fn ordering(pebble: &Pebble, more: &str) -> Https {
    ordering_on(pebble, more, &["--https", "127.0.0.1:0"]).await
}

async fn ordering_on(pebble: &Pebble, more: &str, flags: &[&str]) -> Https {
    let config = format!("{}{more}", pebble.table());
    let options =
        ollama::Options { token_interval: Duration::from_millis(50), ..ollama::Options::default() };
    let world = World::start_configured(PROGRAM, options, flags, &config).await;
    let address = address(&world).await;
    Https { world, address, ca: pebble.root().await }
}

impl Https {
    async fn orders(&self) -> Value {
        let status = self.world.status().await;
        crate::readme::json::Page::read().has("aditd status", &status);
        status["https"]["certificate"].clone()
    }

    /// Waits until its certificate is so.
    async fn certificate_is(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let waited = tokio::time::timeout(ISSUED_WITHIN, async {
            loop {
                let now = self.orders().await;
                if wanted(&now) {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        match waited.await {
            Ok(certificate) => certificate,
            Err(_) => panic!("{}\n{}", self.orders().await, self.world.aditd.log()),
        }
    }

    async fn is_issued(&self) -> Value {
        self.certificate_is(|now| now["acme"]["issued"] == true).await
    }

    /// A curl that uses the name in the certificate.
    fn curl_by_name(&self, key: &str, path: &str) -> tokio::process::Command {
        let port = self.address.port();
        let mut command = tokio::process::Command::new("curl");
        command.args(["--silent", "--no-buffer", "--noproxy", "*", "--max-time", "120"]);
        command.arg("--cacert").arg(&self.ca);
        command.args(["--header", &format!("Authorization: Bearer {key}")]);
        command.args(["--resolve", &format!("{NAME}:{port}:{}", self.address.ip())]);
        command.arg(format!("https://{NAME}:{port}{path}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// The status of a request with this key; 0 if there is no answer.
    async fn by_name(&self, key: &str) -> u16 {
        let mut command = self.curl_by_name(key, "/api/tags");
        command.args(["--output", "/dev/null", "--write-out", "%{http_code}"]);
        let out = tokio::time::timeout(4 * SOON, command.output()).await.expect("in time");
        let text = String::from_utf8(out.expect("curl runs").stdout).expect("text");
        text.trim().parse().expect("a status")
    }
}

#[tokio::test]
async fn a_certificate_is_issued_and_renewed_while_an_answer_runs() {
    let Some(pebble) = Pebble::start(Options { life: BRIEF, ..Options::default() }).await else {
        return;
    };
    let https = ordering(&pebble, "contact = \"owner@example.com\"\n").await;
    let key = https.key("phone", &[]).await;
    assert_eq!(https.by_name(&key).await, 0, "until then, it is one of its own CA");
    pebble.port.lead_to(https.address);
    let first = https.is_issued().await;
    assert_eq!(first["names"], serde_json::json!([NAME]));
    assert_eq!(https.by_name(&key).await, 200);
    let json = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":100000}}"#;
    let mut command = https.curl_by_name(&key, "/api/generate");
    let mut running = command.args(["--data", json]).spawn().expect("curl starts");
    let mut answer = running.stdout.take().expect("its output");
    answer.read_u8().await.expect("an answer");
    https.certificate_is(|now| now["until"].as_i64() > first["until"].as_i64()).await;
    assert_eq!(https.by_name(&key).await, 200, "with the new one");
    // What was read before the renewal is thrown away.
    let mut more = vec![0; 1 << 16];
    let _ = answer.read(&mut more).await.expect("more of it");
    answer.read_u8().await.expect("the answer goes on");
    assert_eq!(https.world.ollama.counters().running, 1);
    let dir = https.world.state().join("acme");
    assert_eq!(mode(&dir), 0o700);
    for file in ["account.json", "certificate.json", "attempts.json"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[tokio::test]
async fn an_authority_that_fails_changes_nothing_and_is_told_with_a_cure() {
    let Some(mut pebble) = Pebble::start(Options::default()).await else { return };
    let mut https = ordering(&pebble, "").await;
    let key = https.key("ci", &[]).await;
    // Nobody is at the port that it checks.
    let (closed, nowhere) = tests::raw::closed_port();
    pebble.port.lead_to(nowhere);
    let failing = https.certificate_is(|now| now["acme"]["failing"].is_string()).await;
    assert_eq!(failing["acme"]["issued"], false, "{failing}");
    let why = failing["acme"]["failing"].as_str().expect("a reason");
    assert!(why.starts_with(NAME), "{why}");
    assert_eq!(failing["acme"]["cure"]["command"], "sudo ss -ltnp", "{failing}");
    assert!(failing["acme"]["next"].as_i64().is_some(), "{failing}");
    let mut page = crate::readme::json::Page::read();
    page.has("aditd status", &https.world.status().await);
    page.objects_are_printed(crate::readme::json::By::Acme);
    let doctor = https.world.aditd(&["doctor", "--json"]).await;
    let told: Value = serde_json::from_str(&doctor.stdout).expect("JSON");
    let line = told["lines"].as_array().into_iter().flatten().find(|line| line["id"] == "https");
    let line = line.unwrap_or_else(|| panic!("{told}"));
    assert_eq!(line["verdict"], "bad", "{line}");
    let shown = https.world.aditd(&["ca", "show"]).await;
    let own = https.world.scratch("own.pem");
    std::fs::write(&own, shown.stdout).expect("written");
    let issued_by = std::mem::replace(&mut https.ca, own);
    assert_eq!(https.with_key(&key, "/api/tags", &[]).await.status, 200, "it serves");
    // The owner mends it, and does not wait for the next order.
    drop(closed);
    pebble.port.lead_to(https.address);
    assert_eq!(https.world.aditd(&["reload"]).await.code, Some(0));
    let mended = https.is_issued().await;
    assert!(mended["acme"]["failing"].is_null(), "{mended}");
    https.ca = issued_by;
    // The certificate outlives the authority, and a restart.
    pebble.stop().await;
    https.world.kill_server().await;
    https.world.restart_server().await;
    https.address = address(&https.world).await;
    assert_eq!(https.by_name(&key).await, 200);
}

#[tokio::test]
async fn a_file_that_others_can_read_is_refused() {
    let Some(pebble) = Pebble::start(Options::default()).await else { return };
    let mut https = ordering(&pebble, "").await;
    pebble.port.lead_to(https.address);
    https.is_issued().await;
    https.world.kill_server().await;
    let file = https.world.state().join("acme/account.json");
    chmod(&file, 0o644);
    let flags: Vec<_> = https.world.serve_flags.iter().map(String::as_str).collect();
    let ended = https.world.aditd(&[&["serve"], &flags[..]].concat()).await;
    let wanted = format!("chmod 600 '{}'", file.display());
    assert!(ended.code == Some(1) && ended.stderr.contains(&wanted), "{ended:?}");
}

#[tokio::test]
async fn an_authority_for_account_holders_is_told_which_account_it_is() {
    let options = Options { is_closed: true, ..Options::default() };
    let Some(pebble) = Pebble::start(options).await else { return };
    let (id, key) = EXTERNAL;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{key}\n")).expect("written");
    let table = format!(
        "external_account = {{ id = \"{id}\", key_file = \"{}\" }}\n",
        file.path().display()
    );
    let https = ordering(&pebble, &table).await;
    pebble.port.lead_to(https.address);
    https.is_issued().await;
    let without = ordering(&pebble, "").await;
    let failing = without.certificate_is(|now| now["acme"]["failing"].is_string()).await;
    let note = failing["acme"]["cure"]["note"].as_str().unwrap_or_default();
    assert!(note.contains("external_account"), "{failing}");
}

/// An address of this machine that is not loopback; `None`, with the test skipped, if there is none.
fn own_address() -> Option<Ipv4Addr> {
    let found = own_addresses().into_iter().find_map(|address| match address {
        IpAddr::V4(v4) if !v4.is_loopback() => Some(v4),
        _ => None,
    });
    if found.is_none() {
        skip_test("this machine has no address besides loopback");
    }
    found
}

#[tokio::test]
async fn addresses_that_may_not_reach_it_get_the_answer_to_a_waiting_check_and_nothing_else() {
    let Some(own) = own_address() else { return };
    let options = Options { names_at: own, ..Options::default() };
    let Some(pebble) = Pebble::start(options).await else { return };
    let listen = format!("{own}:0");
    let flags = ["--https", &listen, "--https-allow-from", "198.51.100.7/32"];
    let https = ordering_on(&pebble, "", &flags).await;
    // The authority has connected, so it is being checked now.
    pebble.port.is_knocked().await;
    assert_eq!(hello(&https, NAME, &["http/1.1"]).await, Got::Nothing);
    assert_eq!(hello(&https, NAME, &[]).await, Got::Nothing);
    assert_eq!(hello(&https, "other.example.test", &["acme-tls/1"]).await, Got::Nothing);
    assert_eq!(hello(&https, NAME, &["acme-tls/1", "http/1.1"]).await, Got::Nothing);
    assert_eq!(plain(&https, b"GET / HTTP/1.1\r\n\r\n").await, Got::Nothing);
    assert_eq!(hello(&https, NAME, &["acme-tls/1"]).await, Got::Answer);
    pebble.port.lead_to(https.address);
    https.is_issued().await;
    assert_eq!(hello(&https, NAME, &["acme-tls/1"]).await, Got::Nothing, "none waits");
    let key = https.key("far", &[]).await;
    assert_eq!(https.by_name(&key).await, 0, "and the issued certificate is not shown there");
}

#[derive(Debug, PartialEq, Eq)]
enum Got {
    /// Not one byte.
    Nothing,
    /// The end of a handshake.
    Answer,
}

/// What a client at the address of the listener itself gets for these bytes.
async fn plain(https: &Https, bytes: &[u8]) -> Got {
    let mut tcp = TcpStream::connect(https.address).await.expect("it listens");
    let _ = tcp.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(2 * SOON, tcp.read_to_end(&mut answer)).await.expect("it ends");
    assert!(answer.is_empty(), "{answer:?}");
    Got::Nothing
}

/// What it gets for a handshake.
async fn hello(https: &Https, name: &str, protocols: &[&str]) -> Got {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut first = Vec::new();
    client.write_tls(&mut first).expect("a first message");
    let mut tcp = TcpStream::connect(https.address).await.expect("it listens");
    let _ = tcp.write_all(&first).await;
    let ended = async {
        let mut bytes = vec![0; 1 << 16];
        while client.is_handshaking() {
            let Ok(read @ 1..) = tcp.read(&mut bytes).await else { return Got::Nothing };
            client.read_tls(&mut &bytes[..read]).expect("TLS");
            client.process_new_packets().expect("TLS");
        }
        Got::Answer
    };
    let got = tokio::time::timeout(2 * SOON, ended).await.expect("it ends");
    if got == Got::Answer {
        assert_eq!(client.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    } else {
        assert!(client.is_handshaking() && client.peer_certificates().is_none());
    }
    got
}

/// Trusts everybody: what the certificate says is the authority's business.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
