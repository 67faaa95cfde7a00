//! The code with which people sign in, before and after the CA that it names has ended.

use tests::{
    cli_assert::assert_ok,
    provider::Provider,
    signing_in::{self, SigningIn},
    world::{Device, World},
};

use super::{all_have_it, rotate};
use crate::PROGRAM;

/// Alice signs in again, with this code or with the one that the device has kept.
async fn signs_in_again(world: &World, provider: &Provider, device: &Device, code: Option<&str>) {
    let mut again = SigningIn::begin(world, device, code, &[]).await;
    again.approve(provider, "alice").await;
    let (status, said) = again.end().await;
    assert!(status.success(), "{said}");
}

#[tokio::test]
async fn a_kept_code_opens_sign_ins_until_its_ca_ends_and_a_new_one_is_kept_beside_a_tunnel() {
    let Some(provider) = Provider::start().await else { return };
    provider.person("alice", &["users"]).await;
    let world = signing_in::start(PROGRAM, &provider, &[], "").await;
    let code = signing_in::code(&world).await;
    let laptop = signing_in::enroll(&world, &provider, &code, "laptop", "alice").await;
    let up = laptop.up(&[]).await;
    rotate(&world).await;
    all_have_it(&world).await;
    signs_in_again(&world, &provider, &laptop, None).await;

    assert_ok(&world.aditd(&["ca", "retire", "--force"]).await);
    let refused = laptop.adit(&["enroll", "--sso", "--no-browser"], "").await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("older than the server's certificate auth"), "{refused:?}");
    assert_eq!(refused.stderr.matches("hint: ").count(), 1, "{refused:?}");
    for cure in ["`aditd invite --sso`", "`adit enroll --sso --new-code"] {
        assert!(refused.stderr.contains(cure), "{refused:?}");
    }
    // The tunnel goes on, and stores its profile after the new code was kept.
    let new = signing_in::code(&world).await;
    signs_in_again(&world, &provider, &laptop, Some(&new)).await;
    rotate(&world).await;
    all_have_it(&world).await;
    up.works().await;
    signs_in_again(&world, &provider, &laptop, None).await;
    laptop.up(&[]).await.works().await;
}
