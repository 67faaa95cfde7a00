//! Findings of a box, and the line and cure that each is told.

mod listener;
mod providers;
mod service;

use super::{
    device::DeviceFound,
    https::HttpsFound,
    ollama::{Ollama, Pages, Parallel, VersionAnswer},
    providers::{ProviderFound, SignInFound},
    services::ServiceFound,
    *,
};
use crate::{
    doctor::{
        Report, Verdict,
        breakage::{Breakage, assert_each_is_named},
    },
    failure::Failure,
};

const NOW: i64 = clock::RELEASED + 86_400;
const GIB: u64 = 1 << 30;

fn provider(issuer: &str) -> ProviderFound {
    ProviderFound {
        issuer: issuer.to_owned(),
        answered: Ok(2),
        by_hand: format!("curl -i '{issuer}/.well-known/openid-configuration'"),
    }
}

/// A box where all is well.
fn well() -> BoxFound {
    let name = |text: &str| text.parse().expect("a name");
    BoxFound {
        version: "1.0.0".to_owned(),
        argument: String::new(),
        start: "aditd serve".to_owned(),
        server: ServerFound::Running {
            pid: 7,
            version: "1.0.0".to_owned(),
            listening: vec!["192.168.1.7:11435".parse().expect("an address")],
            addresses: vec!["192.168.1.7:11435".to_owned()],
            networks: vec!["192.168.1.0/24".to_owned()],
            batches_refused: 0,
            refused_to: None,
        },
        config: Some(Ok(Some("/etc/adit/aditd.toml".to_owned()))),
        state: Some(("/var/lib/adit".to_owned(), Vec::new())),
        clock: Some(Ok(NOW)),
        certificate: Some((NOW + 86_400 * 3000, NOW)),
        unit: Some(Unit {
            state: Some(UnitState { is_users: false, enabled: true, active: "active".to_owned() }),
            user: "root".to_owned(),
            lingers: false,
        }),
        ollama: Ollama {
            address: "127.0.0.1:11434".to_owned(),
            answer: VersionAnswer::Version("0.33.0".to_owned()),
            exposed: Vec::new(),
            has_unit: true,
            pages: Some(Pages { other_site: 403, extension: 200 }),
            parallel: Some(Parallel::Set(2)),
            set: Vec::new(),
            models: Some((3, vec![("llama3.2".to_owned(), 5 * GIB)])),
        },
        services: vec![ServiceFound {
            name: "vllm".to_owned(),
            upstream: "openai://127.0.0.1:8000".to_owned(),
            answer: VersionAnswer::Connected,
            unencrypted: None,
        }],
        max_in_flight: Some(InFlight::Most(2)),
        disks: vec![Disk {
            what: "state".to_owned(),
            path: "/var/lib/adit".to_owned(),
            free: 9 * GIB,
            enough: GIB,
        }],
        authorize: Some(Authorize {
            address: "http://127.0.0.1:9000/check".to_owned(),
            by_hand: "curl -i -X POST http://127.0.0.1:9000/check".to_owned(),
            answered: Ok(Duration::from_millis(3)),
        }),
        sign_in: Some(SignInFound {
            provider: provider("https://login.example.com"),
            has_codes: true,
        }),
        tokens: Some(provider("https://tokens.example.com")),
        audit: Some(AuditLog {
            dir: "/var/log/adit".to_owned(),
            required: false,
            failing: None,
            cure: None,
            lost: 0,
        }),
        devices: Some(Devices { enrolled: 2, connected: 1, without_role: Vec::new() }),
        https: Some(HttpsFound {
            listening: vec!["192.168.1.7:8443".to_owned()],
            file: Some("/etc/adit/tls.crt".to_owned()),
            until: Some(NOW + 86_400 * 60),
            failing: None,
            acme: None,
            now: NOW,
            keys: vec![(name("phone"), NOW + 86_400 * 30)],
        }),
        device: Some(DeviceFound {
            name: name("laptop"),
            role: name("infer"),
            role_is_known: true,
            models: vec![vec!["llama3*".to_owned()]],
            tokens: (100, Some(1000)),
            at_once: (0, Some(2)),
            per_minute: Some(60),
            body: Some(1 << 20),
        }),
        sandbox: Some(Sandbox::of(7, true)),
        buffers: Some(laptop::Buffers { wanted: 4 << 20, rmem_max: 4 << 20, wmem_max: 4 << 20 }),
    }
}

