//! Scans an answer as it passes, with bounded memory: counts its pieces, and finds the token counts
//! at its end.

/// How many of an answer's last bytes are kept. The token counts are in its last line, after all
/// long texts.
const TAIL: usize = 4 * 1024;
/// How many bytes of a stream's line are read. They are enough to tell whether it is a piece.
const MOST_LINE: usize = 2 * 1024;

/// Reads the token counts of an answer.
#[derive(Debug, Default)]
pub(crate) struct AnswerUsage {
    tail: Tail,
    pieces: Pieces,
}

impl AnswerUsage {
    /// Takes more of the answer.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        self.pieces.push(bytes);
    }

    /// The tokens of the prompt and of the answer, if the answer states them: Ollama's own counts,
    /// or the usage of OpenAI's or Anthropic's API.
    pub(crate) fn tokens(&self) -> (Option<u64>, Option<u64>) {
        self.tail.tokens()
    }

    /// Whether the answer contains the final message of a stream.
    pub(crate) fn says_done(&self) -> bool {
        self.tail.says_done()
    }

    /// How many pieces of text have arrived in a stream. Ollama sends each token in a piece of its
    /// own.
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces.count
    }
}

/// Counts the lines of a stream that carry text: NDJSON of `/api`, server-sent events of `/v1`.
#[derive(Debug, Default)]
struct Pieces {
    count: u64,
    /// The beginning of the line that has not ended yet.
    line: Vec<u8>,
}

impl Pieces {
    fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (rest, next) = (&bytes[..end], &bytes[end + 1..]);
            let is_piece = if self.line.is_empty() {
                is_piece(&rest[..rest.len().min(MOST_LINE)])
            } else {
                self.keep(rest);
                is_piece(&self.line)
            };
            self.count += u64::from(is_piece);
            self.line.clear();
            bytes = next;
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MOST_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// Whether a line of a stream carries text. A model's text cannot imitate these keys: inside a JSON
/// string their quotes would be escaped.
fn is_piece(line: &[u8]) -> bool {
    let is = |key: &'static str, value: &[u8]| values(line, key).any(|it| it.starts_with(value));
    if line.starts_with(b"{") {
        let is_cut = line.len() == MOST_LINE;
        return is("\"done\":", b"false") || (is_cut && !is("\"done\":", b"true"));
    }
    // The routes of llama.cpp's own.
    if line.starts_with(b"data: {") && is("\"stop\":", b"false") && is("\"content\":", b"\"") {
        return true;
    }
    if let Some(event) = line.strip_prefix(b"event:") {
        // Anthropic's and the Responses API's names of events.
        let event = event.trim_ascii();
        return event == b"content_block_delta"
            || (event.starts_with(b"response.") && event.ends_with(b".delta"));
    }
    line.starts_with(b"data:") && is("\"choices\":", b"") && brings_text(line)
}

/// What stands behind this key, each time that it occurs. Some services write a space before a value
/// (RFC 8259 section 2).
fn values<'a>(line: &'a [u8], key: &'static str) -> impl Iterator<Item = &'a [u8]> {
    memchr::memmem::find_iter(line, key).map(|at| line[at + key.len()..].trim_ascii_start())
}

/// Whether a chunk of OpenAI's API carries text. The last chunk carries none, only the reason why
/// the stream ends.
fn brings_text(chunk: &[u8]) -> bool {
    const TEXTS: [&str; 4] =
        ["\"content\":", "\"text\":", "\"reasoning\":", "\"reasoning_content\":"];
    let is_filled = |text: &[u8]| {
        text.strip_prefix(b"\"").is_some_and(|text| text.first().is_some_and(|next| *next != b'"'))
    };
    let calls = |list: &[u8]| {
        list.strip_prefix(b"[").is_some_and(|list| list.trim_ascii_start().starts_with(b"{"))
    };
    TEXTS.into_iter().any(|key| values(chunk, key).any(is_filled))
        || values(chunk, "\"tool_calls\":").any(calls)
}

/// The last [`TAIL`] bytes of an answer, and for a while some bytes before them.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        if self.0.len() + bytes.len() > 2 * TAIL {
            let cut = self.0.len().saturating_sub(TAIL - bytes.len());
            self.0.drain(..cut);
        }
        self.0.extend_from_slice(bytes);
    }

    /// The last [`TAIL`] bytes, however the answer was split.
    fn last(&self) -> &[u8] {
        &self.0[self.0.len().saturating_sub(TAIL)..]
    }

    fn tokens(&self) -> (Option<u64>, Option<u64>) {
        let last = |keys: [&str; 3]| {
            keys.iter().filter_map(|key| number_behind(self.last(), key)).max_by_key(|(at, _)| *at)
        };
        // llama.cpp tells them in `timings` too, there without the tokens of the prompt that it
        // still had. On its own routes nothing else is near the end.
        let timing = |key: &str| number_behind(self.last(), key);
        (
            last(["\"prompt_eval_count\":", "\"prompt_tokens\":", "\"input_tokens\":"])
                .or_else(|| timing("\"tokens_evaluated\":"))
                .or_else(|| timing("\"prompt_n\":"))
                .map(|(_, count)| count),
            last(["\"eval_count\":", "\"completion_tokens\":", "\"output_tokens\":"])
                .or_else(|| timing("\"predicted_n\":"))
                .map(|(_, count)| count),
        )
    }
}

