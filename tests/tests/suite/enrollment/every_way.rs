//! Every way to enroll a device has the same results: a row in the register, a line in the audit
//! log, and a server that knows the device at once. The owner of its name is remembered.

use std::path::PathBuf;

use common::machine::{control, report::Exit};
use proto::wire::{EnrollAnswer, Enrolled};
use serde_json::{Value, json};
use server::{Answer, Request};
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    credentials::{new_key, parse, redeem},
    ollama::Options,
    over_ssh::OverSsh,
    state_files::{chmod, devices, text},
    unprivileged::Ordinary,
    world::World,
};

use crate::PROGRAM;

/// A world whose server lets a group enroll devices, and a member who may not read the state:
/// `nobody`, if the test runs as root.
struct Members {
    world: World,
    member: Ordinary,
    dir: tempfile::TempDir,
}

impl Members {
    async fn start() -> Option<Self> {
        let member = Ordinary::new(PROGRAM)?;
        let dir = tempfile::tempdir().expect("a directory");
        // The member needs access to the configuration and to the socket.
        chmod(dir.path(), 0o711);
        let config = dir.path().join("aditd.toml");
        let socket = format!(
            "enroll_socket = '{}'\nlimits.tokens_per_day = 100",
            dir.path().join("enroll.sock").display()
        );
        std::fs::write(&config, socket).expect("written");
        chmod(&config, 0o644);
        let flags = ["--enroll-group", &member.group(), "--config", text(&config)];
        let world = World::start_with(PROGRAM, Options::default(), &flags).await;
        Some(Self { world, member, dir })
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("aditd.toml")
    }

    async fn by_owner(&self, name: &str) -> OverSsh {
        let mut command = self.world.programs.command("aditd", &["enroll-device", name]);
        command.env("ADITD_STATE_DIR", self.world.state()).env("ADITD_CONFIG", self.config());
        OverSsh::enroll(command, &new_key()).await
    }

    async fn by_member(&self, name: &str) -> OverSsh {
        let mut command = self.member.command("aditd", &["enroll-device", name]);
        command
            .env("ADITD_STATE_DIR", self.dir.path().join("state"))
            .env("ADITD_CONFIG", self.config());
        OverSsh::enroll(command.into(), &new_key()).await
    }

    /// The lines of the audit log about a device, once there are `many`.
    async fn lines(&self, name: &str, many: usize) -> Vec<Value> {
        self.world.audit_has(many, |line| line["device"] == name).await
    }

    async fn revoke_and_forget(&self, name: &str) {
        for command in ["revoke", "forget"] {
            assert_ok(&self.world.aditd(&["device", command, name]).await);
        }
    }
}

#[tokio::test]
async fn every_way_to_enroll_adds_a_row_and_an_audit_line_and_the_server_knows_the_device() {
    let Some(members) = Members::start().await else { return };
    let world = &members.world;
    let own = nix::unistd::getuid().as_raw();
    let member = members.member.uid();
    let invitation = parse(&world.invite_as("by-code", "infer").await);
    let EnrollAnswer::Enrolled(by_code) = redeem(&invitation, &new_key()).await else {
        panic!("refused")
    };
    let by_owner = members.by_owner("by-owner").await.enrolled().await;
    let by_member = members.by_member("by-member").await.enrolled().await;
    for (enrolled, uid, by) in [
        (*by_code, None, None),
        (by_owner, Some(own), Some(json!({"ssh": own}))),
        (by_member, Some(member), Some(json!({"ssh": member}))),
    ] {
        let Enrolled { device, device_id, .. } = enrolled;
        // The server answers only for devices that it knows.
        let tokens = Request::Tokens { device: device_id };
        let known = control::ask::<_, Answer>(&world.state(), &tokens).await.expect("it answers");
        assert!(matches!(known, Some(Answer::Tokens(Some(_)))), "{device}: {known:?}");
        let rows = devices(world).await;
        let row = rows.iter().find(|row| row["name"] == device.as_str()).expect("a row");
        assert_eq!((&row["id"], &row["uid"]), (&json!(device_id), &json!(uid)));
        assert_eq!(row["role"], "infer");
        let lines = members.lines(device.as_str(), 1).await;
        let lines: Vec<_> = lines.iter().filter(|line| line["event"] == "enroll").collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0]["device_id"], json!(device_id));
        assert_eq!(lines[0]["device_uid"], json!(uid));
        match by {
            Some(by) => assert_eq!(lines[0]["by"], by),
            None => assert!(lines[0]["by"]["invitation"].is_string(), "{lines:?}"),
        }
    }
    let shown = world.aditd(&["device", "show", "by-member"]).await.stdout;
    assert!(shown.contains(&format!("(uid {member})\n")), "{shown}");
}