#[test]
fn where_all_is_well_each_line_is_ok_and_a_device_is_told_no_more_than_it_may_know() {
    let all = lines(&well());
    assert_eq!(all.len(), CHECKS.len());
    assert!(
        all.iter().all(|line| line.verdict == Verdict::Ok && line.cures.is_empty()),
        "{all:#?}"
    );
    let told = lines_for_device(&well());
    assert_eq!(told.iter().map(|line| &*line.id).collect::<Vec<_>>(), FOR_DEVICES);
    let text = serde_json::to_string(&told).expect("JSON");
    for secret in ["/var", "/etc", "9000", "192.168"] {
        assert!(!text.contains(secret), "{text}");
    }
    assert!(text.contains("100 of 1000 tokens today; 0 of 2 requests at once"), "{text}");
}

fn running(
    found: &mut BoxFound,
) -> (&mut String, &mut Vec<std::net::SocketAddr>, &mut Vec<String>, &mut u64) {
    match &mut found.server {
        ServerFound::Running { version, listening, addresses, batches_refused, .. } => {
            (version, listening, addresses, batches_refused)
        }
        _ => panic!("it runs"),
    }
}

fn device_of(found: &mut BoxFound) -> &mut DeviceFound {
    found.device.as_mut().expect("a device")
}

