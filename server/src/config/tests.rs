//! The settings as they result.

use super::*;

fn resolve(serve: ServeFlags, file: &str) -> Result<Config, Failure> {
    let tmp = tempfile::tempdir().expect("tempdir");
    let path = tmp.path().join("aditd.toml");
    std::fs::write(&path, file).expect("written");
    Config::resolve(&Flags { state_dir: Some("/nowhere".into()), config: Some(path) }, &serve)
}

#[test]
fn by_default_it_listens_on_loopback_and_forwards_to_ollama() {
    let config = resolve(ServeFlags::default(), "").expect("settled");
    assert_eq!(
        config.listen.iter().map(|a| a.to_string()).collect::<Vec<_>>(),
        ["127.0.0.1:11435", "[::1]:11435"]
    );
    assert_eq!(config.upstream().to_string(), "http://127.0.0.1:11434");
}

#[test]
fn a_flag_overrides_the_file() {
    let file =
        "listen = ['127.0.0.1:1']\nupstream = 'tcp://127.0.0.1:2'\nadvertise = ['gpu.lan:3']";
    let config =
        resolve(ServeFlags { listen: vec!["127.0.0.1:9".into()], ..Default::default() }, file)
            .expect("settled");
    assert_eq!(config.listen[0].port(), 9);
    assert_eq!(config.upstream().to_string(), "tcp://127.0.0.1:2");
    assert_eq!(config.advertise, ["gpu.lan:3"]);
}

#[test]
fn an_address_that_is_not_loopback_needs_named_networks() {
    let open = |allow: Vec<IpNet>| {
        resolve(
            ServeFlags {
                listen: vec!["0.0.0.0:1".into()],
                allow_from: allow,
                ..Default::default()
            },
            "",
        )
    };
    let error = open(vec![]).expect_err("refused").to_string();
    let named = format!("--allow-from {}", own_network_or_example());
    assert!(error.contains(&named), "{error}");
    open(vec!["10.0.0.0/8".parse().expect("net")]).expect("allowed");
    let file =
        resolve(ServeFlags::default(), "listen = ['[::]:1']").expect_err("refused").to_string();
    let named = format!("`allow_from = [\"{}\"]`", own_network_or_example());
    assert!(file.contains("not loopback") && file.contains(&named), "{file}");
}

#[test]
fn the_ipv6_wildcard_adds_ipv4_if_an_ipv4_network_is_allowed() {
    for (listen, networks, wanted) in [
        (&["[::]:1"][..], "10.0.0.0/8", "[[::]:1, 0.0.0.0:1]"),
        (&["[::]:1"], "2001:db8::/32", "[[::]:1]"),
        (&["[::]:1", "10.0.0.1:1"], "10.0.0.0/8", "[[::]:1, 10.0.0.1:1]"),
        (&["[::]:0"], "10.0.0.0/8", "[[::]:0]"),
        (&["[::1]:1"], "10.0.0.0/8", "[[::1]:1]"),
    ] {
        let serve = ServeFlags {
            listen: listen.iter().map(ToString::to_string).collect(),
            allow_from: vec![networks.parse().expect("a network")],
            ..Default::default()
        };
        assert_eq!(format!("{:?}", resolve(serve, "").expect("settled").listen), wanted);
    }
}

