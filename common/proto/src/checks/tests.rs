//! Runs the checks on every seed of the fuzzer, and on bytes that are nearly right.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use proptest::prelude::*;

use super::*;

#[test]
fn what_has_to_hold_holds_for_every_seed_of_the_fuzzer() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |folder: &str| {
        let entries = fs::read_dir(fuzz.join(folder)).expect("the folder is there");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").path())
            .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let checks = ALL.map(|(name, _)| name);
    assert_eq!(names("seeds"), checks, "every check has seeds, and all seeds have a check");
    assert_eq!(names("fuzz_targets"), checks, "every check has a target");
    let mut failed = Vec::new();
    for (name, check) in ALL {
        let seeds: Vec<_> = fs::read_dir(fuzz.join("seeds").join(name))
            .expect("the folder is there")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        assert!(seeds.len() >= 8, "{name} has only {} seeds", seeds.len());
        for seed in seeds {
            let bytes = fs::read(&seed).expect("a seed");
            if catch_unwind(AssertUnwindSafe(|| check(&bytes))).is_err() {
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Bytes that are nearly a request, an answer, chunks or JSON.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    #[rustfmt::skip]
    let pieces = vec![
        "GET ", "POST ", "/", "/api/chat", "//", "%2e", " HTTP/1.1", " HTTP/1.0",
        "HTTP/1.1 200 OK", "HTTP/1.1 100 Continue", "\r\n", "\r\n", "\r\n\r\n", "\r", "\n",
        "Host: a", "Content-Length: 3", "Content-Length:", "Transfer-Encoding: chunked",
        " ", "\t", ":", "0", "3", "a", "f", ";x", "abc", "\0", "+", "{", "[", "]", "\"",
        "{\"model\":\"a\"", "\"MODEL\"", "\\u006d", "\\ud83d", "null", "}", ",", "\u{17f}",
        "{\"what\":\"x\"", "\"eval_count\":7", "data: ", "*", "localhost", "[::1]",
    ];
    let piece = prop_oneof![
        prop::sample::select(pieces).prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_has_to_hold_holds_for_bytes_that_are_nearly_right(bytes in nearly()) {
        ALL.iter().for_each(|(_, check)| check(&bytes));
    }
}
