//! What the gate reads itself: the first bytes say where the rest is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tests::parsers::{check_answer, check_body, check_names, check_request};

fuzz_target!(|input: (u16, u16, &[u8])| {
    let (first, second, bytes) = input;
    let cuts = [usize::from(first), usize::from(second)];
    check_request(bytes, &cuts);
    check_body(bytes, &cuts);
    check_answer(bytes, &cuts);
    check_names(bytes);
});
