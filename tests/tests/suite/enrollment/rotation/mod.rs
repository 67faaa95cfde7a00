//! The server gets a new certificate authority: no answer is cut, and no device is left behind
//! without a word.

mod asleep;
mod clocks;
mod crashes;
mod knocks;
mod restored;
mod sign_in;

use std::{future::Future, time::Duration};

use common::transport::frame;
use proto::wire::{Code, DEFAULT_SERVICE, RenewAnswer, StreamHead};
use serde_json::Value;
use tests::{
    cli_assert::assert_ok,
    ollama::Options,
    raw,
    state_files::{profile, stored},
    stranger::{Gate, Outcome, ask},
    world::{Device, SOON, World},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::PROGRAM;

/// What `aditd ca status` says.
async fn status(world: &World) -> Value {
    let status = world.aditd(&["ca", "status", "--json"]).await;
    assert_ok(&status);
    serde_json::from_str(&status.stdout).expect("JSON")
}

/// The states of the CAs, oldest first.
async fn states(world: &World) -> Vec<String> {
    let status = status(world).await;
    let all = status["cas"].as_array().expect("a list").iter();
    all.map(|ca| ca["state"].as_str().expect("text").to_owned()).collect()
}

/// The devices that do not have the newest CA.
async fn behind(world: &World) -> Vec<String> {
    let status = status(world).await;
    let all = status["behind"].as_array().expect("a list").iter();
    all.map(|device| device["name"].as_str().expect("a name").to_owned()).collect()
}

async fn rotate(world: &World) {
    assert_ok(&world.aditd(&["ca", "rotate"]).await);
}

/// Waits until something is so.
async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits until every device has the newest CA.
async fn all_have_it(world: &World) {
    until("every device has it", || async { behind(world).await.is_empty() }).await;
}

/// Lets a device come, and waits until it has the newest CA.
async fn gets_it(world: &World, device: &Device, name: &str) {
    let up = device.up(&[]).await;
    until(name, || async { !behind(world).await.iter().any(|behind| behind == name) }).await;
    up.works().await;
}

/// The CA that a device trusts.
fn trusted(device: &Device) -> String {
    stored(device)["ca"].as_str().expect("a certificate").to_owned()
}

#[tokio::test]
async fn a_device_that_answers_gets_the_new_ca_in_the_tunnel_and_loses_no_byte() {
    let options = Options { token_interval: Duration::from_millis(2), ..Options::default() };
    let mut world = World::start_with(PROGRAM, options, &[]).await;
    let (device, code) = (world.device("laptop").await, world.invite("desk").await);
    let (before, old) = (trusted(&device), profile(&device));
    let mut up = device.up(&[]).await;
    let request = raw::generate(1500, 7);
    let expected = raw::exchange(world.ollama.addr(), &request).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = raw::read_exactly(&mut app, 2000).await;
    rotate(&world).await;
    all_have_it(&world).await;
    assert_ne!(trusted(&device), before, "it is stored");
    assert!(profile(&device).enrolled.knock_key != old.enrolled.knock_key, "and the knock key");
    // The answer was still running when that was done.
    let at_rotation = answer.len();
    app.read_to_end(&mut answer).await.expect("read");
    assert!(answer.len() > at_rotation + 1000);
    let answer = String::from_utf8(answer).expect("text");
    assert!(raw::without_date(&answer) == raw::without_date(&expected), "a byte is lost");
    assert_eq!(up.adit.log().matches("connected to").count(), 1, "{}", up.adit.log());

    // A new session, in both directions by the new CA.
    assert_eq!(states(&world).await, ["old", "current"]);
    up.adit.kill().await;
    device.up(&[]).await.works().await;
    world.kill_server().await;
    world.restart_server().await;
    device.up(&[]).await.works().await;
    // A code of before still enrolls, and then the device gets the new CA.
    let desk = world.stranger("desk");
    assert_ok(&desk.enroll(&code, &[]).await);
    gets_it(&world, &desk, "desk").await;
    assert_eq!(trusted(&desk), trusted(&device));
    assert_eq!(profile(&desk).enrolled.services[0].name.as_str(), DEFAULT_SERVICE);
    assert!(behind(&world).await.is_empty());
    // It ends together with the CA that it names.
    let code = world.invite("tablet").await;
    rotate(&world).await;
    let ended = world.aditd(&["ca", "retire", "--force"]).await;
    assert!(ended.stderr.contains("1 open invitation has ended"), "{}", ended.stderr);
    let tablet = world.stranger("tablet");
    let refused = tablet.enroll(&code, &[]).await;
    assert!(refused.code != Some(0) && refused.stderr.contains("aditd invite"), "{refused:?}");
    assert_ok(&tablet.enroll(&world.invite("tablet").await, &[]).await);
    world.audit_has(1, |line| line["event"] == "ca_rotate" && line["ca"] == 2).await;
}

#[tokio::test]
async fn an_older_adit_stays_with_the_ca_that_it_knows_until_that_one_ends() {
    let gate = Gate::start(PROGRAM).await;
    rotate(&gate.world).await;
    // It says nothing of CAs in its greeting, so it gets nothing that it could not read.
    let own = || Some(gate.profile.certified_key().expect("a certificate"));
    let Outcome::In(connection) = gate.attempt(own()).await else { panic!("it is let in") };
    let renewed = ask(&connection, &StreamHead::Renew.encode()).await.expect("renewed");
    let renewed: RenewAnswer = frame::read(&mut &renewed[..]).await.expect("an answer");
    assert!(renewed.new_ca.is_none());
    assert_eq!(behind(&gate.world).await, ["laptop"]);
    assert_ok(&gate.world.aditd(&["ca", "retire", "--force"]).await);
    let refused = ask(&connection, &StreamHead::Renew.encode()).await;
    assert_eq!(refused, Err(Code::CaRetired), "its CA signs nothing any more");
    assert_eq!(gate.attempt(own()).await.code(), Code::CaRetired as u64);
}
