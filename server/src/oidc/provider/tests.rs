use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::jwt::{JwksSource, JwtSettings};

/// A provider that has no ID token in the answer to a refresh token, and what its userinfo endpoint
/// answers.
struct Told {
    issuer: String,
    userinfo: Mutex<(u16, Value)>,
}

impl Told {
    fn answer(&self, path: &str) -> (u16, Value) {
        let Self { issuer, userinfo } = self;
        match path {
            "/.well-known/openid-configuration" => {
                let metadata = json!({
                    "issuer": issuer,
                    "jwks_uri": format!("{issuer}/jwks"),
                    "token_endpoint": format!("{issuer}/token"),
                    "userinfo_endpoint": format!("{issuer}/userinfo"),
                });
                (200, metadata)
            }
            "/token" => (200, json!({ "access_token": "a", "refresh_token": "second" })),
            "/userinfo" => userinfo.lock().expect("not poisoned").clone(),
            other => panic!("nobody asks for {other}"),
        }
    }

    async fn serve(&self, mut tcp: TcpStream) {
        let mut asked = Vec::new();
        let head = loop {
            assert_ne!(tcp.read_buf(&mut asked).await.expect("read"), 0);
            if let Some(end) = asked.windows(4).position(|end| end == b"\r\n\r\n") {
                break String::from_utf8(asked[..end].to_vec()).expect("text").to_lowercase();
            }
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
        while asked.len() < head.len() + 4 + length {
            assert_ne!(tcp.read_buf(&mut asked).await.expect("read"), 0);
        }
        let (status, body) = self.answer(head.split(' ').nth(1).expect("a path"));
        let (body, status) = (body.to_string(), format!("HTTP/1.1 {status} X\r\n"));
        let head = format!("{status}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        tcp.write_all((head + &body).as_bytes()).await.expect("answered");
    }
}

fn settings(issuer: &str) -> OidcSettings {
    OidcSettings {
        client_id: "adit".into(),
        secret: None,
        secret_file: None,
        scopes: "openid".into(),
        flow: None,
        max_life: Duration::from_secs(3600),
        tokens: JwtSettings {
            issuer: issuer.parse().expect("an issuer"),
            audience: vec!["adit".into()],
            jwks: JwksSource::Discovery,
            user_claim: "email".into(),
            groups_claim: "groups".into(),
            roles: None,
            default_role: "infer".parse().expect("a role"),
            tunnel: false,
            trust: Default::default(),
        },
    }
}

#[tokio::test]
async fn a_new_refresh_token_is_kept_and_only_a_whole_answer_is_a_good_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let issuer = format!("http://{}", listener.local_addr().expect("an address"));
    let (provider, first) = (Provider::new(settings(&issuer)), "first".to_owned().into());
    let told = Told { issuer, userinfo: Mutex::new((503, Value::Null)) };
    let serve = async {
        loop {
            told.serve(listener.accept().await.expect("a connection").0).await;
        }
    };
    let answers = |status, body| *told.userinfo.lock().expect("not poisoned") = (status, body);
    let is_failing = || provider.status().failing.is_some();
    let ask = async {
        for _ in 0..2 {
            let failed = provider.refresh("17", &first).await.err().expect("no user");
            assert!(matches!(failed.why, OidcError::Unavailable(_)), "{}", failed.why);
            assert_eq!(failed.refresh_token.as_deref().map(String::as_str), Some("second"));
            assert!(is_failing());
        }
        // Another person's answer says nothing of the provider.
        answers(200, json!({ "sub": "18", "email": "bob@example.com" }));
        let failed = provider.refresh("17", &first).await.err().expect("another person");
        assert!(failed.why.ends_the_sign_in() && is_failing(), "{}", failed.why);
        answers(200, json!({ "sub": "17", "email": "alice@example.com" }));
        let person = provider.refresh("17", &first).await.ok().expect("good");
        assert_eq!(person.user.as_str(), "alice@example.com");
        assert_eq!(person.refresh_token.as_deref().map(String::as_str), Some("second"));
        assert!(!is_failing());
    };
    tokio::select! {
        () = ask => {}
        () = serve => {}
    }
}
