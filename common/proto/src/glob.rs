//! Patterns with `*` and `?`, as in lists of models and in known_hosts.

/// Whether `pattern` matches `text`: `*` matches any bytes, `?` exactly one. Neither matches
/// `separator`, if there is one. Takes at most as many steps as the product of both lengths.
pub fn matches(pattern: &str, text: &str, separator: Option<u8>) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let is_wild = |byte: u8| Some(byte) != separator;
    let (mut p, mut t) = (0, 0);
    // Where to continue if the last star has to match one more byte.
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(b'?') if is_wild(text[t]) => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((after, matched)) if is_wild(text[matched]) => {
                    retry = Some((after, matched + 1));
                    (p, t) = (after, matched + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_bytes_and_a_question_mark_is_one() {
        for (pattern, text, says) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("?", "", false),
            ("?", "a", true),
            ("?", "ab", false),
            ("a", "a", true),
            ("a", "A", false),
            ("a*b*c", "a--b--b--c", true),
            ("a*b*c", "a--b--b--", false),
            ("**", "x", true),
            ("*?*", "x", true),
            ("*.lan", "a/b.lan", true),
            ("g?u", "g/u", true),
        ] {
            assert_eq!(matches(pattern, text, None), says, "{pattern} {text}");
        }
    }

    #[test]
    fn neither_matches_the_separator() {
        for (pattern, text, says) in [
            ("*", "ab", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("*/*", "a/b/c", false),
            ("a*/c", "ab/c", true),
            ("a*c", "a/c", false),
            ("*a*/c", "xaa/c", true),
            ("*a*/c", "xa/ya/c", false),
            ("a?c", "a/c", false),
            ("a/?", "a/c", true),
        ] {
            assert_eq!(matches(pattern, text, Some(b'/')), says, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_takes_no_longer_than_the_product_of_both() {
        assert!(!matches(&"*a".repeat(200), &"ab".repeat(50_000), None));
    }
}
