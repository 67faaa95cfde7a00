//! A table of breakages and how each has to be named: for the tests of all three lists of checks.

use super::{Line, Verdict};

/// Breaks something; the id of the check that has to name it, its verdict, words that it has to
/// say, and the command that cures it.
pub(super) type Breakage<F> = (fn(&mut F), &'static str, Verdict, &'static str, &'static str);

/// Breaks one thing after the other on a machine where all is well.
pub(super) fn assert_each_is_named<F>(
    breakages: &[Breakage<F>],
    well: fn() -> F,
    lines: fn(&F) -> Vec<Line>,
) {
    for &(breaks, id, verdict, says, cure) in breakages {
        let mut found = well();
        breaks(&mut found);
        let lines = lines(&found);
        let line = lines.iter().find(|line| line.id == id).expect(id);
        assert_eq!(line.verdict, verdict, "{line:#?}");
        let notes: Vec<_> = line.cures.iter().map(|cure| cure.note.as_str()).collect();
        let words = format!("{} {}", line.found, notes.join(" "));
        assert!(words.contains(says), "no `{says}` in {line:#?}");
        let command = line.cures.first().and_then(|cure| cure.command.as_deref());
        assert_eq!(command, Some(cure), "{line:#?}");
        assert!(!format!("{line:?}").contains("secret"), "{line:?}");
    }
}
