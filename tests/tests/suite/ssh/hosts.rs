//! Whether an sshd is the right one: known, unknown, changed and revoked keys, and host CAs.

use tests::{
    laptop::Laptop,
    sshd::{keygen, user_name},
    terminal::Terminal,
};

use crate::PROGRAM;

const UNKNOWN: &str = "is not known";

fn known_hosts(laptop: &Laptop) -> String {
    std::fs::read_to_string(laptop.sshd.dir.join("known_hosts")).expect("read")
}

#[tokio::test]
async fn without_a_terminal_an_unknown_host_is_refused_whatever_the_configuration_says() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    laptop.sshd.know("");
    for strict in ["yes", "ask", "accept-new", "no"] {
        laptop.sshd.client(&format!("StrictHostKeyChecking {strict}\n"));
        let refused = laptop.enroll(&world, &[]).await;
        assert_eq!(refused.code, Some(1), "{strict}");
        assert!(
            refused.stderr.contains(UNKNOWN) && refused.stderr.contains("SHA256:"),
            "{strict}: {}",
            refused.stderr
        );
        // Also for a device that is enrolled, which `adit enroll` would refuse.
        let ask = if strict == "yes" { " -o StrictHostKeyChecking=ask`" } else { "127.0.0.1`" };
        let cure = format!("accept it once at a terminal: `{}", laptop.sshd.dir.display());
        assert!(
            refused.stderr.contains(&cure) && refused.stderr.contains(ask),
            "{strict}: {}",
            refused.stderr
        );
    }
    assert_eq!(known_hosts(&laptop), "", "nothing was learned");
}

#[tokio::test]
async fn at_a_terminal_an_unknown_host_is_asked_about_and_a_yes_is_stored() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    laptop.sshd.know("# mine, without a newline");
    laptop.sshd.client("StrictHostKeyChecking accept-new\n");
    let args = ["enroll", &laptop.sshd.url, "--device", "laptop"];
    let mut terminal = laptop.at_a_terminal(&world, &args);
    terminal.shows("(yes/no/[fingerprint])?").await;
    terminal.types("no").await;
    assert_eq!(terminal.ended().await, Some(1));
    assert!(terminal.screen().contains("was not accepted"), "{}", terminal.screen());
    assert_eq!(known_hosts(&laptop), "# mine, without a newline");
    let mut terminal = laptop.at_a_terminal(&world, &args);
    terminal.shows("SHA256:").await;
    terminal.shows("adit asks").await;
    terminal.shows("(yes/no/[fingerprint])?").await;
    terminal.types("maybe").await;
    terminal.shows("Please type").await;
    terminal.types("yes").await;
    assert_eq!(terminal.ended().await, Some(0), "{}", terminal.screen());
    let line = laptop.sshd.line();
    assert!(
        known_hosts(&laptop)
            .contains(line.rsplit_once(' ').map_or(line.as_str(), |(line, _)| line)),
        "{}",
        known_hosts(&laptop)
    );
    // ssh agrees, and asks no more.
    let ssh = std::process::Command::new(&laptop.sshd.ssh);
    let mut ssh = ssh;
    let seen = ssh
        .args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
            "--",
            &laptop.sshd.url,
            "true",
        ])
        .output();
    assert!(seen.as_ref().is_ok_and(|out| out.status.success()), "{seen:?}");
    laptop.enrolled(&world, &[]).await;
}

