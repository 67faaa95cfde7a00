//! What can be seen in passing, with bounded memory: the model in a request's JSON, and the tokens at an answer's end.

/// The end of an answer that is kept: its counts are in the last line, behind everything that is long.
const TAIL: usize = 4 * 1024;
const MOST_MODEL: usize = 256;

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

    /// Tokens of the prompt and of the answer, where it says them: Ollama's own counts, OpenAI's or Anthropic's usage.
    pub fn tokens(&self) -> (Option<u64>, Option<u64>) {
        let last = |keys: [&str; 3]| keys.iter().find_map(|key| number_behind(&self.0, key));
        (
            last(["\"prompt_eval_count\":", "\"prompt_tokens\":", "\"input_tokens\":"]),
            last(["\"eval_count\":", "\"completion_tokens\":", "\"output_tokens\":"]),
        )
    }
}

/// The number behind the last occurrence of a key. In a string the key's quotes would be escaped, so that no answer can say it.
fn number_behind(text: &[u8], key: &str) -> Option<u64> {
    let at = text.windows(key.len()).rposition(|window| window == key.as_bytes())?;
    let rest = text[at + key.len()..].trim_ascii_start();
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// Looks for the model in a JSON object that passes. What it finds is for the record; nothing is decided by it.
#[derive(Debug, Default)]
pub struct ModelScan {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// At the top level: what the string that is being read, or was read last, says.
    text: Vec<u8>,
    key: Key,
    found: Option<Vec<u8>>,
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

impl ModelScan {
    /// More of the body.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.in_string {
                self.in_a_string(*byte);
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    self.text.clear();
                }
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b':' if self.depth == 1 => {
                    let key = self.text.as_slice();
                    let model = key.eq_ignore_ascii_case(b"model") || (self.found.is_none() && key.eq_ignore_ascii_case(b"name"));
                    self.key = if model { Key::Model } else { Key::Other };
                }
                b',' if self.depth == 1 => self.key = Key::Next,
                _ => {}
            }
        }
    }

    fn in_a_string(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => {
                self.in_string = false;
                if self.depth == 1 && self.key == Key::Model && !self.text.is_empty() {
                    self.found = Some(std::mem::take(&mut self.text));
                }
                return;
            }
            _ => {}
        }
        if self.depth == 1 && self.text.len() < MOST_MODEL {
            self.text.push(byte);
        }
    }

    /// The model, if one was named.
    pub fn model(&self) -> Option<Box<str>> {
        self.found.as_ref().map(|model| String::from_utf8_lossy(model).into())
    }
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
        let last =
            format!(r#"{{"done":true,"context":{context},"prompt_eval_count":26,"prompt_eval_duration":1,"eval_count": 290}}"#);
        assert_eq!(tokens(&format!("{{\"response\":\"a\"}}\n{last}\n")), (Some(26), Some(290)));
        let sse = "data: {\"choices\":[]}\n\ndata: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9,\"total_tokens\":16}}\n\ndata: [DONE]\n\n";
        assert_eq!(tokens(sse), (Some(7), Some(9)));
        assert_eq!(tokens(r#"{"usage":{"input_tokens":3,"output_tokens":4}}"#), (Some(3), Some(4)));
        assert_eq!(tokens(r#"{"embeddings":[[1]],"prompt_eval_count":5}"#), (Some(5), None));
        assert_eq!(tokens(r#"{"response":"say \"eval_count\":99"}"#), (None, None));
        assert_eq!(tokens("{\"eval_count\":99999999999999999999}"), (None, None));
    }

    #[test]
    fn a_model_is_seen_wherever_it_stands_and_however_the_body_is_cut() {
        for (body, model) in [
            (r#"{"model":"a:b","messages":[]}"#, Some("a:b")),
            (r#"{"messages":[{"model":"inner","content":"\"model\":\"no\""}],"model" : "outer"}"#, Some("outer")),
            (r#"{"name":"n"}"#, Some("n")),
            (r#"{"model":"m","name":"n"}"#, Some("m")),
            (r#"{"prompt":"model"}"#, None),
            (r#"["model","x"]"#, None),
            ("", None),
        ] {
            for cut in 0..=body.len() {
                let mut scan = ModelScan::default();
                scan.push(&body.as_bytes()[..cut]);
                scan.push(&body.as_bytes()[cut..]);
                assert_eq!(scan.model().as_deref(), model, "{body} cut at {cut}");
            }
        }
    }
}
