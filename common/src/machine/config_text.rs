//! A configuration file (TOML): how it is read, and where in it something is wrong.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, Visitor},
};

use crate::machine::report::{Exit, Failure};

/// The longest file, in bytes. A device or a pipe may have no end.
const LONGEST: u64 = 1 << 20;
/// How many typing errors, in characters, a name may have and still be recognized.
const TYPING_ERRORS: usize = 3;

/// The text of a configuration file.
#[derive(Debug)]
pub struct ConfigText {
    path: PathBuf,
    text: String,
}

impl ConfigText {
    /// Reads the file.
    ///
    /// # Errors
    /// Exit code 2 if it cannot be read, or is longer than 1 MiB.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        text(path).map(|text| Self::new(path, text)).map_err(|e| unreadable(path, e))
    }

    /// Like [`ConfigText::read`]; `None` if there is no such file, or it is in a directory of
    /// another user that this user cannot look into.
    ///
    /// # Errors
    /// Likewise.
    pub fn read_if_there(path: &Path) -> Result<Option<Self>, Failure> {
        match text(path) {
            Ok(text) => Ok(Some(Self::new(path, text))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && is_hidden(path) => Ok(None),
            Err(e) => Err(unreadable(path, e)),
        }
    }

    /// A file with this text.
    pub fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// A text at the top of the file, and the byte where it begins, even if other parts of the file are
    /// wrong.
    pub fn text_at(&self, key: &str) -> Option<(String, usize)> {
        let (table, _) = toml::de::DeTable::parse_recoverable(&self.text);
        let value = table.get_ref().get(key)?;
        Some((value.get_ref().as_str()?.to_owned(), value.span().start))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The content.
    ///
    /// # Errors
    /// Exit code 2 if it is not what `T` may be, with the line. For a setting that does not exist,
    /// also with the nearest name and all settings of its table.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        toml::from_str(&self.text).map_err(|e| self.explained(&e))
    }

    /// The failure that what stands at this byte of the text is wrong.
    pub fn wrong_at(&self, at: usize, why: impl fmt::Display) -> Failure {
        let line = line_at(&self.text, at);
        self.wrong(format!("line {line}: {why}")).hint(correct(line))
    }

    fn wrong(&self, why: String) -> Failure {
        usage(format!("the configuration `{}` is wrong", self.path.display())).source(why)
    }

    fn explained(&self, error: &toml::de::Error) -> Failure {
        let (full, message) = (error.to_string(), error.message());
        let full = full.trim_end();
        let unknown =
            message.split_once(", expected ").filter(|_| message.starts_with("unknown field "));
        let Some((unknown, known)) = unknown else {
            let at = error.span().map_or(0, |span| span.start);
            let line = line_at(&self.text, at);
            let failure = self.wrong(full.replace(message, &plain(message)));
            let meant = self.with_unit(line, message).or_else(|| self.in_list(line, error));
            return match meant {
                Some(written) => failure.hint(format!("write line {line} as `{written}`")),
                None => failure.hint(correct(line)),
            };
        };
        let failure = self.wrong(full.replace(message, unknown));
        let name = unknown.split('`').nth(1).unwrap_or_default();
        let failure = match nearest(name, known.split('`').skip(1).step_by(2)) {
            Some(meant) => failure.hint(format!("did you mean `{meant}`?")),
            None => failure,
        };
        let known = known.strip_prefix("one of ").unwrap_or(known);
        failure.hint(format!("the settings here are {known}"))
    }
}

impl ConfigText {
    /// A line that has a number without a unit, as it was most likely meant.
    fn with_unit(&self, line: usize, message: &str) -> Option<String> {
        let (_, value) = message.split_once(NO_UNIT)?;
        let (key, _) = self.text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
        Some(format!("{} = {value}", key.trim()))
    }

    /// A line that has one text where a list of them belongs, as it was most likely meant.
    fn in_list(&self, line: usize, error: &toml::de::Error) -> Option<String> {
        let message = error.message();
        if !(message.starts_with("invalid type: string ") && message.ends_with(A_LIST)) {
            return None;
        }
        let (key, _) = self.text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
        let value = self.text.get(error.span()?)?;
        let is_line = !value.contains('\n') && value.starts_with(['"', '\'']);
        is_line.then(|| format!("{} = [{value}]", key.trim()))
    }
}

