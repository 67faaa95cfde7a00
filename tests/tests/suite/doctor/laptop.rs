//! What `adit doctor` says of the laptop itself.

use std::{fs, time::Duration};

use tests::{
    cli_assert::{FAILED, NOT_ALLOWED, USAGE, assert_ok, assert_told},
    doctor::{Diagnosis, Upstream},
    ollama::Options,
    process::Ended,
    raw,
    state_files::{chmod, identity_file},
    world::{Device, SOON, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

/// A world whose Ollama answers all that a doctor asks.
async fn world() -> (World, Upstream) {
    let ollama = Upstream::ollama("127.0.0.1:0", |_| None).await;
    let upstream = format!("http://{}", ollama.address);
    let world = World::start_with(PROGRAM, Options::default(), &["--upstream", &upstream]).await;
    (world, ollama)
}

async fn doctor(device: &Device) -> Diagnosis {
    Diagnosis::of(device.adit(&["doctor", "--json"], "").await)
}

/// The same with these variables.
async fn doctor_with(world: &World, device: &Device, variables: &[(&str, &str)]) -> Diagnosis {
    let mut command = world.programs.command("adit", &["doctor", "--json"]);
    command.arg("--state-dir").arg(&device.dir).envs(variables.iter().copied());
    Diagnosis::of(Ended::from(command.output().await.expect("it runs")))
}

#[tokio::test]
async fn a_device_that_is_not_enrolled_is_told_how_to_and_nothing_else_is_tried() {
    let world = World::start(PROGRAM).await;
    let diagnosis = doctor(&world.stranger("laptop")).await;
    diagnosis.names("identity", "bad", "this device is not enrolled", "adit enroll");
    assert_eq!(diagnosis.ended.code, Some(FAILED));
    for id in ["certificate", "udp", "ssh", "session", "aditd"] {
        assert_eq!(diagnosis.found(id), "not checked: needs `device`");
    }
}

#[tokio::test]
async fn an_open_key_is_told_with_its_chmod_and_what_a_tool_is_told_is_told_too() {
    let (world, _ollama) = world().await;
    let device = world.device("laptop").await;
    let identity = identity_file(&device);
    chmod(&identity, 0o644);
    let variables = [
        ("HTTP_PROXY", "http://me:hunter2@proxy.example:3128"),
        ("OLLAMA_HOST", "gpu.example:11434"),
    ];
    let diagnosis = doctor_with(&world, &device, &variables).await;
    let cure = format!("chmod 600 '{}'", identity.display());
    diagnosis.names("state", "bad", "can be read by other users (mode 644)", &cure);
    diagnosis.names(
        "proxy",
        "warn",
        "HTTP_PROXY sends the requests of tools to http://proxy.example:3128",
        "export NO_PROXY='localhost,127.0.0.1,::1'",
    );
    diagnosis.names(
        "ollama_host",
        "warn",
        "sends `ollama` to gpu.example:11434, past adit",
        "unset OLLAMA_HOST",
    );
    assert!(!diagnosis.ended.stdout.contains("hunter2"), "{diagnosis:?}");
    chmod(&identity, 0o600);
    let variables = [
        ("HTTP_PROXY", "http://proxy.example:3128"),
        ("NO_PROXY", "localhost,127.0.0.1"),
        ("OLLAMA_HOST", ""),
    ];
    let diagnosis = doctor_with(&world, &device, &variables).await;
    for id in ["state", "identity", "certificate", "proxy", "ollama_host"] {
        assert_eq!(diagnosis.verdict(id), "ok", "{:#?}", diagnosis.line(id));
    }
}

#[tokio::test]
async fn a_certificate_that_has_ended_and_a_file_of_another_user_are_told() {
    let world = World::start_with(PROGRAM, Options::default(), &["--device-life", "1s"]).await;
    let device = world.device("laptop").await;
    let ended = async {
        loop {
            let diagnosis = doctor(&device).await;
            if diagnosis.verdict("certificate") != "ok" {
                return diagnosis;
            }
        }
    };
    let diagnosis = tokio::time::timeout(SOON, ended).await.expect("it ends");
    diagnosis.names("certificate", "warn", "renews itself at the next connection", "adit up");
    diagnosis.names("session", "not_checked", "needs a certificate that has not ended", "adit up");
    if rustix::process::geteuid().is_root() {
        let identity = identity_file(&device);
        std::os::unix::fs::chown(&identity, Some(54_321), None).expect("chown");
        let diagnosis = doctor(&device).await;
        diagnosis.names(
            "state",
            "bad",
            "belongs to another user (uid 54321)",
            "sudo chown --no-dereference",
        );
    }
}

#[tokio::test]
async fn with_adit_up_all_of_the_way_is_ok_and_the_box_tells_its_administrator_all() {
    let (world, _ollama) = world().await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let diagnosis = doctor(&device).await;
    assert_eq!(diagnosis.ended.code, Some(0), "{diagnosis:#?}");
    assert_eq!(
        diagnosis.with("way", "ok"),
        ["names", "udp", "ssh", "session", "carrier", "version", "probe", "skew", "mtu", "request"]
    );
    assert!(diagnosis.found("request").contains("version 0.33.0"), "{diagnosis:?}");
    for id in ["aditd", "box_state", "ollama", "exposed", "models", "devices", "device"] {
        assert_eq!(diagnosis.verdict(id), "ok", "{:#?}", diagnosis.line(id));
    }
    // Tools have to be told where it listens.
    let cure = format!("export OLLAMA_HOST=http://localhost:{}", up.address.port());
    diagnosis.names("ollama_host", "warn", "adit listens on port", &cure);
    // It is the running tunnel that was looked at.
    assert_eq!(world.status().await["sessions"].as_array().map(Vec::len), Some(1));
    assert_eq!(device.status().await["tunnel"]["state"], "up");
}

#[tokio::test]
async fn a_device_with_limits_is_told_how_near_they_are_and_nothing_of_others() {
    let ollama = Upstream::ollama("127.0.0.1:0", |_| None).await;
    let upstream = format!("http://{}", ollama.address);
    let config = "[limits]\ntokens_per_day = 100\nat_once = 3\nbody = '1MiB'\n[roles.infer]\nmodels = ['llama3*']";
    let flags = ["--upstream", &upstream];
    let world = World::start_configured(PROGRAM, Options::default(), &flags, config).await;
    world.device("secretly-enrolled").await;
    let device = world.device_as("laptop", "infer").await;
    let diagnosis = doctor(&device).await;
    let box_lines: Vec<_> = diagnosis
        .lines
        .iter()
        .filter(|line| line["group"] == "box")
        .map(|line| &line["id"])
        .collect();
    assert_eq!(box_lines, ["ollama", "exposed", "origins", "device"]);
    let found = diagnosis.found("device");
    assert_eq!(
        found,
        "laptop has the role `infer`; only the models llama3*; 0 of 100 tokens today; 0 of 3 requests at once; bodies up to 1 MiB"
    );
    let said = &diagnosis.ended.stdout;
    for hidden in ["secretly-enrolled", world.state().to_str().expect("a path")] {
        assert!(!said.contains(hidden), "{said}");
    }
}

#[tokio::test]
async fn limits_that_are_nearly_and_that_are_wholly_used_up_are_told() {
    let config = "[limits]\ntokens_per_day = 1000\nat_once = 1\n";
    let options = Options { token_interval: Duration::from_millis(5), ..Options::default() };
    let world = World::start_configured(PROGRAM, options, &[], config).await;
    let device = world.device_as("laptop", "infer").await;
    let up = device.up(&[]).await;
    let raise = "sudoedit /etc/adit/aditd.toml && sudo aditd reload";

    // An answer without an end takes the only place.
    let mut endless = raw::connect(up.address).await;
    endless.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    world.ollama.wait_for(|now| now.running == 1, SOON).await.expect("it runs");
    doctor(&device).await.names("device", "warn", "the next one gets 429", raise);
    drop(endless);
    world.ollama.wait_for(|now| now.running == 0, SOON).await.expect("it has ended");

    for (until, verdict, says) in
        [(800, "warn", " of 1000 tokens today"), (1000, "bad", "The day's tokens are used up")]
    {
        let used = async {
            while used(&world).await < until {
                raw::exchange(up.address, &raw::generate(30, 1)).await;
            }
        };
        tokio::time::timeout(2 * SOON, used).await.expect("they are used");
        doctor(&device).await.names("device", verdict, says, raise);
    }
}

/// The tokens that the device has used today.
async fn used(world: &World) -> u64 {
    let shown = world.aditd(&["device", "show", "laptop", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).expect("JSON");
    shown["tokens_today"]["used"].as_u64().unwrap_or_else(|| panic!("{shown:#}"))
}

#[tokio::test]
async fn a_revoked_device_is_told_so_with_its_own_exit_code() {
    let (world, _ollama) = world().await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    let knows = async {
        while device.status().await["tunnel"]["state"] != "refused" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, knows).await.expect("it hears of it");
    let diagnosis = doctor(&device).await;
    diagnosis.names(
        "identity",
        "bad",
        "which has revoked it",
        "aditd device forget laptop && aditd invite laptop",
    );
    diagnosis.names("identity", "bad", "", "adit enroll --replace");
    assert_eq!(diagnosis.ended.code, Some(NOT_ALLOWED));
    up.end().await;
    assert_eq!(doctor(&device).await.ended.code, Some(NOT_ALLOWED));
}

#[tokio::test]
async fn several_servers_and_none_named_is_wrong_usage() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    for name in ["lab", "home"] {
        let enrolled = device.enroll(&world.invite(name).await, &["--name", name]).await;
        assert_ok(&enrolled);
    }
    let told = device.adit(&["doctor"], "").await;
    assert_told(&told, USAGE, &["enrolled at several servers: home, lab"]);
    assert!(fs::read_dir(device.dir.join("servers")).expect("a directory").count() == 2);
    let named = device.adit(&["doctor", "lab", "--json"], "").await;
    assert!(Diagnosis::of(named).found("identity").contains("at the server `lab`"));
}
