//! A failure as data: what failed, why, how to cure it, and the exit code. Programs send it to each
//! other as data; only the program at the terminal turns it into text.

use std::{error::Error, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most bytes of text in a failure that is sent or received. As JSON, where one byte may become
/// six, that is less than [`MAX_LEN`](crate::wire::MAX_LEN).
const MOST_TEXT: usize = 8 * 1024;
/// The most causes, and the most hints, in such a failure.
const MOST_LINES: usize = 8;

/// The exit code of a command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "u8", from = "i64")]
#[repr(u8)]
pub enum Exit {
    /// It failed.
    #[default]
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// This device is not, or no longer, allowed.
    NotAllowed = 4,
    /// The program that was to be run cannot be run, as shells say it.
    NotRunnable = 126,
    /// There is no program of that name, as shells say it.
    NotFound = 127,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

impl From<i64> for Exit {
    /// A number that this version does not know becomes `Failed`.
    fn from(number: i64) -> Self {
        match number {
            2 => Self::Usage,
            4 => Self::NotAllowed,
            126 => Self::NotRunnable,
            127 => Self::NotFound,
            _ => Self::Failed,
        }
    }
}

/// An error as the person at the terminal sees it: what failed, why, and how to cure it.
///
/// As JSON it is `{"what", "causes", "hints", "exit"}`. Unknown fields are ignored, and every field
/// except `what` may be missing. Text beyond 8 KiB and lines beyond 8 are cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    what: String,
    causes: Vec<String>,
    hints: Vec<String>,
    exit: Exit,
}

impl Failure {
    /// A failure without causes and hints.
    pub fn new(what: impl fmt::Display) -> Self {
        Self {
            what: what.to_string(),
            causes: Vec::new(),
            hints: Vec::new(),
            exit: Exit::default(),
        }
    }

    /// A failure from an error. Its sources become the causes.
    pub fn from_error(error: impl Error + Send + Sync + 'static) -> Self {
        let mut failure = Self::new(&error);
        failure.add_causes(error.source());
        failure
    }

    /// Replaces the causes with this error and its sources.
    pub fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let source = source.into();
        self.causes.clear();
        self.add_causes(Some(&*source));
        self
    }

    /// Replaces the causes with another failure, for example one that another program has sent, and
    /// its causes. Adds its hints, and takes its exit code.
    pub fn caused_by(mut self, other: Self) -> Self {
        self.causes.clear();
        self.add_cause(other.what);
        for cause in other.causes {
            self.add_cause(cause);
        }
        self.hints.extend(other.hints);
        self.exit = other.exit;
        self
    }

    /// Adds a hint: how to cure it, if possible with the exact command.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hints.push(hint.to_string());
        self
    }

    /// Replaces each hint.
    pub fn map_hints(mut self, put: impl Fn(&str) -> String) -> Self {
        self.hints.iter_mut().for_each(|hint| *hint = put(hint));
        self
    }

    /// Removes the hints, for a caller that knows a better cure.
    pub fn without_hints(mut self) -> Self {
        self.hints.clear();
        self
    }

    /// Sets the exit code, which is 1 otherwise.
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// What failed.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why, the nearest cause first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// How to cure it, the likeliest cure first.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    pub fn exit_code(&self) -> Exit {
        self.exit
    }

    fn add_causes(&mut self, mut cause: Option<&(dyn Error + 'static)>) {
        while let Some(error) = cause {
            self.add_cause(error.to_string());
            cause = error.source();
        }
    }

    /// Adds a cause. Errors often have the same text as their source, which is not repeated.
    fn add_cause(&mut self, cause: String) {
        if self.causes.last().unwrap_or(&self.what) != &cause {
            self.causes.push(cause);
        }
    }
}

/// An error and its causes in one line, with `: ` between them. A text that the line ends with already
/// is not repeated.
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
    }
    line
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        for cause in &self.causes {
            write!(f, "\n  Caused by: {cause}")?;
        }
        for (i, hint) in self.hints.iter().enumerate() {
            f.write_str(if i == 0 { "\n\nhint: " } else { "\n      " })?;
            f.write_str(hint)?;
        }
        Ok(())
    }
}

/// The JSON of a failure.
#[derive(Serialize, Deserialize)]
struct FailureJson {
    what: String,
    #[serde(default)]
    causes: Vec<String>,
    #[serde(default)]
    hints: Vec<String>,
    #[serde(default)]
    exit: Exit,
}

/// What can be received: a failure, or the text that versions before 0.2 sent.
#[derive(Deserialize)]
#[serde(untagged)]
enum Received {
    Message(FailureJson),
    Text(String),
}

impl From<String> for FailureJson {
    fn from(text: String) -> Self {
        let what = text.strip_prefix("error: ").unwrap_or(&text).to_owned();
        Self { what, causes: Vec::new(), hints: Vec::new(), exit: Exit::default() }
    }
}

