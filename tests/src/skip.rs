//! Parts that need what not every machine has: in CI they fail without it, elsewhere they say that
//! they were skipped.

use std::io::Write;

/// Whether a test has to stop here because `missing` is not on this machine. Says so, even where
/// test output is captured.
///
/// # Panics
/// With `ADIT_REQUIRE_ALL` set, as in CI: there nothing may be skipped.
pub fn skip_test(missing: &str) -> bool {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var_os("ADIT_REQUIRE_ALL").is_none(),
        "{test}: {missing}, and ADIT_REQUIRE_ALL is set"
    );
    let _ = writeln!(std::io::stderr(), "skipped {test}: {missing}");
    true
}
