use super::*;

const KEYS: &str = include_str!("keys.txt");
/// A day of 2026, when the certificates are valid.
const NOW: u64 = 1_780_272_000;
const LATER: u64 = 1_980_272_000;

/// A key of the corpus, as `type base64`.
fn text(name: &str) -> &'static str {
    let line = KEYS.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}"))
}

fn key(name: &str) -> Offered {
    Offered::Key(PublicKey::from_openssh(text(name)).expect("a key").key_data().clone())
}

fn certificate(name: &str) -> Offered {
    Offered::Certificate(Box::new(Certificate::from_openssh(text(name)).expect("a certificate")))
}

/// Judges by lines in which `{x}` stands for the key `x`.
fn judged(lines: &str, host: &str, offered: &Offered, now: u64) -> KeyJudgement {
    let mut file = lines.to_owned();
    for name in ["a", "b", "ca", "ca2", "e", "r"] {
        file = file.replace(&format!("{{{name}}}"), text(name));
    }
    let bare = host.trim_start_matches('[').split(']').next().unwrap_or(host);
    judge(&parse(Path::new("/known"), &file), host, bare, offered, now)
}

fn at(line: usize) -> FileLine {
    FileLine { file: "/known".into(), line }
}

fn unknown(others: &[usize]) -> KeyJudgement {
    KeyJudgement::Unknown { others: others.iter().map(|line| at(*line)).collect(), because: None }
}

fn distrusted(because: &'static str) -> KeyJudgement {
    KeyJudgement::Unknown { others: Vec::new(), because: Some(because) }
}

#[test]
fn a_plain_key_is_judged_as_openssh_judges_it() {
    use KeyJudgement::{Changed, Known, Revoked};
    for (lines, host, says) in [
        ("", "gpu", unknown(&[])),
        ("gpu {a}", "gpu", Known),
        ("gpu {a} a comment of several words", "gpu", Known),
        ("\t gpu\t{a}", "gpu", Known),
        ("GPU {a}", "gpu", Known),
        ("box {a}", "gpu", unknown(&[])),
        ("gpu {b}", "gpu", Changed(at(1))),
        ("# gpu {a}\n\ngpu {b}", "gpu", Changed(at(3))),
        ("gpu {b}\ngpu {a}", "gpu", Known),
        ("gpu {e}", "gpu", unknown(&[1])),
        ("gpu {e}\ngpu {r}", "gpu", unknown(&[1, 2])),
        // Ports.
        ("[gpu]:2222 {a}", "[gpu]:2222", Known),
        ("[gpu]:2222 {a}", "gpu", unknown(&[])),
        ("gpu {a}", "[gpu]:2222", unknown(&[])),
        ("[gpu]:2222 {b}", "[gpu]:2222", Changed(at(1))),
        // Patterns and lists.
        ("* {a}", "gpu", Known),
        ("* {a}", "[gpu]:2222", Known),
        ("g?u {a}", "gpu", Known),
        ("g?u {a}", "gpuu", unknown(&[])),
        ("*.lan,10.0.0.* {a}", "10.0.0.7", Known),
        ("box,gpu,10.0.0.7 {a}", "gpu", Known),
        ("[10.0.0.*]:2222 {a}", "[10.0.0.7]:2222", Known),
        ("*.lan {a}", "lan", unknown(&[])),
        // A negation overrides the other patterns of its line, and alone matches nothing.
        ("*.lan,!bad.lan {a}", "bad.lan", unknown(&[])),
        ("!bad.lan,*.lan {a}", "bad.lan", unknown(&[])),
        ("*.lan,!bad.lan {a}", "good.lan", Known),
        ("!bad.lan {a}", "good.lan", unknown(&[])),
        // Revoked overrides known, in any order.
        ("gpu {a}\n@revoked * {a}", "gpu", Revoked(at(2))),
        ("@revoked gpu {a}", "gpu", Revoked(at(1))),
        ("@revoked box {a}\ngpu {a}", "gpu", Known),
        ("@revoked * {b}\ngpu {a}", "gpu", Known),
        ("@revoked * {b}", "gpu", unknown(&[])),
        // The key of an authority is not a host's key.
        ("@cert-authority gpu {a}", "gpu", unknown(&[])),
        ("@cert-authority gpu {b}\ngpu {a}", "gpu", Known),
    ] {
        assert_eq!(judged(lines, host, &key("a"), NOW), says, "{lines:?} for {host}");
    }
}

