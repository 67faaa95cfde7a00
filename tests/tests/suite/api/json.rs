//! Each command of `aditd` with `--json`, run as a script would: what it prints is one document, the one
//! that the API answers.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::{cli_assert::document, ollama::Options, process::Ended, world::World};

use super::done;
use crate::{
    PROGRAM,
    readme::json::{By, Page, commands},
};

/// With these the tokens of a device and of its user are told before one has been used.
const LIMITS: &str =
    "[limits]\ntokens_per_day = 1000\n[users.alice.limits]\ntokens_per_day = 2000\n";

/// A world whose commands are noted.
struct Scripted {
    world: World,
    tried: BTreeSet<String>,
    page: Page,
    /// What was printed, by commands that print no secret.
    printed: String,
}

impl Scripted {
    async fn new() -> Self {
        let world = World::start_configured(PROGRAM, Options::default(), &[], LIMITS).await;
        Self { world, tried: BTreeSet::new(), page: Page::read(), printed: String::new() }
    }

    /// The name of the command that these arguments call.
    fn command(args: &[&str]) -> String {
        let words: Vec<_> = std::iter::once("aditd").chain(args.iter().copied()).collect();
        let is_it = |(name, _): &(String, bool)| {
            let name: Vec<_> = name.split(' ').collect();
            words.starts_with(&name)
        };
        let (name, has_json) = commands().into_iter().find(is_it).expect("a command");
        assert!(has_json, "{name}");
        name
    }

    async fn run(&mut self, args: &[&str]) -> Ended {
        self.tried.insert(Self::command(args));
        self.world.aditd(&[args, &["--json"]].concat()).await
    }

    /// Runs a command of which `at` in the document is `is`.
    async fn prints(&mut self, args: &[&str], at: &str, is: impl Into<Value>) -> Value {
        let ended = self.run(args).await;
        let document = document(&ended);
        self.page.has(&Self::command(args), &document);
        assert_eq!(document.pointer(at), Some(&is.into()), "{args:?}: {document:#}");
        self.printed += &ended.stdout;
        self.printed += &ended.stderr;
        document
    }

    /// Runs a command that prints a secret in this field. Returns it.
    async fn reveals(&mut self, args: &[&str], field: &str) -> (Value, String) {
        let ended = self.run(args).await;
        let document = document(&ended);
        self.page.has(&Self::command(args), &document);
        let secret = document[field].as_str().expect("a secret").to_owned();
        assert!(!ended.stderr.contains(&secret), "{args:?}");
        (document, secret)
    }
}

