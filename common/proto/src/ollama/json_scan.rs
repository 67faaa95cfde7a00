//! Scans the JSON of a request as it passes, with bounded memory: its model, an estimate of its
//! prompt's tokens, and where it ends.

use super::model::is_same_key;

/// The most bytes of a key or of a model's name that are kept, escapes included: more than any name
/// that the gate accepts.
const MOST_TEXT: usize = 6 * 512;
/// The average number of bytes in a token of text.
const BYTES_PER_TOKEN: u64 = 4;
/// A JSON string that is longer, has no space and is ASCII counts as an image in base64, not as
/// text.
const LONGEST_WORD: u64 = 1024;
/// The estimated tokens of one image.
const IMAGE: u64 = 256;

/// Follows a JSON object as it passes: which model it names, for the record only, and whether it is
/// complete. Ollama begins when the object is complete, even if more bytes follow.
#[derive(Debug, Default)]
pub struct JsonScan {
    depth: u32,
    whole: bool,
    in_string: bool,
    escaped: bool,
    /// The current or the last string at the top level, escapes included.
    text: Vec<u8>,
    key: Key,
    found: Option<String>,
    /// The value of `stream`.
    stream: Option<bool>,
    /// The length of the current string, and whether it may be an image.
    length: u64,
    is_one_word: bool,
    /// Bytes of text in all strings.
    text_bytes: u64,
    images: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// The next string is a key.
    #[default]
    Next,
    /// A key that is not the model's; its value follows.
    Other,
    /// The key of the model.
    Model,
    /// The key `stream`.
    Stream,
}