/// What is changed, the check that says so, its verdict, a part of its line, and its first command.
const BREAKAGES: [Breakage<BoxFound>; 34] = [
    (
        |found| found.services[0].answer = VersionAnswer::Refused,
        "services",
        Verdict::Bad,
        "`vllm` is not running at openai://127.0.0.1:8000",
        "sudo ss -ltnp",
    ),
    (
        |found| {
            found.services[0].upstream = "openai+unix:/run/vllm.sock".to_owned();
            found.services[0].answer = VersionAnswer::Silent("no answer".to_owned());
        },
        "services",
        Verdict::Bad,
        "`vllm` at openai+unix:/run/vllm.sock does not answer (no answer)",
        "ls -l '/run/vllm.sock'",
    ),
    (
        |found| found.services[0].unencrypted = Some("prompts travel".to_owned()),
        "services",
        Verdict::Warn,
        "prompts travel",
        "aditd status",
    ),
    (
        |found| found.server = ServerFound::OfAnother,
        "aditd",
        Verdict::NotChecked,
        "needs the rights of the user whose aditd runs here",
        "sudo aditd doctor",
    ),
    (
        |found| {
            service::state_of(found).active = "failed".to_owned();
            found.server = ServerFound::NotRunning { state_dir: "/x".to_owned() };
        },
        "aditd",
        Verdict::Bad,
        "it does not run on the state in `/x`",
        "sudo systemctl start aditd",
    ),
    (
        |found| {
            found.unit = None;
            found.start = "aditd serve --listen '[::]:11435' --allow-from fd00::/8".to_owned();
            found.server = ServerFound::NotRunning { state_dir: "/x".to_owned() };
        },
        "aditd",
        Verdict::Bad,
        "it does not run",
        "aditd serve --listen '[::]:11435' --allow-from fd00::/8",
    ),
    (
        |found| *running(found).0 = "0.9.0".to_owned(),
        "aditd",
        Verdict::Warn,
        "version 0.9.0 runs (pid 7), and version 1.0.0 is installed",
        "sudo aditd replace",
    ),
    (
        |found| {
            found.server =
                ServerFound::Unasked(Failure::new("cannot ask").hint("`sudo aditd doctor`"))
        },
        "aditd",
        Verdict::Bad,
        "cannot ask",
        "sudo aditd doctor",
    ),
    (
        |found| {
            found.config = Some(Err(Failure::new("the configuration is wrong")
                .source("line 3: x")
                .hint("`aditd status`")))
        },
        "config",
        Verdict::Bad,
        "line 3: x",
        "aditd status",
    ),
    (
        |found| {
            found.state = Some((
                "/x".to_owned(),
                vec![
                    Failure::new("`/x/ca.key` can be read by other users (mode 644)")
                        .hint("if nobody has copied it: `chmod 600 '/x/ca.key'`"),
                ],
            ))
        },
        "box_state",
        Verdict::Bad,
        "can be read by other users",
        "chmod 600 '/x/ca.key'",
    ),
    (
        |found| {
            found.clock = Some(Err(Failure::new("this machine's clock is wrong")
                .hint("set it: `sudo timedatectl set-ntp true`")))
        },
        "box_clock",
        Verdict::Bad,
        "clock is wrong",
        "sudo timedatectl set-ntp true",
    ),
    (
        |found| found.certificate = Some((NOW - 1, NOW)),
        "box_certificate",
        Verdict::Bad,
        "the server's ended at",
        "sudo systemctl restart aditd",
    ),
    (
        |found| running(found).2.clear(),
        "listening",
        Verdict::Warn,
        "has no address that devices could be told",
        "sudo systemctl restart aditd",
    ),
    (
        |found| {
            running(found).2.clear();
            found.unit = None;
        },
        "listening",
        Verdict::Warn,
        "has no address that devices could be told",
        "aditd serve --advertise HOST:PORT",
    ),
    (
        |found| found.ollama.answer = VersionAnswer::Refused,
        "ollama",
        Verdict::Bad,
        "nothing listens at 127.0.0.1:11434",
        "sudo systemctl start ollama",
    ),
    (
        |found| (found.ollama.answer, found.ollama.has_unit) = (VersionAnswer::Refused, false),
        "ollama",
        Verdict::Bad,
        "nothing listens",
        "ollama serve",
    ),
    (
        |found| found.ollama.answer = VersionAnswer::Silent("no answer within 2 s".to_owned()),
        "ollama",
        Verdict::Bad,
        "does not answer: no answer within 2 s",
        "sudo systemctl restart ollama",
    ),
    (
        |found| found.ollama.answer = VersionAnswer::Other { status: 403, is_empty: true },
        "ollama",
        Verdict::Bad,
        "403 without a body, as Ollama does to a `Host` or an `Origin`",
        "sudo ss -ltnp 'sport = :11434'",
    ),
    (
        |found| found.ollama.answer = VersionAnswer::Other { status: 200, is_empty: false },
        "ollama",
        Verdict::Bad,
        "that is not Ollama",
        "sudo ss -ltnp 'sport = :11434'",
    ),
    (
        |found| found.ollama.exposed = vec!["192.168.1.7:11434".to_owned()],
        "exposed",
        Verdict::Bad,
        "OPEN TO THE NETWORK. Ollama also answers at 192.168.1.7:11434",
        "printf '[Service]\\nEnvironment=\"OLLAMA_HOST=127.0.0.1:11434\"\\n' | sudo install -D -m 644 /dev/stdin /etc/systemd/system/ollama.service.d/zz-ollama-host.conf && sudo systemctl daemon-reload && sudo systemctl restart ollama",
    ),
    (
        |found| {
            (found.ollama.exposed, found.ollama.has_unit) =
                (vec!["192.168.1.7:11434".to_owned()], false)
        },
        "exposed",
        Verdict::Bad,
        "OPEN TO THE NETWORK",
        "OLLAMA_HOST='127.0.0.1:11434' ollama serve",
    ),
    (
        |found| {
            (found.ollama.pages, found.ollama.has_unit) =
                (Some(Pages { other_site: 200, extension: 200 }), false)
        },
        "origins",
        Verdict::Warn,
        "any web page in a laptop's browser can use the GPU",
        "OLLAMA_ORIGINS='chrome-extension://*,moz-extension://*,safari-web-extension://*' ollama serve",
    ),
    (
        |found| {
            (found.ollama.pages, found.ollama.has_unit) =
                (Some(Pages { other_site: 403, extension: 403 }), false)
        },
        "origins",
        Verdict::Warn,
        "a browser extension gets 403 without a body",
        "OLLAMA_ORIGINS='chrome-extension://*,moz-extension://*,safari-web-extension://*' ollama serve",
    ),
    (
        |found| {
            (found.max_in_flight, found.ollama.parallel, found.ollama.has_unit) =
                (Some(InFlight::Most(4)), Some(Parallel::NotSet), false)
        },
        "parallel",
        Verdict::Warn,
        "4 requests (max_in_flight), and Ollama runs 1 of one model (OLLAMA_NUM_PARALLEL is not set)",
        "OLLAMA_NUM_PARALLEL='4' ollama serve",
    ),
    (
        |found| {
            let set = [
                ("OLLAMA_ORIGINS", "chrome-extension://*"),
                ("OLLAMA_NUM_PARALLEL", "1"),
                ("OLLAMA_API_KEY", "k"),
            ];
            found.ollama.set = set.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
            (found.max_in_flight, found.ollama.parallel, found.ollama.has_unit) =
                (Some(InFlight::Most(4)), Some(Parallel::Set(1)), false)
        },
        "parallel",
        Verdict::Warn,
        "and Ollama runs 1 of one model (OLLAMA_NUM_PARALLEL)",
        "OLLAMA_ORIGINS='chrome-extension://*' OLLAMA_NUM_PARALLEL='4' ollama serve",
    ),
    (
        |found| found.ollama.models = Some((0, Vec::new())),
        "models",
        Verdict::Warn,
        "Ollama has none",
        "ollama pull llama3.2",
    ),
    (
        |found| found.disks[0].free = GIB / 2,
        "disk",
        Verdict::Warn,
        "only 512 MiB free for the state (`/var/lib/adit`)",
        "df -h '/var/lib/adit'",
    ),
    (
        |found| found.disks[0].free = 4096,
        "disk",
        Verdict::Bad,
        "only 4 KiB free",
        "df -h '/var/lib/adit'",
    ),
    (
        |found| {
            found.authorize.as_mut().expect("rules").answered = Err("silent for 2 s".to_owned())
        },
        "authorize",
        Verdict::Bad,
        "gives no answer (silent for 2 s)",
        "curl -i -X POST http://127.0.0.1:9000/check",
    ),
    (
        |found| found.authorize.as_mut().expect("rules").answered = Ok(Duration::from_millis(900)),
        "authorize",
        Verdict::Warn,
        "took 900 ms",
        "time curl -i -X POST http://127.0.0.1:9000/check",
    ),
    (
        |found| found.audit.as_mut().expect("a log").failing = Some("no space left".to_owned()),
        "audit",
        Verdict::Bad,
        "can't be written: no space left",
        "df -h '/var/log/adit'",
    ),
    (
        |found| found.devices.as_mut().expect("devices").without_role.push("laptop".to_owned()),
        "devices",
        Verdict::Warn,
        "may do nothing: laptop",
        "aditd device role laptop infer",
    ),
    (
        |found| device_of(found).tokens = (1000, Some(1000)),
        "device",
        Verdict::Bad,
        "1000 of 1000 tokens today",
        "sudoedit /etc/adit/aditd.toml && sudo aditd reload",
    ),
    (
        |found| *running(found).3 = 5,
        "box_buffers",
        Verdict::Warn,
        "refuses batches of datagrams (GSO)",
        "sudo ethtool -K \"$(ip -o route get 1.1.1.1 | sed 's/.* dev \\([^ ]*\\).*/\\1/')\" tx-udp-segmentation off",
    ),
];

