//! What has to hold for any bytes that the gate reads, for the tests and for the fuzzer.

use std::net::IpAddr;

use proto::{
    http1::{
        BodyLength,
        framing::Body,
        head::{Fault, HeadReader, RequestHead},
        response::Tracker,
    },
    ollama::{
        host::{self, Own},
        json_scan::JsonScan,
        model::{self, ModelPattern},
        named_models::NamedModels,
        route::{Pattern, Target, route},
        usage::AnswerUsage,
    },
};

/// The bytes in the parts that these places cut them into.
fn parts<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(bytes.len())).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut from = 0;
    cuts.into_iter().map(|to| &bytes[std::mem::replace(&mut from, to)..to]).collect()
}

/// What a head comes to: itself and its length; `None` while it goes on.
fn head_of(parts: &[&[u8]]) -> Result<Option<(RequestHead, usize)>, Fault> {
    let (mut reader, mut before) = (HeadReader::default(), 0);
    for part in parts {
        if let Some(taken) = reader.take(part)? {
            return RequestHead::parse(&reader.finish()).map(|head| Some((head, before + taken)));
        }
        before += part.len();
    }
    Ok(None)
}

/// A request's head gets one verdict, and is read by httparse as by us.
///
/// # Panics
/// If it doesn't.
pub fn check_request(bytes: &[u8], cuts: &[usize]) {
    let whole = head_of(&[bytes]);
    assert_eq!(head_of(&parts(bytes, cuts)), whole);
    if let Ok(Some((head, len))) = whole {
        assert!(bytes[..len].ends_with(b"\r\n\r\n") && head.target.starts_with('/'));
        let text = String::from_utf8_lossy(&bytes[..len]);
        assert!(text.starts_with(&format!("{} {} HTTP/1.", head.method, head.target)));
        // Whatever a reader could take for another end of the head is in none of its lines.
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
        assert_eq!(text.matches('\r').count(), text.matches("\r\n").count());
    }
}

/// A body ends at one place.
///
/// # Panics
/// If it doesn't.
pub fn check_body(bytes: &[u8], cuts: &[usize]) {
    let follow = |length, parts: &[&[u8]]| -> Result<(usize, bool, Vec<u8>), Fault> {
        let (mut body, mut taken, mut text) = (Body::new(length), 0, Vec::new());
        for part in parts {
            taken += body.follow(part, |content| text.extend_from_slice(content))?;
        }
        Ok((taken, body.is_over(), text))
    };
    for length in [
        BodyLength::Chunked,
        BodyLength::Known(0),
        BodyLength::Known(7),
        BodyLength::Known(u64::MAX),
    ] {
        let whole = follow(length, &[bytes]);
        assert_eq!(follow(length, &parts(bytes, cuts)), whole);
        if let Ok((taken, over, text)) = whole {
            assert!(taken <= bytes.len() && text.len() <= taken && (over || taken == bytes.len()));
        }
    }
}

/// An answer ends at one place, and so does the scan of its bytes.
///
/// # Panics
/// If it doesn't.
pub fn check_answer(bytes: &[u8], cuts: &[usize]) {
    for to_head in [false, true] {
        let follow = |parts: &[&[u8]]| {
            let mut tracker = Tracker::new(to_head, true);
            parts.iter().for_each(|part| tracker.follow(part));
            let ends = (tracker.is_complete(), tracker.is_whole_at_close());
            (ends, tracker.status(), tracker.tokens(), tracker.pieces())
        };
        let pass = |parts: &[&[u8]]| {
            let mut tracker = Tracker::new(to_head, false);
            tracker.continued();
            let mut passed = Vec::new();
            for part in parts {
                let (held, rest) = tracker.pass(part);
                passed.extend_from_slice(held);
                passed.extend_from_slice(rest);
            }
            passed
        };
        assert_eq!(follow(&parts(bytes, cuts)), follow(&[bytes]));
        assert_eq!(pass(&parts(bytes, cuts)), pass(&[bytes]));
    }
    let scan = |parts: &[&[u8]]| {
        let (mut scan, mut usage) = (JsonScan::default(), AnswerUsage::default());
        parts.iter().for_each(|part| {
            scan.push(part);
            usage.push(part);
        });
        ((scan.model(), scan.stream(), scan.prompt_tokens()), usage.tokens(), usage.pieces())
    };
    assert_eq!(scan(&parts(bytes, cuts)), scan(&[bytes]));
}

struct Nobody;

impl Own for Nobody {
    fn is_name(&self, _: &str) -> bool {
        false
    }

    fn is_address(&self, _: IpAddr) -> bool {
        false
    }
}

/// Names, paths and JSON are read without a panic.
///
/// # Panics
/// If a body that comes in parts names other models than the whole, a path that is canonical could
/// be another, or a model's pattern does not mean itself.
pub fn check_names(bytes: &[u8]) {
    let lists: &[&[&str]] = &[&["model", "name"], &["from"]];
    let mut named = NamedModels::new(lists);
    bytes.chunks(7).for_each(|part| named.push(part));
    if let Ok(models) = named.finish() {
        assert_eq!(model::named(bytes, lists), Ok(models), "{}", String::from_utf8_lossy(bytes));
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = (host::allows(&text, &Nobody), text.parse::<Pattern>());
    if let Ok(pattern) = text.parse::<ModelPattern>() {
        assert!(text.contains('*') || pattern.means(&text), "{text}");
    }
    let target = Target::new(&text);
    let _ = route("POST", target);
    if target.canonical {
        assert!(
            !target.path.contains("//")
                && !target.path.contains("/../")
                && !target.path.contains("/./"),
            "{text}"
        );
        assert!(
            !target.path.contains('\\') && !target.path.to_ascii_lowercase().contains("%2f"),
            "{text}"
        );
    }
}