#[test]
fn a_wrong_file_is_refused_with_the_place_in_it() {
    for (file, says) in [
        ("listen = ['127.0.0.1:1']\nlisten_on = 3", "line 2"),
        ("upstream = 'http://10.0.0.1:1'", "not a loopback address"),
        ("allow_from = ['10.0.0.0/99']", "line 1"),
        ("listen = [", "line 1"),
        ("listen = ['nonsense']", "IP:PORT"),
        ("device_life = 'a while'", "30d or 12h"),
        ("device_life = '0s'", "30d or 12h"),
        ("idle_timeout = '5s'", "between 20s and 7d"),
        ("advertise = ['no port']", "HOST:PORT"),
        ("[limits]\nat_once = 0", "line 2"),
        ("[roles.infer.limits]\nbody = 'much'", "line 2"),
        ("max_in_flight = 0", "line 1"),
        (
            "authorize = 'http://127.0.0.1:1/x'\nauthorize_at = []",
            "line 2: `authorize_at` is empty",
        ),
        ("\nauthorize_at = ['request']", "line 2: `authorize_at` is set, but `authorize` is not"),
        ("authorize_at = []", "line 1: "),
        ("audit_keep = 'long'", "30d"),
        ("metrics = '0.0.0.0:9464'", "not a loopback address"),
    ] {
        let error = resolve(ServeFlags::default(), file).expect_err(file).to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// The settings of `file` in a directory, and that directory.
fn in_dir(file: &str) -> (tempfile::TempDir, Result<Config, Failure>) {
    let tmp = tempfile::tempdir().expect("tempdir");
    let path = tmp.path().join("aditd.toml");
    std::fs::write(&path, file).expect("written");
    let flags = Flags { state_dir: None, config: Some(path) };
    (tmp, Config::resolve(&flags, &ServeFlags::default()))
}

#[test]
fn every_relative_path_begins_at_the_file() {
    type Of = fn(&Config) -> Option<PathBuf>;
    let acme = "[https]\nlisten = ['127.0.0.1:1']\n[https.acme]\nnames = ['a.example']\n\
                agree_to_terms = true\n";
    let files = "[https]\nlisten = ['127.0.0.1:1']\ntls_cert = 'x'\ntls_key = 'x'";
    let kept: [(&str, &str, Of); 7] = [
        ("", "state_dir = 'x'", |config| Some(config.state_dir.clone())),
        ("", "enroll_socket = 'x'", |config| Some(config.enroll_socket.clone())),
        ("", "audit_dir = 'x'", |config| Some(config.accounting.audit.dir.clone())),
        (files, "", |config| match &config.https.as_ref()?.source {
            CertificateSource::Files(cert, _) => Some(cert.clone()),
            _ => None,
        }),
        (files, "", |config| match &config.https.as_ref()?.source {
            CertificateSource::Files(_, key) => Some(key.clone()),
            _ => None,
        }),
        (acme, "directory_ca = 'x'", |config| config.acme()?.directory_ca.clone()),
        (acme, "external_account = { id = 'k', key_file = 'x' }", |config| {
            Some(config.acme()?.external_account.as_ref()?.key_file.clone())
        }),
    ];
    for (table, line, of) in kept {
        let (tmp, config) = in_dir(&format!("{table}{line}"));
        let path = of(&config.expect(line));
        assert_eq!(path, Some(tmp.path().join("x")), "{table}{line}");
    }
    // These are read at once, so that the failure names the file.
    let https = "authorize = 'https://127.0.0.1:1/'\nauthorize_allow = ['127.0.0.1:1']\n";
    let jwt = "[jwt]\nissuer = 'https://a.example'\naudience = 'x'\n";
    let oidc = "[oidc]\nissuer = 'https://a.example'\nclient_id = 'x'\n";
    for (table, line) in [
        (https, "authorize_ca = 'x.pem'"),
        (jwt, "ca = 'x.pem'"),
        (oidc, "ca = 'x.pem'"),
        (oidc, "client_secret_file = 'x.pem'"),
    ] {
        let (tmp, config) = in_dir(&format!("{table}{line}"));
        let why = config.expect_err(line).to_string();
        let path = tmp.path().join("x.pem");
        assert!(why.contains(&path.display().to_string()), "{line}: {why}");
    }
}

#[test]
fn the_state_directory_alone_begins_at_the_file_too() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let path = tmp.path().join("aditd.toml");
    let flags = Flags { state_dir: None, config: Some(path.clone()) };
    std::fs::write(&path, "state_dir = 'x'\nnonsense = 1").expect("written");
    assert_eq!(flags.state_dir().expect("a directory"), tmp.path().join("x"));
}

#[test]
fn a_state_directory_that_cannot_be_used_is_not_taken_for_the_default() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let path = tmp.path().join("aditd.toml");
    let flags = Flags { state_dir: None, config: Some(path.clone()) };
    for (written, said) in [("~/adit", "begins with `~`"), ("", "a path is empty")] {
        std::fs::write(&path, format!("# Ours.\nstate_dir = '{written}'\nnonsense = 1"))
            .expect("written");
        let why = flags.state_dir().expect_err(written);
        assert_eq!(why.exit_code(), Exit::Usage, "{why}");
        let text = why.to_string();
        assert!(text.contains("line 2: state_dir: ") && text.contains(said), "{text}");
        let flags = Flags { state_dir: Some("/x".into()), ..flags.clone() };
        assert_eq!(flags.state_dir().expect("that of the flag"), std::path::Path::new("/x"));
    }
}
