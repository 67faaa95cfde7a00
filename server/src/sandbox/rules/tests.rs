use std::{collections::HashMap, fs::Permissions, os::unix::fs::PermissionsExt};

use super::*;
use crate::{Flags, ServeFlags};

/// What these settings need besides what every server needs, a word for each: `r:` a path that is
/// read, `w:` written, `d:` from which files are removed, `c:` a port, `s:` a socket.
fn needed(dir: &Path, text: &str, machine: &Machine<'_>) -> (Rules, Vec<String>) {
    let file = dir.join("conf/aditd.toml");
    std::fs::create_dir_all(dir.join("conf")).expect("made");
    let text = text.replace("{dir}", dir.to_str().expect("a path"));
    std::fs::write(&file, text).expect("written");
    let flags = Flags { state_dir: Some("/srv/adit/state".into()), config: Some(file) };
    let config = Config::resolve(&flags, &ServeFlags::default());
    let rules = Rules::of(&config.expect("a configuration"), machine);
    let place = |path: &Path| match path.strip_prefix(dir) {
        Ok(below) => format!("{{dir}}/{}", below.display()),
        Err(_) => path.display().to_string(),
    };
    let mut words: Vec<_> = rules
        .iter()
        .filter(|right| match right {
            Right::Read(path) => !EVERY.contains(&path.to_str().unwrap_or_default()),
            _ => true,
        })
        .map(|right| match right {
            Right::Read(path) => format!("r:{}", place(path)),
            Right::Write(path) => format!("w:{}", place(path)),
            Right::Remove(path) => format!("d:{}", place(path)),
            Right::Connect(port) => format!("c:{port}"),
            Right::Socket(path) => format!("s:{}", place(path)),
        })
        .collect();
    words.sort();
    words.dedup();
    (rules, words)
}

/// What every server may read.
const EVERY: [&str; CA_PLACES.len() + KERNEL_FILES.len()] = {
    let mut all = [""; CA_PLACES.len() + KERNEL_FILES.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < CA_PLACES.len() { CA_PLACES[i] } else { KERNEL_FILES[i - CA_PLACES.len()] };
        i += 1;
    }
    all
};

