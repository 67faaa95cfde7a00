//! `authorize` by HTTPS.

use std::{path::PathBuf, sync::Arc};

use common::transport::tls;
use rustls::ServerConfig;
use tests::{
    ollama::Options,
    world::{Up, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::authorize::{TAGS, status};
use crate::PROGRAM;

/// A certificate for `localhost`, its key, and a file with the certificate.
fn certificate(world: &World, name: &str) -> (rcgen::CertifiedKey<rcgen::KeyPair>, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let file = world.scratch(name);
    std::fs::write(&file, made.cert.pem()).expect("written");
    (made, file)
}

/// Allows everything, by TLS.
async fn allow_all(listener: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            let Ok(mut tls) = acceptor.accept(tcp).await else { return };
            let mut question = Vec::new();
            while !question.ends_with(b"}") {
                if !matches!(tls.read_buf(&mut question).await, Ok(1..)) {
                    return;
                }
            }
            let _ = tls.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            let _ = tls.shutdown().await;
        });
    }
}

async fn ask_at(world: &World, port: u16, ca: &std::path::Path) {
    let config =
        format!("authorize = 'https://localhost:{port}/check'\nauthorize_ca = '{}'", ca.display());
    std::fs::write(world.config(), config).expect("written");
    let reload = world.aditd(&["reload"]).await;
    assert_eq!(reload.code, Some(0), "{}", reload.stderr);
}

#[tokio::test]
async fn authorize_is_asked_by_https_only_if_its_certificate_is_one_of_the_named_ca() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    // A server in its sandbox may connect only to the ports of the settings with which it started.
    let config =
        format!("authorize = 'https://localhost:{port}/check'\nauthorize_at = ['request']");
    let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
    let (made, ca) = certificate(&world, "auth.pem");
    let (_, other_ca) = certificate(&world, "other.pem");
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(
            vec![made.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
        )
        .expect("a certificate and its key");
    let mut serving = JoinSet::new();
    serving.spawn(allow_all(listener, TlsAcceptor::from(Arc::new(config))));
    let up: Up = world.up("laptop").await;
    ask_at(&world, port, &ca).await;
    assert_eq!(status(&up, TAGS).await, 200);
    ask_at(&world, port, &other_ca).await;
    assert_eq!(status(&up, TAGS).await, 503, "another CA has not signed that");
    ask_at(&world, port, &ca).await;
    assert_eq!(status(&up, TAGS).await, 200);
}
