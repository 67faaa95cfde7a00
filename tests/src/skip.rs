//! Tests that need something which not every machine has: in CI they fail without it, elsewhere
//! they report that they were skipped.

use std::io::Write;

/// Reports that a test is skipped because `missing` is not on this machine, also if the output of
/// tests is captured. Returns `true`.
///
/// # Panics
/// If `ADIT_REQUIRE_ALL` is set, as in CI: there no test may be skipped.
pub fn skip_test(missing: &str) -> bool {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var_os("ADIT_REQUIRE_ALL").is_none(),
        "{test}: {missing}, and ADIT_REQUIRE_ALL is set"
    );
    let _ = writeln!(std::io::stderr(), "skipped {test}: {missing}");
    true
}
