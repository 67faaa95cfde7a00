//! Findings about providers.

use super::*;

const BREAKAGES: [Breakage<BoxFound>; 3] = [
    (
        |found| {
            let asked = &mut found.sign_in.as_mut().expect("a provider").provider;
            asked.answered = Err("Connection refused".to_owned());
        },
        "oidc",
        Verdict::Bad,
        "https://login.example.com cannot be used (Connection refused): nobody can sign in",
        "curl -i 'https://login.example.com/.well-known/openid-configuration'",
    ),
    (
        |found| {
            found.tokens.as_mut().expect("a provider").answered = Err("silent for 5 s".to_owned())
        },
        "jwt",
        Verdict::Bad,
        "the keys of https://tokens.example.com cannot be had (silent for 5 s)",
        "curl -i 'https://tokens.example.com/.well-known/openid-configuration'",
    ),
    (
        |found| found.tokens.as_mut().expect("a provider").answered = Ok(0),
        "jwt",
        Verdict::Bad,
        "has no key for signing tokens",
        "curl -i 'https://tokens.example.com/.well-known/openid-configuration'",
    ),
];

#[test]
fn each_breakage_is_named_with_its_cure() {
    assert_each_is_named(&BREAKAGES, well, lines);
}