impl JsonScan {
    /// Takes more of the body. Bytes after the object are ignored.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let [byte, after @ ..] = bytes
            && !self.whole
        {
            if self.in_string {
                bytes = self.string(bytes);
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    self.text.clear();
                    (self.length, self.is_one_word) = (0, true);
                }
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => {
                    self.whole |= self.depth == 1;
                    self.depth = self.depth.saturating_sub(1);
                }
                b':' if self.depth == 1 => {
                    let key = unescaped(&self.text);
                    let model = is_same_key("model", &key)
                        || (self.found.is_none() && is_same_key("name", &key));
                    self.key = match (model, key.as_str()) {
                        (true, _) => Key::Model,
                        (_, "stream") => Key::Stream,
                        _ => Key::Other,
                    };
                }
                b't' | b'f' if self.depth == 1 && self.key == Key::Stream => {
                    self.stream = Some(*byte == b't');
                    self.key = Key::Other;
                }
                b',' if self.depth == 1 => self.key = Key::Next,
                _ => {}
            }
            bytes = after;
        }
    }

    /// Takes more of a string, and returns the bytes after it.
    fn string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if std::mem::take(&mut self.escaped) {
            self.keep(&bytes[..1]);
            self.length += 1;
            return &bytes[1..];
        }
        let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let (content, rest) = bytes.split_at(end);
        self.keep(content);
        self.weigh(content);
        let Some((last, rest)) = rest.split_first() else { return rest };
        if *last == b'\\' {
            self.keep(b"\\");
            self.escaped = true;
        } else {
            self.in_string = false;
            if self.is_one_word && self.length > LONGEST_WORD {
                self.images += 1;
            } else {
                self.text_bytes += self.length;
            }
            if self.depth == 1 && self.key == Key::Model && !self.text.is_empty() {
                self.found = Some(unescaped(&self.text));
            }
        }
        rest
    }

    fn weigh(&mut self, content: &[u8]) {
        self.length += content.len() as u64;
        if self.is_one_word {
            self.is_one_word = content.is_ascii() && memchr::memchr(b' ', content).is_none();
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.depth == 1 {
            let room = MOST_TEXT.saturating_sub(self.text.len());
            self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// The model, if one was named.
    pub fn model(&self) -> Option<Box<str>> {
        self.found.as_deref().map(Into::into)
    }

    /// The value of `stream`, if there is one.
    pub fn stream(&self) -> Option<bool> {
        self.stream
    }

    /// The estimated tokens of the prompt.
    pub fn prompt_tokens(&self) -> u64 {
        self.text_bytes.div_ceil(BYTES_PER_TOKEN) + self.images * IMAGE
    }

    /// Whether the object is complete. The body may still go on.
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

/// Decodes the escapes of a JSON string.
fn unescaped(text: &[u8]) -> String {
    let plain = || String::from_utf8_lossy(text).into_owned();
    if memchr::memchr(b'\\', text).is_none() {
        return plain();
    }
    serde_json::from_slice(&[b"\"", text, b"\""].concat()).unwrap_or_else(|_| plain())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_estimated_by_its_text_and_an_image_is_not_text() {
        let scanned = |body: &str| {
            let mut scan = JsonScan::default();
            body.as_bytes().chunks(7).for_each(|part| scan.push(part));
            scan.prompt_tokens()
        };
        let words = "word ".repeat(1000);
        assert_eq!(scanned(&format!("{{\"prompt\":\"{words}\"}}")), 1252);
        assert_eq!(scanned(&format!("[\"{}\"]", "字".repeat(1000))), 750);
        let image = "iVBORw0KGgo".repeat(100_000);
        assert_eq!(scanned(&format!("{{\"images\":[\"{image}\"]}}")), 2 + IMAGE);
        assert_eq!(scanned("{}"), 0);
    }

    #[test]
    fn whether_an_answer_is_a_stream_is_read_at_the_top_alone() {
        for (body, stream) in [
            (r#"{"model":"a","stream":false}"#, Some(false)),
            (r#"{"stream" : true,"model":"true"}"#, Some(true)),
            (r#"{"stream":null,"a":false}"#, None),
            (r#"{"options":{"stream":true},"prompt":"\"stream\":false"}"#, None),
            ("{}", None),
        ] {
            let mut scan = JsonScan::default();
            body.bytes().for_each(|b| scan.push(&[b]));
            assert_eq!(scan.stream(), stream, "{body}");
        }
    }

    #[test]
    fn a_model_is_seen_wherever_it_stands_and_however_the_body_is_cut() {
        for (body, model) in [
            (r#"{"model":"a:b","messages":[]}"#, Some("a:b")),
            (
                r#"{"messages":[{"model":"inner","content":"\"model\":\"no\""}],"model" : "outer"}"#,
                Some("outer"),
            ),
            (r#"{"name":"n"}"#, Some("n")),
            (r#"{"model":"m","name":"n"}"#, Some("m")),
            (r#"{"mod\u0065l":"\u0061:b"}"#, Some("a:b")),
            (r#"{"model":"a","MODEL":"b"}"#, Some("b")),
            (r#"{"prompt":"model"}"#, None),
            (r#"{"prompt":"\\","model":"x"}"#, Some("x")),
            (r#"["model","x"]"#, None),
            (r#"{"model":"a"}{"model":"b"}"#, Some("a")),
            (r#"{"model":"a"}"b""#, Some("a")),
            (r#"{}{"model":"b"}"#, None),
            ("", None),
        ] {
            for cut in 0..=body.len() {
                let mut scan = JsonScan::default();
                scan.push(&body.as_bytes()[..cut]);
                scan.push(&body.as_bytes()[cut..]);
                assert_eq!(scan.model().as_deref(), model, "{body} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_reader_begins_when_the_object_is_whole_and_not_before() {
        let mut none = JsonScan::default();
        none.push(b"}]}");
        assert!(!none.is_whole(), "nothing was begun");
        for body in [r#"{"model":"a","messages":[{"content":"}}\"}"}]}"#, " \n[[]]", r#"{"a":{}}"#]
        {
            for cut in 0..body.len() {
                let mut scan = JsonScan::default();
                scan.push(&body.as_bytes()[..cut]);
                assert!(!scan.is_whole(), "{body} cut at {cut}");
                scan.push(&body.as_bytes()[cut..]);
                scan.push(b"   ");
                assert!(scan.is_whole(), "{body} cut at {cut}");
            }
        }
    }
}