impl FailureJson {
    fn bounded(self) -> Self {
        let mut left = MOST_TEXT;
        let mut take = |mut text: String| {
            let end = (0..=left.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or(0));
            left -= text.len();
            text
        };
        let what = take(self.what);
        // Hints before causes: they are short, and more useful than the last causes.
        let hints = self.hints.into_iter().take(MOST_LINES).map(&mut take).collect();
        let causes = self.causes.into_iter().take(MOST_LINES).map(&mut take).collect();
        Self { what, causes, hints, exit: self.exit }
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { what, causes, hints, exit } = self.clone();
        FailureJson { what, causes, hints, exit }.bounded().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Failure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let message = match Received::deserialize(deserializer)? {
            Received::Message(message) => message,
            Received::Text(text) => FailureJson::from(text),
        };
        let FailureJson { what, causes, hints, exit } = message.bounded();
        Ok(Self { what, causes, hints, exit })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken() -> Failure {
        let cause = std::io::Error::new(
            std::io::ErrorKind::AddrInUse,
            "address already in use by `ollama` (pid 812)",
        );
        Failure::new("cannot listen on localhost:11434")
            .source(cause)
            .hint("run `adit up --listen localhost:11500`")
            .hint("or stop it")
            .exit(Exit::Usage)
    }

    fn read(value: serde_json::Value) -> Failure {
        serde_json::from_value(value).expect("a failure")
    }

    #[test]
    fn an_error_shows_what_why_and_the_cure() {
        assert_eq!(
            taken().to_string(),
            "error: cannot listen on localhost:11434\n  Caused by: address already in use by `ollama` (pid 812)\n\n\
             hint: run `adit up --listen localhost:11500`\n      or stop it"
        );
    }

    #[test]
    fn a_failure_is_read_as_it_was_sent() {
        let sent = serde_json::to_value(taken()).expect("JSON");
        assert_eq!(
            sent,
            json!({
                "what": "cannot listen on localhost:11434",
                "causes": ["address already in use by `ollama` (pid 812)"],
                "hints": ["run `adit up --listen localhost:11500`", "or stop it"],
                "exit": 2,
            })
        );
        assert_eq!(read(sent), taken());
    }

    #[test]
    fn unknown_fields_are_ignored_and_absent_ones_say_nothing() {
        let read = read(json!({"what": "x", "exit": 777, "severity": {"of": "a later version"}}));
        assert_eq!(read, Failure::new("x"));
        for bad in [json!({"causes": []}), json!(7), json!(null), json!({"what": ["x"]})] {
            assert!(serde_json::from_value::<Failure>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_text_of_an_older_program_is_what_failed() {
        assert_eq!(read(json!("error: no room\n  Caused by: x")).what(), "no room\n  Caused by: x");
        assert_eq!(read(json!(format!("error: {}", "x".repeat(9000)))).what().len(), MOST_TEXT);
    }

    #[test]
    fn a_failure_fits_into_a_frame_however_long_its_texts_are() {
        let long = "\u{1b}ä".repeat(50_000);
        let mut failure = Failure::new(&long);
        for _ in 0..100 {
            failure = failure.hint("free some disk space");
            failure.causes.push(long.clone());
        }
        let sent = serde_json::to_vec(&failure).expect("JSON");
        assert!(sent.len() < crate::wire::MAX_LEN, "{}", sent.len());
        let read: Failure = serde_json::from_slice(&sent).expect("a failure");
        assert!(read.hints.len() <= MOST_LINES && read.what.starts_with("\u{1b}ä"));
    }

    #[test]
    fn an_error_in_one_line_says_each_cause_once() {
        #[derive(Debug)]
        struct Link(&'static str, Option<Box<Link>>);
        impl fmt::Display for Link {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0)
            }
        }
        impl Error for Link {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                self.1.as_deref().map(|link| link as _)
            }
        }
        for (texts, line) in [
            (&["no room"][..], "no room"),
            (&["cannot write", "no room", "disk 3"], "cannot write: no room: disk 3"),
            (&["no room", "no room"], "no room"),
            (&["cannot write: no room", "no room", "disk 3"], "cannot write: no room: disk 3"),
            (&["no room", ""], "no room"),
        ] {
            let chained =
                texts.iter().rev().fold(None, |next, text| Some(Box::new(Link(text, next))));
            assert_eq!(in_one_line(&*chained.expect("an error")), line);
        }
    }

    #[test]
    fn a_failure_that_another_caused_keeps_its_cure_and_its_exit_code() {
        let told = Failure::new("the settings stay as they were").caused_by(taken());
        assert_eq!(told.causes().first().map(String::as_str), Some(taken().what()));
        assert_eq!((told.causes().len(), told.hints()), (2, taken().hints()));
        assert_eq!(told.exit_code(), Exit::Usage);
    }
}
