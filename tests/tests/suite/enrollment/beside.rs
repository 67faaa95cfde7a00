//! Commands beside a running server use its settings, whatever their own configuration says.

use proto::invitation::Invitation;
use serde_json::Value;
use tests::{
    cli_assert::{USAGE, assert_ok, assert_told},
    ollama::Options,
    state_files::text,
    world::World,
};

use crate::PROGRAM;

#[tokio::test]
async fn commands_use_the_roles_addresses_and_audit_log_of_the_running_server() {
    let config = "audit_dir = '{dir}/log'\nadvertise = ['gpu.lan:7']\nroles.mine.allow = ['GET /']";
    let mut world = World::start_configured(PROGRAM, Options::default(), &[], config).await;
    let address = world.address().await.to_string();
    let invited = world.aditd(&["invite", "laptop", "--advertise", &address]).await;
    assert_ok(&invited);
    assert_ok(&world.stranger("laptop").enroll(&invited.stdout, &[]).await);
    let other = world.scratch("other.toml");
    let elsewhere = world.scratch("elsewhere");
    let settings = format!(
        "audit_dir = '{}'\nadvertise = ['other.lan:8']\nroles.other.allow = ['GET /']",
        elsewhere.display()
    );
    for text_of_other in [settings.as_str(), "nonsense = 1", "listen = ["] {
        std::fs::write(&other, text_of_other).expect("written");
        let run =
            async |args: &[&str]| world.aditd(&[args, &["--config", text(&other)]].concat()).await;
        assert_ok(&run(&["device", "role", "laptop", "mine"]).await);
        let refused = run(&["device", "role", "laptop", "other"]).await;
        assert_told(&refused, USAGE, &["there is no role `other`", "mine", "`aditd reload`"]);
        let invited = run(&["invite", "desk", "--role", "mine"]).await;
        assert_ok(&invited);
        let code: Invitation = invited.stdout.parse().expect("a code");
        assert_eq!(code.addresses, ["gpu.lan:7"]);
        assert_ok(&run(&["device", "revoke", "desk"]).await);
        let list = run(&["device", "list"]).await;
        assert_ok(&list);
        assert!(!list.stdout.contains("not in the configuration"), "{}", list.stdout);
        let log = run(&["audit", "--json", "--device", "laptop"]).await;
        assert_ok(&log);
        let last: Value =
            serde_json::from_str(log.stdout.lines().last().expect("a line")).expect("JSON");
        assert_eq!((&last["event"], &last["role"]), (&"role".into(), &"mine".into()));
    }
    assert!(!elsewhere.exists(), "nothing is written where the server does not look");

    // Without a server the command's own configuration applies.
    world.kill_server().await;
    std::fs::write(&other, settings).expect("written");
    let role = ["device", "role", "laptop", "other", "--config", text(&other)];
    assert_ok(&world.aditd(&role).await);
    assert!(elsewhere.exists());
}