#[tokio::test]
async fn every_refused_enrollment_is_in_the_audit_log() {
    let Some(members) = Members::start().await else { return };
    let invitation = parse(&members.world.invite("laptop").await);
    redeem(&invitation, &new_key()).await;
    // Refused: the code is used, and the name is taken, twice.
    redeem(&invitation, &new_key()).await;
    assert!(members.by_owner("laptop").await.answer.is_err());
    assert!(members.by_member("laptop").await.answer.is_err());
    // The other lines: invited, enrolled.
    let lines = members.lines("laptop", 5).await;
    let refused: Vec<_> =
        lines.iter().filter(|line| line["event"] == "enroll_refused").map(|l| &l["by"]).collect();
    assert_eq!(refused.len(), 3, "{lines:?}");
    assert!(refused[0]["invitation"].is_string(), "{refused:?}");
    let uids = [nix::unistd::getuid().as_raw(), members.member.uid()];
    assert_eq!(refused[1..], [&json!({"ssh": uids[0]}), &json!({"ssh": uids[1]})]);
}

#[tokio::test]
async fn a_freed_name_is_not_given_to_another_user_unless_the_owner_allows_it() {
    let Some(members) = Members::start().await else { return };
    if !members.member.as_root && tests::skip::skip_test("there is only one user") {
        return;
    }
    let world = &members.world;
    members.by_owner("root-laptop").await.enrolled().await;
    members.revoke_and_forget("root-laptop").await;
    let refused = members.by_member("root-laptop").await;
    let free = "aditd device forget root-laptop --free-name";
    let what = "the name `root-laptop` was that of a device of another user (uid 0)";
    refused.assert_failed(what, free, Exit::Failed);
    members.by_owner("root-laptop").await.enrolled().await;
    members.revoke_and_forget("root-laptop").await;
    // The command of the hint.
    let words: Vec<_> = free.split(' ').skip(1).collect();
    assert_ok(&world.aditd(&words).await);
    members.by_member("root-laptop").await.enrolled().await;
    let freed = members.lines("root-laptop", 9).await;
    let freed = freed.iter().find(|line| line["event"] == "free_name").expect("a line");
    assert_eq!(freed["device_uid"], 0);
    let nothing = world.aditd(&["device", "forget", "nobodys", "--free-name"]).await;
    assert_told(&nothing, FAILED, &["there is no device `nobodys`"]);

    // The owner may reuse a name that was given by an invitation.
    world.device("code-laptop").await;
    members.revoke_and_forget("code-laptop").await;
    let refused = members.by_member("code-laptop").await;
    let what = "the name `code-laptop` was that of a device of somebody else";
    refused.assert_failed(what, "--free-name", Exit::Failed);
    world.invite("code-laptop").await;
    let refused = members.by_member("code-laptop").await;
    refused.assert_failed(what, "--free-name", Exit::Failed);
    world.invite("new-laptop").await;
    let refused = members.by_member("new-laptop").await;
    let what = "an invitation for `new-laptop` is open";
    refused.assert_failed(what, "aditd device revoke new-laptop", Exit::Failed);
}