/// How the parser says that a list was expected.
const A_LIST: &str = "expected a sequence";

/// What the parser says, in the words of a person who writes the file.
fn plain(message: &str) -> String {
    [
        (A_LIST, "expected a list in brackets"),
        ("expected a boolean", "expected `true` or `false`, without quotes"),
        ("invalid IP address syntax", "this is not a network: write it like 192.168.1.0/24"),
        ("expected a map", "expected a table: `{ NAME = VALUE }`"),
        ("expected path string", "expected a path in quotes"),
        ("wanted string or table", "expected text in quotes"),
    ]
    .iter()
    .find_map(|(said, plain)| Some(format!("{}{plain}", message.strip_suffix(said)?)))
    .unwrap_or_else(|| message.to_owned())
}

/// What stands between the number and the value as it was most likely meant.
const NO_UNIT: &str = "` has no unit: write it in quotes with its unit, like ";

/// A length of time as text, like "30s". For a number alone, the error says how to write it, with
/// `UNIT` as the likeliest unit.
#[derive(Debug, Clone)]
pub struct WithUnit<const UNIT: char>(pub String);

impl<'de, const UNIT: char> Deserialize<'de> for WithUnit<UNIT> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Written<const UNIT: char>;
        impl<const UNIT: char> Visitor<'_> for Written<UNIT> {
            type Value = WithUnit<UNIT>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a length of time in quotes, like \"30{UNIT}\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(WithUnit(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                if number < 0 {
                    return Err(E::custom(format!(
                        "`{number}` is below zero: write a length of time in quotes, like \"30{UNIT}\""
                    )));
                }
                Err(E::custom(format!("`{number}{NO_UNIT}\"{number}{UNIT}\"")))
            }
        }
        from.deserialize_any(Written)
    }
}

/// The path of a file or directory as it is written. A relative path begins at the directory of the
/// configuration file, wherever the program was started.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct WrittenPath(PathBuf);

impl WrittenPath {
    /// The path, if the configuration file is in `dir`.
    pub fn resolve_in(&self, dir: &Path) -> PathBuf {
        dir.join(&self.0)
    }
}

impl TryFrom<PathBuf> for WrittenPath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.as_os_str().is_empty() {
            return Err("a path is empty: write it, or leave the setting out".to_owned());
        }
        // No shell reads the file.
        if path.as_os_str().as_encoded_bytes().starts_with(b"~") {
            let path = path.display();
            return Err(format!("`{path}` begins with `~`: write the whole path, without `~`"));
        }
        Ok(Self(path))
    }
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB"));
    }
    Ok(text)
}

/// Whether this user cannot even see if the file exists.
fn is_hidden(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    usage(format!("cannot read the configuration `{}`", path.display()))
        .source(error)
        .hint("name another file with --config")
}

fn usage(what: String) -> Failure {
    Failure::new(what).exit(Exit::Usage)
}

fn correct(line: usize) -> String {
    format!("correct line {line}, then run the same command again")
}