fn on_a_machine<T>(variables: &[(&str, &str)], with: impl FnOnce(&Machine<'_>) -> T) -> T {
    let variables: HashMap<_, _> =
        variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    with(&Machine {
        home: Some("/home/ann".into()),
        variable: &|name| variables.get(name).cloned(),
        real: &|path| match path.to_str()? {
            "/etc/letsencrypt/live/gpu/fullchain.pem" => {
                Some("/etc/letsencrypt/archive/gpu/fullchain3.pem".into())
            }
            // Where this is installed, it is among what every server may read.
            "/etc/ssl/certs/ca-certificates.crt" => Some("/etc/ssl/certs/all.crt".into()),
            "/etc/pki/tls/certs/ca-bundle.crt" if variables.contains_key("ON_NIXOS") => {
                Some("/nix/store/x-cacert/etc/ssl/certs/ca-bundle.crt".into())
            }
            _ => None,
        },
        links: &|path| {
            let links: &[(&str, &str)] = match path.to_str() {
                Some("/srv/tls/current/cert.pem") => &[("/srv/tls/current", "/opt/releases/r1")],
                // As `/data` on a disk of its own; a directory of the user; a link in the root.
                Some("/data/tls/key.pem") => &[
                    ("/data", "/mnt/disk/data"),
                    ("/mnt/disk/data/tls", "/home/ann/tls"),
                    ("/home/ann/tls/key.pem", "/home/ann/tls/../keys/key.pem"),
                ],
                _ => &[],
            };
            links.iter().map(|(link, target)| (link.into(), target.into())).collect()
        },
    })
}

const BASE: [&str; 4] =
    ["c:11434", "r:{dir}/conf", "s:/srv/adit/state/control.sock", "w:/srv/adit/state"];

const ACME: &str = "[https]\nlisten = ['127.0.0.1:8443']\n[https.acme]\nnames = ['a.example']
agree_to_terms = true\ndirectory = 'https://ca.example:9000/dir'\ndirectory_ca = '/srv/acme/ca.pem'
external_account = { id = 'kid-1', key_file = '/srv/acme/eab.key' }";

#[test]
fn a_server_may_what_its_settings_need_and_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("ca.pem"), crate_ca()).expect("written");
    std::fs::create_dir(dir.path().join("sso")).expect("made");
    let secret = dir.path().join("sso/secret");
    std::fs::write(&secret, "secret").expect("written");
    std::fs::set_permissions(secret, Permissions::from_mode(0o600)).expect("set");
    for (text, variables, more) in [
        ("", vec![], vec![]),
        ("audit_dir = '/var/log/adit'", vec![], vec!["w:/var/log/adit"]),
        (
            "[services.vllm]\nupstream = 'openai://127.0.0.1:8000'\n[services.sock]\nupstream = 'unix:/run/llama/s.sock'",
            vec![],
            vec!["c:8000", "s:/run/llama/s.sock"],
        ),
        (
            "upstream_allow = ['192.0.2.7:9000']\n[services.far]\nupstream = 'http://192.0.2.7:9000'\n[services.named]\nupstream = 'tcp://gpu2.lan:9000'",
            vec![],
            vec!["c:9000"],
        ),
        ("metrics = '127.0.0.1:9464'", vec![], vec![]),
        ("metrics = 'unix:/run/adit/metrics.sock'", vec![], vec!["d:/run/adit"]),
        ("metrics = 'unix:/run/metrics.sock'", vec![], vec![]),
        ("enroll_group = 'staff'", vec![], vec!["d:/run/adit"]),
        ("enroll_socket = '/run/adit/e.sock'", vec![], vec![]),
        ("authorize = 'http://127.0.0.1:9000/check'", vec![], vec!["c:9000"]),
        ("authorize = 'unix:/run/check.sock:/check'", vec![], vec!["s:/run/check.sock"]),
        (
            "authorize = 'https://auth.lan:8443/check'\nauthorize_allow = ['auth.lan:8443']\nauthorize_ca = '{dir}/ca.pem'",
            vec![("HTTPS_PROXY", "http://proxy:3128")],
            // It is asked without a proxy.
            vec!["c:8443", "r:{dir}/"],
        ),
        ("[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'", vec![], vec!["c:443"]),
        (
            "[jwt]\nissuer = 'https://login.example.com:8443/x'\naudience = 'ollama'",
            vec![
                ("https_proxy", "proxy.lan:3128"),
                ("ALL_PROXY", ""),
                ("SSL_CERT_FILE", "/opt/ca/all.pem"),
            ],
            vec!["c:443", "c:8443", "c:3128", "r:/opt/ca"],
        ),
        (
            "[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'\njwks = 'https://keys.example.com:444/jwks'",
            vec![],
            vec!["c:443", "c:444"],
        ),
        (
            "[oidc]\nissuer = 'https://sso.example:9443'\nclient_id = 'adit'",
            vec![],
            vec!["c:443", "c:9443"],
        ),
        (
            "[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'\njwks = '/srv/keys/jwks.json'",
            vec![("https_proxy", "proxy.lan:3128")],
            vec!["r:/srv/keys"],
        ),
        (
            "[oidc]\nissuer = 'https://sso.example'\nclient_id = 'adit'\nclient_secret_file = '{dir}/sso/secret'",
            vec![("SSL_CERT_DIR", "/opt/a:b:/opt/c"), ("ON_NIXOS", "")],
            vec![
                "c:443",
                "r:{dir}/sso",
                "r:/opt/a",
                "r:/opt/c",
                "r:/nix/store/x-cacert/etc/ssl/certs/ca-bundle.crt",
            ],
        ),
        (
            ACME,
            vec![("https_proxy", "proxy.lan:3128")],
            vec!["c:443", "c:9000", "c:3128", "r:/srv/acme"],
        ),
        (
            "[https]\nlisten = ['127.0.0.1:8443']\n[https.acme]\nnames = ['a.example']\nagree_to_terms = true",
            vec![],
            vec!["c:443"],
        ),
        ("[https]\nlisten = ['127.0.0.1:8443']", vec![], vec![]),
        (
            // A file in a directory with much else is read alone, as long as it is the same one.
            "[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'\njwks = '/home/ann/jwks.json'",
            vec![],
            vec!["r:/home/ann/jwks.json"],
        ),
        (
            "[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'\njwks = '/etc/jwks.json'",
            vec![],
            vec!["r:/etc/jwks.json"],
        ),
        (
            "[https]\nlisten = ['127.0.0.1:8443']\ntls_cert = '/etc/letsencrypt/live/gpu/fullchain.pem'\ntls_key = '/etc/letsencrypt/live/gpu/privkey.pem'",
            vec![],
            vec!["r:/etc/letsencrypt/archive/gpu", "r:/etc/letsencrypt/live/gpu"],
        ),
        (
            // Links to directories are switched at a renewal.
            "[https]\nlisten = ['127.0.0.1:8443']\ntls_cert = '/srv/tls/current/cert.pem'\ntls_key = '/data/tls/key.pem'",
            vec![],
            vec![
                "r:/srv/tls/current",
                "r:/srv/tls",
                "r:/opt/releases",
                "r:/data/tls",
                "r:/mnt/disk/data",
                "r:/home/ann/tls",
                "r:/home/ann/tls/../keys",
            ],
        ),
    ] {
        let found = on_a_machine(&variables, |machine| needed(dir.path(), text, machine).1);
        let mut expected: Vec<String> = BASE.iter().chain(&more).map(ToString::to_string).collect();
        // Without an audit directory of its own the log is in the state.
        expected.sort();
        expected.dedup();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn what_a_reload_needs_and_was_given_up_is_named_with_its_setting() {
    let dir = tempfile::tempdir().expect("a directory");
    let ask = "authorize = 'http://127.0.0.1:9000/check'";
    for (before, after, missing) in [
        ("", "", None),
        ("", "metrics = '127.0.0.1:9464'\naudit_dir = '/var/log/adit'", None),
        (ask, "", None),
        (ask, "authorize = 'http://[::1]:9000/other'", None),
        (
            ask,
            "authorize = 'http://127.0.0.1:9001/check'",
            Some("authorize: connect to the TCP port 9001"),
        ),
        (
            "",
            "authorize = 'unix:/run/c.sock:/check'",
            Some("authorize: connect to the socket `/run/c.sock`"),
        ),
        (
            "",
            "[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'\njwks = '/srv/keys/jwks.json'",
            Some("the files of `[jwt]` and `[oidc]`: read `/srv/keys`"),
        ),
        (
            "",
            "[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'",
            Some("jwt.issuer: connect to the TCP port 443"),
        ),
        // It counts with the next start only.
        ("", ACME, None),
        (
            "[https]\nlisten = ['127.0.0.1:8443']",
            "[https]\nlisten = ['127.0.0.1:8443']\ntls_cert = '/srv/tls/a.crt'\ntls_key = '{dir}/conf/a.key'",
            Some("tls_cert: read `/srv/tls`"),
        ),
        // Beside the configuration it may read.
        (
            "",
            "[jwt]\nissuer = 'https://login.example.com'\naudience = 'ollama'\njwks = '{dir}/conf/jwks.json'",
            None,
        ),
    ] {
        on_a_machine(&[], |machine| {
            let (has, _) = needed(dir.path(), before, machine);
            let (_, _) = needed(dir.path(), after, machine);
            let flags = Flags {
                state_dir: Some("/srv/adit/state".into()),
                config: Some(dir.path().join("conf/aditd.toml")),
            };
            let config = Config::resolve(&flags, &ServeFlags::default()).expect("good");
            let wanted = Rules::of_reload(&config, machine);
            let found: Vec<_> = has
                .missing(&wanted)
                .iter()
                .map(|need| format!("{}: {}", need.of, need.right))
                .collect();
            let expected: Vec<_> = missing.into_iter().map(str::to_owned).collect();
            assert_eq!(found, expected, "{before} -> {after}");
        });
    }
}

/// A certificate of a CA, in PEM.
fn crate_ca() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&key).expect("signed").pem()
}

#[test]
fn a_path_is_inside_a_directory_only_without_a_way_up() {
    for (path, dir, expected) in [
        ("/srv/tls/key.pem", "/srv/tls", true),
        ("/srv/tls/new/key.pem", "/srv/tls", true),
        ("/srv/tls", "/srv/tls", true),
        ("/srv/tls2/key.pem", "/srv/tls", false),
        ("/srv/tls/../other/key.pem", "/srv/tls", false),
        ("/srv/tls/../keys/key.pem", "/srv/tls/../keys", true),
    ] {
        assert_eq!(is_inside(Path::new(path), Path::new(dir)), expected, "{path} in {dir}");
    }
}
