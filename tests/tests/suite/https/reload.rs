//! `aditd reload` puts changed settings of the listener in force, and says what needs a restart.

use std::{path::Path, time::Duration};

use tests::{cli_assert::assert_ok, ollama::Options, process::Ended, world::World};

use super::{Https, address, endless::Endless, own_certificate};
use crate::PROGRAM;

const PAGE: &str = "Origin: https://chat.example.com";

impl Https {
    async fn reload(&self, table: &str) -> Ended {
        std::fs::write(self.world.config(), format!("[https]\n{table}\n")).expect("written");
        self.world.aditd(&["reload"]).await
    }

    /// How curl ends that asks by the name `gpu.example.com`; 60 if the certificate has no such name.
    async fn by_another_name(&self) -> Option<i32> {
        let named = format!("gpu.example.com:{}", self.address.port());
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--noproxy", "*", "--max-time", "60", "--output", "/dev/null"]);
        curl.arg("--cacert").arg(&self.ca).args(["--resolve", &format!("{named}:127.0.0.1")]);
        let ended = curl.arg(format!("https://{named}/api/tags")).output().await;
        ended.expect("curl runs").status.code()
    }
}

/// Makes a certificate for `localhost`, and its key, in files of this directory. The settings that
/// name them.
fn make(dir: &Path) -> String {
    own_certificate(dir);
    let (cert, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    format!("tls_cert = '{}'\ntls_key = '{}'", cert.display(), key.display())
}

#[tokio::test]
async fn origins_names_and_files_of_the_certificate_are_in_force_after_a_reload() {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    // A sandbox may read no file that is elsewhere: that is a test of its own.
    let mut https = Https::start_with(options, "", &["--no-sandbox"]).await;
    let key = https.key("page", &[]).await;
    let mut running = Endless::begun(&https, &key).await;
    let asks = ["--header", PAGE];
    assert_eq!(https.with_key(&key, "/api/tags", &asks).await.status, 403);
    assert_eq!(https.by_another_name().await, Some(60));

    let table = "origins = ['https://chat.example.com']\nnames = ['gpu.example.com']";
    let done = https.reload(table).await;
    assert_ok(&done);
    assert!(!done.stderr.contains("restart"), "{done:?}");
    let got = https.with_key(&key, "/api/tags", &asks).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(https.by_another_name().await, Some(0));

    // A bad file changes nothing of all that.
    let dir = tempfile::tempdir().expect("a directory");
    let files = make(dir.path());
    let own = std::mem::replace(&mut https.ca, dir.path().join("tls.crt"));
    let bad = https.reload(&files.replace("tls.key", "tls.crt")).await;
    assert!(bad.code == Some(2) && bad.stderr.contains("have not changed"), "{bad:?}");
    assert_eq!(https.with_key(&key, "/api/tags", &[]).await.code, Some(60));
    assert_ok(&https.reload(&files).await);
    assert_eq!(https.with_key(&key, "/api/tags", &[]).await.status, 200);
    assert_eq!(https.with_key(&key, "/api/tags", &asks).await.status, 403);
    let status = https.world.status().await;
    let file = status["https"]["certificate"]["file"].as_str();
    assert!(file.is_some_and(|file| file.ends_with("/tls.crt")), "{status}");
    // The files are followed from now on.
    make(dir.path());
    let renewed = async {
        while https.with_key(&key, "/api/tags", &[]).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("the new one is in use");
    assert_ok(&https.reload("").await);
    https.ca = own;
    assert_eq!(https.with_key(&key, "/api/tags", &[]).await.status, 200);
    running.goes_on().await;
    let now = https.world.ollama.counters();
    assert_eq!((now.running, now.cancelled), (1, 0), "what runs was not cut");
}

#[tokio::test]
async fn files_of_a_certificate_that_the_sandbox_hides_are_refused_with_a_cure() {
    let https = Https::start(Options::default(), "").await;
    let sandbox = https.world.status().await["sandbox"].clone();
    let dir = tempfile::tempdir().expect("a directory");
    let refused = https.reload(&make(dir.path())).await;
    if sandbox["files"] == true {
        assert_ne!(refused.code, Some(0), "{refused:?}");
        for says in ["tls_cert", "`aditd replace "] {
            assert!(refused.stderr.contains(says), "{refused:?}");
        }
    } else {
        assert_ok(&refused);
    }
}

#[tokio::test]
async fn another_address_and_another_authority_are_said_to_need_a_restart() {
    let config = "[https]\nlisten = ['127.0.0.1:0']\n";
    let world = World::start_configured(PROGRAM, Options::default(), &[], config).await;
    let before = address(&world).await;
    let acme = "[https.acme]\nnames = ['a.example']\nagree_to_terms = true\n\
                directory = 'https://127.0.0.1:1/dir'\n";
    for (text, says) in [
        (config.replace(":0'", ":1'"), "force: https.listen."),
        (format!("{config}{acme}"), "force: https.acme."),
        (String::new(), "force: https."),
    ] {
        std::fs::write(world.config(), &text).expect("written");
        let done = world.aditd(&["reload"]).await;
        assert_ok(&done);
        assert!(done.stderr.contains(says), "{text}: {done:?}");
        assert_eq!(address(&world).await, before);
    }
    std::fs::write(world.config(), config).expect("written");
    let done = world.aditd(&["reload"]).await;
    assert!(done.code == Some(0) && !done.stderr.contains("restart"), "{done:?}");
}