#[test]
fn a_certificate_counts_by_its_authority_and_else_the_key_in_it() {
    use KeyJudgement::{ByAuthority, Changed, Known, Revoked};
    let ca = "@cert-authority gpu,*.lan,box {ca}";
    for (lines, host, shown, now, says) in [
        (ca, "gpu", "good-cert", NOW, ByAuthority),
        (ca, "new.lan", "good-cert", NOW, ByAuthority),
        ("@cert-authority * {ca}", "[gpu]:2222", "good-cert", NOW, ByAuthority),
        // The certificate counts even if another key of the host is known.
        ("gpu {b}\n@cert-authority gpu {ca}", "gpu", "good-cert", NOW, ByAuthority),
        (ca, "box", "good-cert", NOW, distrusted("it is for another host")),
        (ca, "gpu", "good-cert", LATER, distrusted("it is not valid at this computer's time")),
        (ca, "gpu", "good-cert", 1, distrusted("it is not valid at this computer's time")),
        (ca, "gpu", "noprinc-cert", NOW, distrusted("it is for another host")),
        (ca, "gpu", "user-cert", NOW, distrusted("it is not a host certificate")),
        (ca, "gpu", "crit-cert", NOW, distrusted("it has critical options that nobody knows")),
        // If the authority is unknown or is for other hosts, only the key counts.
        ("@cert-authority gpu {ca2}", "gpu", "good-cert", NOW, unknown(&[])),
        ("@cert-authority box {ca}", "gpu", "good-cert", NOW, unknown(&[])),
        ("gpu {a}", "gpu", "good-cert", NOW, Known),
        ("gpu {b}", "gpu", "good-cert", NOW, Changed(at(1))),
        ("gpu {a}\n@cert-authority gpu {ca}", "gpu", "good-cert", LATER, Known),
        // The key or its authority is revoked.
        ("@cert-authority gpu {ca}\n@revoked * {a}", "gpu", "good-cert", NOW, Revoked(at(2))),
        ("@cert-authority gpu {ca}\n@revoked * {ca}", "gpu", "good-cert", NOW, Revoked(at(2))),
    ] {
        assert_eq!(
            judged(lines, host, &certificate(shown), now),
            says,
            "{lines:?} for {host}: {shown} at {now}"
        );
    }
}

#[test]
fn a_certificate_that_was_changed_is_not_what_the_authority_signed() {
    let Offered::Certificate(good) = certificate("good-cert") else { panic!("a certificate") };
    let mut bytes = good.to_bytes().expect("bytes");
    let at = bytes.windows(5).position(|part| part == b"*.lan").expect("its principal");
    bytes[at..at + 5].copy_from_slice(b"*.net");
    let forged =
        Offered::Certificate(Box::new(Certificate::from_bytes(&bytes).expect("a certificate")));
    assert_eq!(
        judged("@cert-authority * {ca}", "gpu", &forged, NOW),
        distrusted("its signature is wrong")
    );
}

#[test]
fn hashed_names_are_found() {
    let lines = "|1|aOZML3ygJyjE/t9d2NqV8mtbC9g=|gM4S2bX4bsY+H+67UnMRMQbArV4= {a}\n\
                 |1|dypAcvjXMZ8Zt8y243+kRjpbAnk=|a8R9JVYEYNQkpfuqVmQiDkR9Xjk= {b}";
    assert_eq!(judged(lines, "[gpu]:2222", &key("a"), NOW), KeyJudgement::Known);
    assert_eq!(judged(lines, "box", &key("a"), NOW), KeyJudgement::Changed(at(2)));
    assert_eq!(judged(lines, "gpu", &key("a"), NOW), unknown(&[]));
}

#[test]
fn lines_that_nobody_understands_neither_count_nor_disturb() {
    for broken in [
        "gpu ssh-xyz QUJD",
        "gpu ssh-dss AAAAB3NzaC1kc3MAAACBAJ",
        "gpu ssh-ed25519 AAAA",
        "gpu ssh-ed25519 !!!!",
        "gpu ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAICCIIGkTexPN8D20EfiIWP4G2/EZb6b7tBbx305q/fZz",
        "gpu",
        "gpu ssh-ed25519",
        "@revoked",
        "@revoked gpu",
        "@whatever gpu {a}",
        "|1|xx|yy {b}",
        "|1| {b}",
        "|1|aOZML3ygJyjE/t9d2NqV8mtbC9g= {b}",
        ", {b}",
        "\u{0} \u{0} \u{0}",
        "gpu 1024 37 159",
        "###",
        "\u{feff}",
        "@cert-authority",
    ] {
        assert_eq!(
            judged(&format!("{broken}\ngpu {{a}}"), "gpu", &key("a"), NOW),
            KeyJudgement::Known,
            "{broken}"
        );
        assert_eq!(judged(broken, "gpu", &key("b"), NOW), unknown(&[]), "{broken}");
    }
}

#[test]
fn no_part_of_a_line_makes_it_panic() {
    let whole = format!(
        "@cert-authority |1|aOZML3ygJyjE/t9d2NqV8mtbC9g=|gM4S2bX4bsY+H+67UnMRMQbArV4= {}",
        text("a")
    );
    for from in 0..whole.len() {
        for to in (from..=whole.len()).step_by(7) {
            let _ = judged(&whole[from..to], "gpu", &key("a"), NOW);
        }
    }
}

#[test]
fn the_kinds_by_which_a_host_is_known_are_known() {
    let lines =
        format!("gpu {}\n@revoked * {}\n@cert-authority gpu {}", text("e"), text("a"), text("ca"));
    let lines = parse(Path::new("/known"), &lines);
    let (kinds, vouched) = kinds(&lines, "gpu");
    assert_eq!(kinds.iter().map(Algorithm::as_str).collect::<Vec<_>>(), ["ecdsa-sha2-nistp256"]);
    assert!(vouched && !super::kinds(&lines, "box").1);
}