#[tokio::test]
async fn a_changed_host_key_is_refused_with_the_line_of_the_old_one_and_a_cure() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    laptop.sshd.key("other", &["-t", "ed25519", "-N", ""]);
    laptop.sshd.know(&format!("# old\n{} {}", laptop.sshd.name(), laptop.sshd.public("other")));
    laptop.sshd.client("StrictHostKeyChecking no\n");
    let mut terminal =
        laptop.at_a_terminal(&world, &["enroll", &laptop.sshd.url, "--device", "laptop"]);
    assert_eq!(terminal.ended().await, Some(1), "no question: {}", terminal.screen());
    for said in [
        "HAS CHANGED",
        "SHA256:",
        "known_hosts:2",
        "ssh-keygen -f",
        &format!("-R '{}'", laptop.sshd.name()),
    ] {
        assert!(terminal.screen().contains(said), "{said}: {}", terminal.screen());
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_even_if_it_is_known() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    laptop.sshd.know(&laptop.sshd.line());
    // The known_hosts file of all users.
    let revoked = format!("@revoked * {}", laptop.sshd.public("host"));
    std::fs::write(laptop.sshd.dir.join("global_known_hosts"), revoked).expect("written");
    let refused = laptop.enroll(&world, &[]).await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("REVOKED") && refused.stderr.contains("global_known_hosts:1"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_host_ca_is_accepted_for_its_hosts_and_no_others() {
    let Some((world, mut laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let authority = laptop.sshd.key("authority", &["-t", "ed25519", "-N", ""]);
    let host = laptop.sshd.dir.join("host.pub");
    let certify = |principal: &str| {
        let sign =
            ["-q", "-s", authority.to_str().expect("a path"), "-h", "-I", "test", "-n", principal];
        let signed = std::process::Command::new("ssh-keygen").args(sign).arg(&host).output();
        assert!(signed.as_ref().is_ok_and(|out| out.status.success()), "{signed:?}");
    };
    certify("127.0.0.1");
    let certificate = format!("HostCertificate {}/host-cert.pub\n", laptop.sshd.dir.display());
    laptop.sshd.configure(&certificate).await;
    laptop.sshd.know(&format!("@cert-authority [127.0.0.*]:* {}", laptop.sshd.public("authority")));
    laptop.enrolled(&world, &[]).await;
    certify("elsewhere");
    laptop.sshd.kill();
    laptop.sshd.restart().await;
    let refused = laptop.enroll(&world, &[]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains(UNKNOWN), "{}", refused.stderr);
    assert!(refused.stderr.contains("it is for another host"), "{}", refused.stderr);
    // An unknown CA does not matter if the key itself is known.
    laptop.sshd.know(&laptop.sshd.line());
    laptop.enrolled(&world, &[]).await;
}

#[tokio::test]
async fn hashed_names_patterns_and_unknown_key_types_are_read_as_ssh_reads_them() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let (name, key) = (laptop.sshd.name(), laptop.sshd.public("host"));
    let noise = format!(
        "{name} ssh-xyz QUJD\n{name} ssh-ed25519 !!\n@strange {name} {key}\nnonsense\n\n# {name} x\n"
    );
    laptop.sshd.know(&format!("{noise}{}", laptop.sshd.line()));
    laptop.enrolled(&world, &[]).await;
    laptop.sshd.know(&format!("{noise}[127.0.0.*]:*,!{name} {key}"));
    let refused = laptop.enroll(&world, &[]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains(UNKNOWN), "{}", refused.stderr);
    laptop.sshd.know(&format!("{noise}[127.0.0.*]:* {key}"));
    laptop.enrolled(&world, &[]).await;
    laptop.sshd.know(&laptop.sshd.line());
    let hashed = std::process::Command::new("ssh-keygen")
        .arg("-H")
        .arg("-f")
        .arg(laptop.sshd.dir.join("known_hosts"))
        .output();
    assert!(
        hashed.as_ref().is_ok_and(|out| out.status.success())
            && known_hosts(&laptop).starts_with("|1|"),
        "{hashed:?}"
    );
    laptop.enrolled(&world, &[]).await;
}

#[tokio::test]
async fn a_host_with_several_keys_is_asked_for_the_known_one() {
    let Some((world, mut laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    for (name, arguments) in [
        ("host_rsa", ["-t", "rsa", "-b", "2048", "-N", ""]),
        ("host_ecdsa", ["-t", "ecdsa", "-b", "256", "-N", ""]),
    ] {
        keygen(&laptop.sshd.dir.join(name), &arguments);
    }
    let d = laptop.sshd.dir.display().to_string();
    laptop.sshd.configure(&format!("HostKey {d}/host_rsa\nHostKey {d}/host_ecdsa\n")).await;
    for name in ["host_rsa", "host_ecdsa", "host"] {
        laptop.sshd.know(&format!("{} {}", laptop.sshd.name(), laptop.sshd.public(name)));
        laptop.enrolled(&world, &[]).await;
    }
}

#[tokio::test]
async fn host_key_alias_is_the_name_in_known_hosts() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let port = laptop.sshd.address.port();
    let user = user_name();
    laptop.sshd.client(&format!(
        "Host gpu\nHostName 127.0.0.1\nPort {port}\nUser {user}\nHostKeyAlias the-box\nHost *\n"
    ));
    laptop.sshd.know(&format!("the-box {}", laptop.sshd.public("host")));
    let enrolled = laptop.adit(&world, &["enroll", "ssh://gpu", "--device", "laptop"]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
}