#[tokio::test]
async fn each_command_prints_one_document_and_no_secret_twice() {
    let mut script = Scripted::new().await;
    let state = script.world.state().display().to_string();
    script.prints(&["init"], "/is_new", false).await;
    script.prints(&["api"], "/socket", format!("{state}/control.sock")).await;
    let mut secrets = Vec::new();
    let (invited, code) = script.reveals(&["invite", "phone", "--user", "bob"], "code").await;
    assert_eq!((&invited["role"], &invited["user"]), (&"infer".into(), &"bob".into()));
    secrets.push(code);
    script.prints(&["invite", "--list"], "/invitations/0/name", "phone").await;
    script.prints(&["device", "revoke", "phone"], "/withdrawn", "phone").await;

    let laptop = script.world.device("laptop").await;
    let up = laptop.up(&[]).await;
    script.prints(&["device", "list"], "/devices/0/name", "laptop").await;
    let shown = script.prints(&["device", "show", "laptop"], "/device/role", "admin").await;
    assert!(shown["device"]["session"]["remote"].is_string(), "{shown}");
    for (command, at, is) in [
        (&["device", "role", "laptop", "models"][..], "/device/role", "models"),
        (&["device", "models", "laptop", "stand-in"], "/device/models/0", "stand-in"),
        (&["device", "models", "laptop"], "/models/0", "stand-in"),
        (&["device", "user", "laptop", "alice"], "/device/user", "alice"),
        (&["device", "rename", "laptop", "desk"], "/device/name", "desk"),
        (&["device", "rename", "desk", "desk"], "/device/name", "desk"),
        (&["user", "list"], "/users/0/devices/0/name", "desk"),
        (&["user", "show", "alice"], "/user/name", "alice"),
        (&["user", "role", "alice", "infer"], "/user/devices/0/role", "infer"),
        (&["user", "revoke", "alice", "--reason", "on leave"], "/user/reason", "on leave"),
        (&["user", "restore", "alice"], "/user/devices/0/name", "desk"),
        (&["device", "confirm", "desk"], "/device/name", "desk"),
    ] {
        script.prints(command, at, is).await;
    }
    script.prints(&["device", "models", "desk", "--all"], "/device/models", Value::Null).await;
    script.prints(&["device", "user", "desk", "--none"], "/device/user", Value::Null).await;
    script.prints(&["device", "confirm", "--all"], "/devices", Value::Array(Vec::new())).await;
    up.end().await;
    let up = laptop.up(&[]).await;
    let revoked = script.prints(&["device", "revoke", "desk", "--reason", "lost"], "/cut", 1).await;
    assert_eq!(revoked["device"]["reason"], "lost");
    drop(up);
    script.prints(&["device", "restore", "desk"], "/device/revoked", Value::Null).await;

    let (made, secret) =
        script.reveals(&["key", "create", "ci", "--expires", "1d"], "secret").await;
    assert_eq!((&made["key"]["name"], &made["key"]["running"]), (&"ci".into(), &0.into()));
    assert_eq!(made["expires"], made["key"]["secrets"][0]["expires"]);
    secrets.push(secret);
    for (command, at, is) in [
        (&["key", "list"][..], "/keys/0/name", "ci"),
        (&["key", "show", "ci"], "/key/name", "ci"),
        (&["key", "role", "ci", "models"], "/key/role", "models"),
        (&["key", "models", "ci", "stand-in"], "/key/models/0", "stand-in"),
        (&["key", "models", "ci"], "/models/0", "stand-in"),
        (&["key", "user", "ci", "bob"], "/key/user", "bob"),
    ] {
        script.prints(command, at, is).await;
    }
    let (rotated, secret) = script.reveals(&["key", "rotate", "ci"], "secret").await;
    assert_eq!(rotated["key"]["secrets"].as_array().map(Vec::len), Some(2), "{rotated}");
    secrets.push(secret);

    is_what_the_api_answers(&script.world).await;

    assert!(
        script.prints(&["key", "revoke", "ci"], "/key/name", "ci").await["key"]["revoked"].is_i64()
    );
    script.prints(&["ca", "status"], "/cas/0/number", 1).await;
    let rotated = script.prints(&["ca", "rotate"], "/ca", 2).await;
    let shown = script.prints(&["ca", "show"], "/cas/0/number", 2).await;
    assert_eq!(rotated["sha256"], shown["cas"][0]["sha256"]);
    assert!(
        shown["cas"][1]["pem"].as_str().expect("PEM").starts_with("-----BEGIN CERT"),
        "{shown}"
    );
    let retired = script.prints(&["ca", "retire", "--force"], "/retired/0", 1).await;
    assert_eq!(retired["behind"][0]["name"], "desk");
    script.prints(&["device", "revoke", "desk"], "/device/name", "desk").await;
    script.prints(&["device", "forget", "desk", "--free-name"], "/forgotten", "desk").await;

    let config = script.world.config().display().to_string();
    script.prints(&["reload"], "/file", config).await;
    let pid = script.world.status().await["pid"].clone();
    let replaced = script.prints(&["replace"], "/before/pid", pid).await;
    let _successor = tests::world::Successor {
        pid: replaced["now"]["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a pid"),
    };
    script.prints(&["status"], "/pid", replaced["now"]["pid"].clone()).await;
    let doctor = script.run(&["doctor"]).await;
    script.page.has("aditd doctor", &serde_json::from_str(&doctor.stdout).expect("JSON"));
    let audit = script.run(&["audit"]).await;
    assert!(audit.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));

    let (file, phrase) = (script.world.scratch("backup"), script.world.scratch("phrase"));
    common::machine::files::create(&phrase, b"a long passphrase").expect("written");
    let (file, phrase) = (file.to_str().expect("a path"), phrase.to_str().expect("a path"));
    let flags = ["--passphrase-file", phrase];
    let backup = [&["backup", file, "--with-ca-key"], &flags[..]].concat();
    assert_eq!(script.prints(&backup, "/file", file).await["has_keys"], true);
    let other = script.world.scratch("other").display().to_string();
    let args = ["restore", file, "--passphrase-file", phrase, "--state-dir", &other, "--json"];
    let restored = script.world.programs.run("aditd", &args, "").await.expect("it runs");
    let restored = document(&restored);
    script.page.has("aditd restore", &restored);
    assert_eq!(restored["state_dir"], other.as_str());
    script.tried.insert("aditd restore".to_owned());

    for secret in &secrets {
        assert!(!script.printed.contains(secret.trim()), "a secret is shown once");
    }
    let of_services = |name: &str| name.starts_with("aditd service ");
    let all = commands()
        .into_iter()
        .filter(|(name, has_json)| *has_json && name.starts_with("aditd ") && !of_services(name));
    script.page.is_printed(|command| script.tried.contains(command));
    script.page.objects_are_printed(By::Aditd);
    let missed: Vec<_> =
        all.map(|(name, _)| name).filter(|name| !script.tried.contains(name)).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

