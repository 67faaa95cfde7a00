use proptest::prelude::*;

use super::*;
use crate::ollama::model;

const MODEL: &[&[&str]] = &[&["model"]];
const NAME: &[&[&str]] = &[&["model", "name"]];
const TWO: &[&[&str]] = &[&["model", "name"], &["from"]];

/// What is said of a body, for every way to cut it in two.
fn read(body: &[u8], lists: &'static [&'static [&'static str]]) -> Result<Vec<String>, Unreadable> {
    let of = |parts: [&[u8]; 2]| {
        let mut named = NamedModels::new(lists);
        for part in parts {
            named.push(part);
            if let (Some(settled), Ok(all)) = (named.settled(), model::named(body, lists)) {
                assert_eq!(settled, all, "{}", String::from_utf8_lossy(body));
            }
        }
        named.finish()
    };
    let whole = of([body, b""]);
    for cut in 0..body.len() {
        assert_eq!(of([&body[..cut], &body[cut..]]), whole, "cut at {cut}");
    }
    whole
}

#[test]
fn what_is_said_of_a_body_that_comes_is_what_is_said_of_the_whole() {
    for body in [
        r#"{"model":"a"}"#,
        r#"{"messages":[{"content":"\"model\":\"b\""}],"model":"a"} "#,
        r#"{"model":"a","model":"b"}"#,
        r#"{"model":"a","Model":"b"}"#,
        r#"{"model":"a","mode\u006c":"b"}"#,
        r#"{"mode\u006c":"\u0061"}"#,
        r#"{"model":null,"name":"a"}"#,
        r#"{"model":"","name":"a","from":"b"}"#,
        r#"{"from":"b","name":"a"}"#,
        r#"{"model":1}"#,
        r#"{"model":["a"]}"#,
        r#"{"model":"a"}x"#,
        r#"{"model":"a"}{"model":"b"}"#,
        r#"[{"model":"a"}]"#,
        r#""model""#,
        r#"{"a":{"model":"b"},"b":[1,-0.5e+3,true,false,null,{}],"model":"a"}"#,
        r#"{"model":"a",}"#,
        r#"{"model":"a","b":01}"#,
        r#"{"model":"a","b":tru}"#,
        r#"{"model":"a","b":[}"#,
        r#"{"model":"a","b":"\x"}"#,
        r#"{"model":"a","b":"\ud800"}"#,
        r#"{"model":"\ud800"}"#,
        "{\"model\":\"a\n\"}",
        r#"{"model":"a""#,
        "",
        " ",
    ] {
        for lists in [MODEL, NAME, TWO] {
            assert_eq!(
                read(body.as_bytes(), lists),
                model::named(body.as_bytes(), lists),
                "{body}"
            );
        }
    }
    let long = format!(r#"{{"{0}":"{0}","model":"a"}}"#, "x".repeat(2 * MOST_NAME));
    assert_eq!(read(long.as_bytes(), MODEL), Ok(vec!["a".to_owned()]));
    for depth in [126, 127, 128] {
        let deep = format!(r#"{{"a":{}{},"model":"a"}}"#, "[".repeat(depth), "]".repeat(depth));
        let (streamed, whole) =
            (read(deep.as_bytes(), MODEL), model::named(deep.as_bytes(), MODEL));
        assert!(streamed == whole || streamed == Err(Unreadable::Malformed), "{depth}");
    }
}

#[test]
fn a_model_that_comes_early_is_known_early() {
    let mut named = NamedModels::new(MODEL);
    named.push(br#"{"stream":true,"model":"a"#);
    assert_eq!(named.settled(), None);
    named.push(br#"","messages":[{"images":["#);
    assert_eq!(named.settled(), Some(vec!["a".to_owned()]));
    named.push(br#""x"]}],"MODEL":"#);
    assert_eq!((named.settled(), named.fault()), (None, Some(Unreadable::Ambiguous)));
    // A name may still be overruled by a model.
    let mut named = NamedModels::new(NAME);
    named.push(br#"{"name":"a","#);
    assert_eq!(named.settled(), None);
}

proptest! {
    #[test]
    fn any_pieces_of_json_are_read_as_the_whole_is(
        pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"model\"", "\"Model\"", "\"name\"", "\"from\"",
                "\"a\"", "\"\\u006d\"", "\"", "\\", "1", "-", "0", ".5", "e3", "true", "null",
                " ", "x", "\"model\":\"a\"", "\"name\":\"b\",", "{\"model\":",
            ]),
            0..14,
        )
    ) {
        let body = pieces.concat();
        for lists in [MODEL, NAME, TWO] {
            prop_assert_eq!(
                read(body.as_bytes(), lists),
                model::named(body.as_bytes(), lists),
                "{}", body
            );
        }
    }
}