fn line_at(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// The known name that `name` was most likely meant to be, if there is one.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |other: &str| strsim::osa_distance(name, other);
    known.min_by_key(|other| distance(other)).filter(|other| {
        let longer = other.chars().count().max(name.chars().count());
        distance(other) <= TYPING_ERRORS.min(longer / 2)
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        hold: Option<WithUnit<'s'>>,
        idle_timeout: Option<u8>,
        #[serde(default)]
        listen: Vec<String>,
        #[serde(default)]
        sandbox: bool,
        #[serde(default, rename = "allow_from")]
        _allow_from: Vec<ipnet::IpNet>,
        ca: Option<WrittenPath>,
    }

    fn read(text: &str) -> Result<Written, Failure> {
        ConfigText::new(Path::new("/etc/x.toml"), text.to_owned()).parse()
    }

    fn told(text: &str) -> String {
        read(text).expect_err(text).to_string()
    }

    #[test]
    fn a_relative_path_begins_at_the_file() {
        for (written, is) in [
            ("ca.pem", "/etc/adit/ca.pem"),
            ("keys/../ca.pem", "/etc/adit/keys/../ca.pem"),
            ("/srv/ca.pem", "/srv/ca.pem"),
        ] {
            let path = read(&format!("ca = '{written}'")).expect(written).ca.expect("set");
            assert_eq!(path.resolve_in(Path::new("/etc/adit")), Path::new(is));
        }
        for (text, says) in [
            ("ca = ''", "a path is empty"),
            ("ca = '~/ca.pem'", "without `~`"),
            ("ca = 7", "expected a path in quotes"),
        ] {
            let why = told(text);
            assert!(why.contains("line 1") && why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn a_time_without_a_unit_is_told_as_it_should_be_written() {
        let written = read("hold = '5s'\nidle_timeout = 7").expect("a file");
        assert_eq!(written.hold.expect("set").0, "5s");
        assert_eq!(written.idle_timeout, Some(7));
        for text in ["hold = 5", "idle_timeout = 7\nhold=5 # seconds"] {
            let line = text.lines().count();
            let told = told(text);
            assert!(told.contains("`5` has no unit"), "{told}");
            assert!(told.contains(&format!("write line {line} as `hold = \"5s\"`")), "{told}");
        }
        assert!(told("hold = true").contains("a length of time in quotes"));
    }

    #[test]
    fn a_value_of_another_kind_is_told_in_plain_words_with_the_line_that_was_meant() {
        let list = told("sandbox = true\nlisten = \"127.0.0.1:1\" # one");
        assert!(list.contains("expected a list in brackets"), "{list}");
        assert!(list.contains("write line 2 as `listen = [\"127.0.0.1:1\"]`"), "{list}");
        let meant = read("listen = [\"127.0.0.1:1\"]").expect("as it was told");
        assert!(meant.listen == ["127.0.0.1:1"] && !meant.sandbox);
        for (text, says) in [
            ("listen = 1", "expected a list in brackets"),
            ("sandbox = 'yes'", "expected `true` or `false`, without quotes"),
            ("hold = -5", "`-5` is below zero"),
            ("allow_from = ['1.2.3']", "write it like 192.168.1.0/24"),
        ] {
            let told = told(text);
            assert!(told.contains(says) && told.contains("correct line 1"), "{told}");
        }
    }

    #[test]
    fn one_setting_is_read_from_a_file_that_is_wrong_elsewhere() {
        for text in ["a = 'x'\nhol = 1", "a = 'x'\nhold = \nb = [", "hold = 5\na = 'x'"] {
            let file = ConfigText::new(Path::new("/etc/x.toml"), text.to_owned());
            let at = text.find("'x'").expect("it is there");
            assert_eq!(file.text_at("a"), Some(("x".to_owned(), at)), "{text}");
        }
    }

    #[test]
    fn an_unknown_setting_is_told_with_its_line_and_the_nearest_name() {
        for (text, line, meant) in [
            ("hol = ''", 1, Some("hold")),
            ("\n\nidletimeout = 1", 3, Some("idle_timeout")),
            ("hold = ''\nidle-timeout = 1", 2, Some("idle_timeout")),
            ("x = 1", 1, None),
            ("zone = 1", 1, None),
        ] {
            let told = told(text);
            assert!(told.contains("`/etc/x.toml` is wrong"), "{told}");
            assert!(told.contains(&format!("line {line}, column 1")), "{told}");
            assert!(
                told.contains("the settings here are `hold`, `idle_timeout`, `listen`, `sandbox`, `allow_from`"),
                "{told}"
            );
            match meant {
                Some(meant) => {
                    assert!(told.contains(&format!("did you mean `{meant}`?")), "{told}")
                }
                None => assert!(!told.contains("did you mean"), "{told}"),
            }
        }
        let value = told("hold = ''\nidle_timeout = 1000");
        assert!(value.contains("correct line 2"), "{value}");
        assert!(!value.contains("the settings here"), "{value}");
    }

    #[test]
    fn a_file_that_has_no_end_is_an_error_and_one_that_is_not_there_may_be_none() {
        let endless = ConfigText::read(Path::new("/dev/zero")).expect_err("it has no end");
        assert!(endless.to_string().contains("longer than 1 MiB"), "{endless}");
        assert!(ConfigText::read_if_there(Path::new("/no/where")).expect("no error").is_none());
        let missing = ConfigText::read(Path::new("/no/where")).expect_err("it is not there");
        assert_eq!(missing.exit_code(), Exit::Usage);
    }
}