/// What lists print is what the API answers, but for the names of logins, which a command looks up.
async fn is_what_the_api_answers(world: &World) {
    for (command, path) in [
        (&["device", "list"][..], "/v1/devices"),
        (&["device", "show", "desk"], "/v1/devices/desk"),
        (&["key", "list"], "/v1/keys"),
        (&["key", "show", "ci"], "/v1/keys/ci"),
        (&["user", "list"], "/v1/users"),
        (&["user", "show", "bob"], "/v1/users/bob"),
        (&["invite", "--list"], "/v1/invitations"),
        (&["ca", "status"], "/v1/ca"),
    ] {
        let printed = document(&world.aditd(&[command, &["--json"]].concat()).await);
        assert_eq!(printed, done(world, "GET", path, "").await, "{command:?}");
    }
    for (path, body) in [
        ("/v1/devices/desk/user", r#"{"user":"carol"}"#),
        ("/v1/devices/desk/user", r#"{"user":null}"#),
    ] {
        let user = done(world, "POST", path, body).await["device"]["user"].clone();
        assert!(body.contains(&user.to_string()), "{user}");
    }
    let assigned = done(world, "POST", "/v1/keys/ci/user", r#"{"user":"carol"}"#).await;
    assert_eq!(assigned["key"]["user"], "carol", "{assigned}");
}

#[tokio::test]
async fn what_fails_is_one_document_too() {
    let mut world = World::start(PROGRAM).await;
    world.device("laptop").await;
    for (command, code, what) in [
        (&["device", "revoke", "latop"][..], 1, "there is no device `latop`"),
        (&["device", "role", "laptop", "boss"], 2, "there is no role `boss`"),
        (&["device", "role", "laptop"], 2, "the following required arguments were not provided"),
        (&["device", "lst"], 2, "unrecognized subcommand 'lst'"),
        (&["key", "create", "a b"], 2, "invalid value 'a b' for '<NAME>'"),
        (&["user", "revoke", "nobody"], 1, "there is no user `nobody`"),
        (&["ca", "retire"], 1, ""),
        (&["audit", "--device", "nobody"], 1, "there is no device `nobody`"),
        (&["restore", "/nowhere/at/all"], 1, "cannot read `/nowhere/at/all`"),
    ] {
        let ended = world.aditd(&[command, &["--json"]].concat()).await;
        let told: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        let (error, schema) = (&told["error"], &told["schema"]);
        assert_eq!(
            (schema, ended.code),
            (&1.into(), error["exit"].as_i64().and_then(|it| it.try_into().ok())),
            "{ended:?}"
        );
        assert_eq!(ended.code.map(|it| it != 0), Some(true), "{ended:?}");
        if !what.is_empty() {
            assert_eq!(ended.code, Some(code), "{ended:?}");
            assert!(error["what"].as_str().expect("text").starts_with(what), "{told}");
        }
        assert!(ended.stderr.contains("error: "), "people are told as well: {ended:?}");
        let without = world.aditd(command).await;
        assert_eq!((without.code, &*without.stdout), (ended.code, ""), "{without:?}");
    }
    world.kill_server().await;
    for command in [&["status"][..], &["reload"], &["replace"]] {
        let ended = world.aditd(&[command, &["--json"]].concat()).await;
        let told: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let what = told["error"]["what"].as_str().expect("text");
        assert!(what.starts_with("aditd is not running") && ended.code == Some(1), "{told}");
    }
    let revoked = world.aditd(&["device", "revoke", "laptop", "--json"]).await;
    assert_eq!(document(&revoked)["cut"], 0);
}
