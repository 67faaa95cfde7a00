//! What the gate reads itself: any bytes, cut anywhere, get one verdict, and never a panic.
//! `tests/fuzz` looks further, with the same checks.

use proptest::prelude::*;
use tests::parsers::{check_answer, check_body, check_names, check_request};

/// Bytes that are nearly a request, an answer or chunks.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "GET ",
            "POST ",
            "/",
            "/api/chat",
            "//",
            "%2e",
            " HTTP/1.1",
            " HTTP/1.0",
            "HTTP/1.1 200 OK",
            "HTTP/1.1 100 Continue",
            "\r\n",
            "\r\n",
            "\r\n\r\n",
            "\r",
            "\n",
            "Host: a",
            "Content-Length: 3",
            "Content-Length:",
            "Transfer-Encoding: chunked",
            " ",
            "\t",
            ":",
            "0",
            "3",
            "a",
            "f",
            ";x",
            "abc",
            "\0",
            "+",
            "{\"model\":\"a\"",
            "\"MODEL\"",
            "\\u006d",
            "null",
            "}",
            ",",
            "\u{17f}",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_gets_one_verdict_however_it_is_cut(bytes in nearly(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        check_request(&bytes, &at(&bytes, &cuts));
    }

    #[test]
    fn a_body_ends_at_one_place_however_it_is_cut(bytes in nearly(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        check_body(&bytes, &at(&bytes, &cuts));
    }

    #[test]
    fn an_answer_ends_at_one_place_however_it_is_cut(bytes in nearly(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        check_answer(&bytes, &at(&bytes, &cuts));
    }

    #[test]
    fn names_paths_and_models_are_read_without_a_panic(bytes in nearly()) {
        check_names(&bytes);
    }
}

fn at(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<usize> {
    cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect()
}