#[test]
fn each_breakage_is_named_with_its_cure() {
    assert_each_is_named(&BREAKAGES, well, lines);
}

#[test]
fn how_near_a_limit_is_decides_its_verdict() {
    for (tokens, at_once, verdict) in [
        ((799, Some(1000)), (1, Some(2)), Verdict::Ok),
        ((800, Some(1000)), (1, Some(2)), Verdict::Warn),
        ((5, None), (2, Some(2)), Verdict::Warn),
        ((u64::MAX, None), (9, None), Verdict::Ok),
        ((0, Some(1)), (0, Some(1)), Verdict::Ok),
    ] {
        let mut found = well();
        (device_of(&mut found).tokens, device_of(&mut found).at_once) = (tokens, at_once);
        assert_eq!(
            device(&found).map(|judged| judged.verdict()),
            Some(verdict),
            "{tokens:?} {at_once:?}"
        );
    }
}

#[test]
fn without_ollama_nothing_is_said_of_what_it_does() {
    let mut found = well();
    found.ollama.answer = VersionAnswer::Refused;
    let report = Report::new("1", lines(&found));
    assert_eq!((report.count(Verdict::Bad), report.count(Verdict::NotChecked)), (1, 4));
    assert!(unasked("a tunnel").found.ends_with("needs a tunnel"));
}
