//! Findings about the HTTPS listener: its certificate, and the keys of its callers.

use super::{super::https::AcmeFound, *};

fn acme(issued: bool, is_failing: bool) -> AcmeFound {
    let failing = || {
        let why = "gpu.example.com: no address (dns)".to_owned();
        (why, "see what it has".to_owned(), "getent ahosts gpu.example.com".to_owned())
    };
    AcmeFound {
        directory: "https://acme.example.com/dir".to_owned(),
        issued,
        failing: is_failing.then(failing),
        next: Some(NOW + 60),
    }
}

fn https_of(found: &mut BoxFound) -> &mut HttpsFound {
    found.https.as_mut().expect("it is on")
}

const BREAKAGES: [Breakage<BoxFound>; 7] = [
    (
        |found| https_of(found).failing = Some("it is not in PEM".to_owned()),
        "https",
        Verdict::Bad,
        "because of `/etc/adit/tls.crt`: it is not in PEM",
        "openssl x509 -noout -text -in '/etc/adit/tls.crt'",
    ),
    (
        |found| https_of(found).until = Some(NOW + 86_400),
        "https",
        Verdict::Warn,
        "read again",
        "openssl x509 -noout -enddate -in '/etc/adit/tls.crt'",
    ),
    (
        |found| (https_of(found).until, https_of(found).file) = (Some(NOW - 1), None),
        "https",
        Verdict::Bad,
        "issued anew at the start",
        "sudo systemctl restart aditd",
    ),
    (
        |found| {
            https_of(found).file = None;
            https_of(found).acme = Some(acme(false, false));
        },
        "https",
        Verdict::Warn,
        "the first certificate is being ordered from https://acme.example.com/dir",
        "aditd status",
    ),
    (
        |found| https_of(found).acme = Some(acme(true, true)),
        "https",
        Verdict::Warn,
        "https://acme.example.com/dir has issued no certificate, tried again at ",
        "getent ahosts gpu.example.com",
    ),
    (
        |found| https_of(found).acme = Some(acme(false, true)),
        "https",
        Verdict::Bad,
        "the certificate in use is of aditd's own CA, which browsers and phones do not trust",
        "getent ahosts gpu.example.com",
    ),
    (
        |found| https_of(found).keys[0].1 = NOW + 86_400,
        "https",
        Verdict::Warn,
        "the key `phone` ends",
        "aditd key rotate phone",
    ),
];

#[test]
fn each_breakage_of_https_is_named_with_its_cure() {
    assert_each_is_named(&BREAKAGES, well, lines);
}
