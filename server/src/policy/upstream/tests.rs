use super::*;

fn allow(addresses: &[&str]) -> UpstreamAllow {
    addresses.iter().map(|address| address.parse::<SocketAddr>().expect("an address")).collect()
}

#[test]
fn an_upstream_that_is_not_loopback_is_refused() {
    for bad in [
        "192.168.1.7:11434",
        "http://0.0.0.0:11434",
        "tcp://[::]:1",
        "openai://10.0.0.1:8000",
        "[::ffff:10.0.0.1]:1",
        "127.0.0.1:0",
    ] {
        assert!(matches!(bad.parse::<Upstream>(), Err(UpstreamError::NotLoopback(_))), "{bad}");
    }
    for bad in ["gpu.lan:11434", "http://example.com:80"] {
        let refused = bad.parse::<Upstream>().expect_err(bad);
        assert!(matches!(refused, UpstreamError::NameNotAllowed(..)), "{bad}");
        assert!(refused.to_string().contains("is not a loopback address"), "{refused}");
    }
    for bad in [
        "",
        "https://127.0.0.1:1",
        "127.0.0.1:99999",
        "unix:x",
        "unix:/",
        "http://",
        "a b:1",
        "unix:",
    ] {
        assert!(matches!(bad.parse::<Upstream>(), Err(UpstreamError::Malformed(_))), "{bad}");
    }
}

#[test]
fn usual_ways_to_write_an_upstream_are_accepted_and_it_is_shown_as_it_can_be_written() {
    for (text, shown) in [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:11434/", "http://127.0.0.1:11434"),
        ("localhost", "http://127.0.0.1:11434"),
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("tcp://[::1]:5432", "tcp://[::1]:5432"),
        ("openai://localhost:8000/", "openai://127.0.0.1:8000"),
        ("unix:/run/ollama.sock", "unix:/run/ollama.sock"),
        ("openai+unix:/run/vllm.sock", "openai+unix:/run/vllm.sock"),
    ] {
        let upstream = text.parse::<Upstream>().expect(text);
        assert_eq!(upstream.to_string(), shown);
        assert_eq!(shown.parse::<Upstream>(), Ok(upstream.clone()));
        assert_eq!(text.parse::<WrittenUpstream>().expect(text).to_string(), shown);
        assert!(!upstream.is_elsewhere());
    }
}

#[test]
fn another_machine_needs_its_exact_address_in_the_list() {
    let list = allow(&["10.0.0.5:8000", "[fd00::5]:9"]);
    for (text, is_allowed) in [
        ("http://10.0.0.5:8000", true),
        ("openai://[::ffff:10.0.0.5]:8000", true),
        ("tcp://[fd00::5]:9", true),
        ("http://10.0.0.5:8001", false),
        ("http://10.0.0.6:8000", false),
        ("http://0.0.0.0:8000", false),
        ("http://vllm.rack:8000", true),
        ("http://vllm.rack:8001", false),
    ] {
        let admitted = list.admit(text.parse().expect(text));
        assert_eq!(admitted.is_ok(), is_allowed, "{text}");
        assert!(admitted.is_ok_and(|it| it.is_elsewhere()) == is_allowed, "{text}");
    }
    // What stands for every address is no address.
    assert!(allow(&["0.0.0.0:8000"]).admit("0.0.0.0:8000".parse().expect("written")).is_err());
}

#[test]
fn a_name_may_have_no_address_besides_those_of_the_list() {
    let list = allow(&["10.0.0.5:8000", "10.0.0.6:8000"]);
    let admitted = list.admit("http://vllm.rack:8000".parse().expect("written")).expect("admitted");
    let Place::Name(name) = admitted.place else { panic!("{admitted}") };
    let has = |all: &[&str]| {
        name.admit(all.iter().map(|address| address.parse().expect("an address")).collect()).is_ok()
    };
    assert!(has(&["10.0.0.5:8000"]) && has(&["10.0.0.5:8000", "10.0.0.6:8000"]));
    assert!(has(&["127.0.0.1:8000", "10.0.0.5:8000"]));
    assert!(!has(&["10.0.0.7:8000"]));
    assert!(!has(&["10.0.0.5:8000", "10.0.0.7:8000"]));
}

#[test]
fn a_refusal_names_the_line_that_would_allow_it() {
    let cure = |text: &str| text.parse::<Upstream>().expect_err(text).cure();
    let line = cure("http://10.0.0.5:8000").expect("a cure");
    assert!(line.ends_with("upstream_allow = [\"10.0.0.5:8000\"]"), "{line}");
    assert!(cure("http://vllm.rack:8000").expect("a cure").contains("getent ahosts vllm.rack"));
    assert_eq!(cure("http://0.0.0.0:8000"), None);
    assert_eq!(cure("ftp://x"), None);
}
