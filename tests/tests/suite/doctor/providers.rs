//! The providers that the configuration names: the one at which people sign in, and the one whose
//! tokens count.

use std::fs;

use serde_json::json;
use tests::{doctor::Diagnosis, provider::Provider, signing_in, state_files::chmod, world::World};

use crate::PROGRAM;

async fn doctor(world: &World) -> Diagnosis {
    Diagnosis::of(world.aditd(&["doctor", "--json"]).await)
}

#[tokio::test]
async fn a_provider_that_cannot_be_asked_and_a_secret_that_others_can_read_are_told() {
    let Some(provider) = Provider::start().await else { return };
    let issuer = provider.issuer();
    let jwt = format!("[jwt]\nissuer = \"{issuer}\"\naudience = \"adit\"\n");
    let mut world = signing_in::start(PROGRAM, &provider, &[], &jwt).await;
    let said = doctor(&world).await;
    assert_eq!((said.verdict("oidc"), said.verdict("jwt")), ("ok", "ok"), "{said:?}");
    assert!(said.found("oidc").contains("people sign in with a code"), "{said:?}");
    provider.tell("down", json!({ "is": true })).await;
    let by_hand = format!("curl -i '{issuer}/.well-known/openid-configuration'");
    let said = doctor(&world).await;
    said.names("oidc", "bad", "cannot be used", &by_hand);
    said.names("jwt", "bad", "cannot be had", &by_hand);
    // Without a running server, what it would use is asked.
    world.aditd.stop().await;
    doctor(&world).await.names("oidc", "bad", "cannot be used", &by_hand);
    provider.tell("down", json!({ "is": false })).await;
    assert_eq!(doctor(&world).await.verdict("oidc"), "ok");
    let secret = provider.secret_file();
    chmod(&secret, 0o644);
    let cure = format!("chmod 600 '{}'", secret.display());
    doctor(&world).await.names("config", "bad", "can be read by other users", &cure);
    // A provider that is not what the settings say.
    chmod(&secret, 0o600);
    let config = fs::read_to_string(world.config()).expect("read");
    let other = config.replace(&*issuer, &issuer.replace("127.0.0.1", "localhost"));
    fs::write(world.config(), other).expect("written");
    let said = doctor(&world).await;
    said.names("oidc", "bad", "write `issuer` exactly so", "/.well-known/openid-configuration'");
}
