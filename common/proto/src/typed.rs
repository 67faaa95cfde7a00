//! Commands in texts, as they have to be typed on this machine: with the flags that the program which
//! tells them was started with.

/// A flag that commands need, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Like `--state-dir`.
    pub name: &'static str,
    /// As it is; it is quoted where a shell needs that.
    pub value: String,
}

/// `text`, in which every command of `program` (between backticks) has these flags too, unless it
/// names them itself.
pub fn with_flags(text: &str, program: &str, flags: &[Flag]) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // One without an end is none.
    if parts.len().is_multiple_of(2) || flags.is_empty() {
        return text.to_owned();
    }
    let parts = parts.iter().enumerate().map(|(at, part)| {
        let is_command = at % 2 == 1 && part.split(' ').next() == Some(program);
        let missing =
            flags.iter().filter(|flag| is_command && !part.split(' ').any(|w| w == flag.name));
        // What follows `--` belongs to another program.
        let (own, others) = part.find(" -- ").map_or((*part, ""), |at| part.split_at(at));
        let own = missing.fold(own.to_owned(), |command, Flag { name, value }| {
            format!("{command} {name} {}", quoted(value))
        });
        own + others
    });
    parts.collect::<Vec<_>>().join("`")
}

/// A word as a POSIX shell takes it: in quotes, where it needs them.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_./:@%+=,-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_the_program_gets_the_flags_that_it_needs_and_nothing_else_does() {
        let dir = [Flag { name: "--state-dir", value: "/srv/a".to_owned() }];
        for (text, typed) in [
            ("start it with `adit up`", "start it with `adit up --state-dir /srv/a`"),
            (
                "run `adit up lab` and `adit status`",
                "run `adit up lab --state-dir /srv/a` and `adit status --state-dir /srv/a`",
            ),
            ("`adit`", "`adit --state-dir /srv/a`"),
            ("on the server `aditd invite NAME`", "on the server `aditd invite NAME`"),
            ("run adit up", "run adit up"),
            ("`ssh adit up`", "`ssh adit up`"),
            ("`adit run -- env -0`", "`adit run --state-dir /srv/a -- env -0`"),
            ("`adit up --state-dir /b`", "`adit up --state-dir /b`"),
            ("an `adit up without an end", "an `adit up without an end"),
            ("", ""),
        ] {
            assert_eq!(with_flags(text, "adit", &dir), typed);
            assert_eq!(with_flags(text, "adit", &[]), text);
        }
    }

    #[test]
    fn a_value_is_quoted_where_a_shell_would_take_it_apart() {
        let typed = |value: &str| {
            let flags = [
                Flag { name: "--state-dir", value: value.to_owned() },
                Flag { name: "--config", value: "c".to_owned() },
            ];
            with_flags("`aditd serve`", "aditd", &flags)
        };
        assert_eq!(typed("/a b"), "`aditd serve --state-dir '/a b' --config c`");
        assert_eq!(typed("/it's"), r"`aditd serve --state-dir '/it'\''s' --config c`");
        assert_eq!(typed("$HOME"), "`aditd serve --state-dir '$HOME' --config c`");
        assert_eq!(typed(""), "`aditd serve --state-dir '' --config c`");
        assert_eq!(typed("/ö"), "`aditd serve --state-dir /ö --config c`");
    }
}
