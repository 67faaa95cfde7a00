//! Tests that need something which not every machine has: in CI they fail without it, elsewhere
//! they report that they were skipped.

use std::io::Write;

/// Whether a test must be skipped because the kernel of this machine has no Landlock that limits TCP
/// ports (Linux 6.7). That cannot be installed, so `ADIT_REQUIRE_ALL` does not ask for it; it asks
/// for everything else, so the kernel is looked at here, and the program that is tested not believed.
pub fn skip_without_landlock() -> bool {
    if landlock::limits_ports() {
        return false;
    }
    say_skipped("this kernel has no Landlock that limits TCP ports");
    true
}

/// Whether the kernel of this machine has a Landlock that limits signals (Linux 6.12).
pub fn landlock_limits_signals() -> bool {
    landlock::limits_signals()
}

#[cfg(target_os = "linux")]
mod landlock {
    use landlock::{AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};

    // A set of rules that is not put in force.
    fn rules() -> Ruleset {
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement)
    }

    pub(super) fn limits_ports() -> bool {
        rules().handle_access(AccessNet::ConnectTcp).is_ok()
    }

    pub(super) fn limits_signals() -> bool {
        rules().scope(Scope::Signal).is_ok()
    }
}

#[cfg(not(target_os = "linux"))]
mod landlock {
    pub(super) fn limits_ports() -> bool {
        false
    }

    pub(super) fn limits_signals() -> bool {
        false
    }
}

fn this_test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Says so also if the output of tests is captured.
fn say_skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped {}: {why}", this_test());
}

/// Reports that a test is skipped because `missing` is not on this machine, also if the output of
/// tests is captured. Returns `true`.
///
/// # Panics
/// If `ADIT_REQUIRE_ALL` is set, as in CI: there no test may be skipped.
pub fn skip_test(missing: &str) -> bool {
    assert!(
        std::env::var_os("ADIT_REQUIRE_ALL").is_none(),
        "{}: {missing}, and ADIT_REQUIRE_ALL is set",
        this_test()
    );
    say_skipped(missing);
    true
}
