//! What can be seen in passing, with bounded memory: the model in a request's JSON, and the tokens
//! at an answer's end.

use super::model::is_same_key;

/// The end of an answer that is kept: its counts are in the last line, behind everything that is
/// long.
const TAIL: usize = 4 * 1024;
/// Of a key or a model's name this much is read, as it is written.
const MOST_TEXT: usize = 2 * 1024;

/// The last bytes of an answer.
#[derive(Debug, Default)]
pub struct Tail(Vec<u8>);

impl Tail {
    /// More of the answer.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        if self.0.len() + bytes.len() > 2 * TAIL {
            let cut = self.0.len().saturating_sub(TAIL - bytes.len());
            self.0.drain(..cut);
        }
        self.0.extend_from_slice(bytes);
    }

    /// Tokens of the prompt and of the answer, where it says them: Ollama's own counts, OpenAI's or
    /// Anthropic's usage.
    pub fn tokens(&self) -> (Option<u64>, Option<u64>) {
        let last = |keys: [&str; 3]| {
            keys.iter().filter_map(|key| number_behind(&self.0, key)).max_by_key(|(at, _)| *at)
        };
        (
            last(["\"prompt_eval_count\":", "\"prompt_tokens\":", "\"input_tokens\":"])
                .map(|(_, count)| count),
            last(["\"eval_count\":", "\"completion_tokens\":", "\"output_tokens\":"])
                .map(|(_, count)| count),
        )
    }
}

/// Where a key stands last, and the number behind it. In a string the key's quotes would be
/// escaped, so that no answer can say it.
fn number_behind(text: &[u8], key: &str) -> Option<(usize, u64)> {
    let at = memchr::memmem::rfind(text, key.as_bytes())?;
    let rest = text[at + key.len()..].trim_ascii_start();
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    Some((at, std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?))
}

/// Follows a JSON object that passes: which model it names, for the record alone; and whether it is
/// whole, because then Ollama begins, whatever comes behind it.
#[derive(Debug, Default)]
pub struct JsonScan {
    depth: u32,
    whole: bool,
    in_string: bool,
    escaped: bool,
    /// At the top level: what the string that is being read, or was read last, says, as it is
    /// written.
    text: Vec<u8>,
    key: Key,
    found: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// The next string is a key.
    #[default]
    Next,
    /// A key that is not the model's; its value follows.
    Other,
    /// The model's.
    Model,
}

impl JsonScan {
    /// More of the body. Nobody reads what is behind the object.
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
                    self.key = if model { Key::Model } else { Key::Other };
                }
                b',' if self.depth == 1 => self.key = Key::Next,
                _ => {}
            }
            bytes = after;
        }
    }

    /// More of a string; what is behind it.
    fn string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if std::mem::take(&mut self.escaped) {
            self.keep(&bytes[..1]);
            return &bytes[1..];
        }
        let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let (content, rest) = bytes.split_at(end);
        self.keep(content);
        let Some((last, rest)) = rest.split_first() else { return rest };
        if *last == b'\\' {
            self.keep(b"\\");
            self.escaped = true;
        } else {
            self.in_string = false;
            if self.depth == 1 && self.key == Key::Model && !self.text.is_empty() {
                self.found = Some(unescaped(&self.text));
            }
        }
        rest
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

    /// Whether a reader has all that it needs, although the body may go on.
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

/// What a string says that is written like this in JSON.
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

    fn tokens(answer: &str) -> (Option<u64>, Option<u64>) {
        let mut whole = Tail::default();
        whole.push(answer.as_bytes());
        let mut bytewise = Tail::default();
        answer.bytes().for_each(|b| bytewise.push(&[b]));
        assert_eq!(whole.tokens(), bytewise.tokens());
        whole.tokens()
    }

    #[test]
    fn tokens_are_found_at_the_end_of_each_kind_of_answer() {
        let context = format!("[{}1]", "12345,".repeat(3000));
        let last = format!(
            r#"{{"done":true,"context":{context},"prompt_eval_count":26,"prompt_eval_duration":1,"eval_count": 290}}"#
        );
        assert_eq!(tokens(&format!("{{\"response\":\"a\"}}\n{last}\n")), (Some(26), Some(290)));
        let sse = "data: {\"choices\":[]}\n\ndata: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9,\"total_tokens\":16}}\n\ndata: [DONE]\n\n";
        assert_eq!(tokens(sse), (Some(7), Some(9)));
        assert_eq!(tokens(r#"{"usage":{"input_tokens":3,"output_tokens":4}}"#), (Some(3), Some(4)));
        assert_eq!(tokens(r#"{"embeddings":[[1]],"prompt_eval_count":5}"#), (Some(5), None));
        let anthropic = "data: {\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}\ndata: {\"usage\":{\"output_tokens\":8}}\n";
        assert_eq!(tokens(anthropic), (Some(3), Some(8)));
        assert_eq!(tokens("{\"eval_count\":1}\n{\"completion_tokens\":2}"), (None, Some(2)));
        assert_eq!(tokens(r#"{"response":"say \"eval_count\":99"}"#), (None, None));
        assert_eq!(tokens("{\"eval_count\":99999999999999999999}"), (None, None));
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
