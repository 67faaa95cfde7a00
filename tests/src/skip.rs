//! Tests that need something which not every machine has: in CI they fail without it, elsewhere
//! they report that they were skipped.

use std::io::Write;

/// Whether a test must be skipped because the kernel of this machine has no Landlock that limits TCP
/// ports (Linux 6.7). That cannot be installed, so `ADIT_REQUIRE_ALL` does not ask for it; it asks
/// for everything else, so the kernel is looked at here, and the program that is tested not believed.
pub fn skip_without_landlock() -> bool {
    if kernel_limits_ports() {
        return false;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let why = "this kernel has no Landlock that limits TCP ports";
    let _ = writeln!(std::io::stderr(), "skipped {test}: {why}");
    true
}

#[cfg(target_os = "linux")]
fn kernel_limits_ports() -> bool {
    use landlock::{AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr};
    // A set of rules that is not put in force.
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessNet::ConnectTcp).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn kernel_limits_ports() -> bool {
    false
}

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