impl Tail {
    /// Whether the answer contains the final message of one of Ollama's streaming APIs. A model's
    /// text cannot imitate it: inside a JSON string the quotes would be escaped.
    fn says_done(&self) -> bool {
        const ENDS: [&str; 6] = [
            "\"done\":true",
            "\"stop\":true",
            "data: [DONE]",
            "\"type\":\"message_stop\"",
            "\"type\":\"response.completed\"",
            "\"status\":\"success\"",
        ];
        ENDS.iter().any(|end| memchr::memmem::rfind(self.last(), end.as_bytes()).is_some())
    }
}

/// The last position of a key, and the number after it. A model's text cannot imitate the key:
/// inside a JSON string its quotes would be escaped.
fn number_behind(text: &[u8], key: &str) -> Option<(usize, u64)> {
    let at = memchr::memmem::rfind(text, key.as_bytes())?;
    let rest = text[at + key.len()..].trim_ascii_start();
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    Some((at, std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(answer: &str) -> (Option<u64>, Option<u64>) {
        let (whole, bytewise) = read(answer);
        assert_eq!(whole.tokens(), bytewise.tokens());
        whole.tokens()
    }

    fn read(answer: &str) -> (AnswerUsage, AnswerUsage) {
        let mut whole = AnswerUsage::default();
        whole.push(answer.as_bytes());
        let mut bytewise = AnswerUsage::default();
        answer.bytes().for_each(|b| bytewise.push(&[b]));
        (whole, bytewise)
    }

    /// Streams of each API with the number of their tokens, as Ollama sends them.
    #[test]
    fn each_piece_of_a_stream_is_a_token_and_nothing_else_is() {
        let long = "x".repeat(2 * MOST_LINE);
        for (answer, pieces) in [
            // /api/generate and /api/chat
            (
                "{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n{\"response\":\"b\\n\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"eval_count\":2}\n",
                2,
            ),
            ("{\"message\":{\"content\":\"\\\"done\\\":false\"},\"done\":true}\n", 0),
            // As services in Python write it.
            ("{\"response\": \"a\", \"done\": false}\n{\"response\": \"\", \"done\": true}\n", 1),
            (
                "data: {\"choices\": [{\"delta\": {\"content\": \"a\"}}]}\n\ndata: {\"choices\": [{\"delta\": {\"content\": \"\"}}]}\n\n",
                1,
            ),
            ("data: {\"choices\": [{\"delta\": {\"tool_calls\": [ {\"id\": \"1\"}]}}]}\n\n", 1),
            ("data: {\"index\": 0, \"content\": \"a\", \"stop\": false}\n\n", 1),
            ("{\"error\":\"no\"}\n{\"status\":\"pulling\"}\n", 0),
            (&format!("{{\"message\":{{\"content\":\"{long}\"}},\"done\":false}}\n"), 1),
            (&format!("{{\"response\":\"\",\"done\":true,\"context\":[{long}]}}\n"), 0),
            ("{\"response\":\"all of it\",\"done\":true}", 0),
            // /v1/chat/completions and /v1/completions
            (
                "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
                1,
            ),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"\",\"reasoning\":\"hm\"}}]}\n\n", 1),
            (
                "data: {\"choices\":[{\"delta\":{\"content\":\"\",\"tool_calls\":[{\"id\":\"1\"}]}}]}\r\n\r\n",
                1,
            ),
            (
                "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\" b\"}]}\n\n",
                2,
            ),
            (
                "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":9}}\n\n",
                0,
            ),
            // /completion of llama.cpp
            (
                "data: {\"index\":0,\"content\":\"a\",\"stop\":false}\n\ndata: {\"index\":0,\"content\":\"\",\"stop\":true}\n\n",
                1,
            ),
            // /v1/messages
            (
                "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\nevent: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n",
                1,
            ),
            // /v1/responses
            (
                "event: response.created\ndata: {}\n\nevent: response.output_text.delta\ndata: {\"delta\":\"a\"}\n\nevent: response.output_text.done\ndata: {\"text\":\"a\"}\n\nevent: response.completed\ndata: {}\n\n",
                1,
            ),
        ] {
            let (whole, bytewise) = read(answer);
            assert_eq!((whole.pieces(), bytewise.pieces()), (pieces, pieces), "{answer}");
        }
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
        let llama = r#"data: {"content":"","stop":true,"generation_settings":{},"prompt":"x","timings":{"prompt_n":5,"predicted_n":6}}"#;
        assert_eq!(tokens(llama), (Some(5), Some(6)));
        let cached = r#"{"usage":{"completion_tokens":6,"prompt_tokens":90},"timings":{"prompt_n":1,"predicted_n":6}}"#;
        assert_eq!(tokens(cached), (Some(90), Some(6)));
        assert_eq!(tokens(r#"{"results":[],"usage":{"prompt_tokens":33}}"#), (Some(33), None));
        assert_eq!(tokens(r#"{"response":"say \"eval_count\":99"}"#), (None, None));
        assert_eq!(tokens("{\"eval_count\":99999999999999999999}"), (None, None));
    }
}
