//! Reads which models a request's JSON names while the body arrives. Most bodies name the model in
//! their first kilobytes, so that the gate need not read them whole before it forwards them. The
//! rest is checked as it passes: an ambiguous body is found before its last byte is forwarded.
//!
//! The result is that of [`model::named`](super::model::named) for the whole body. This is a
//! complete and strict reader of JSON (RFC 8259) that keeps only the names.

use super::model::{Unreadable, is_same_key};

/// The most bytes of a name, escapes included (each character as `\u1234`): more than any name that
/// Ollama accepts.
const MOST_NAME: usize = 6 * 512;
/// How deep objects and arrays may be nested.
const MOST_DEPTH: u32 = 127;

/// Follows one JSON object.
#[derive(Debug)]
pub struct NamedModels {
    keys: Vec<&'static str>,
    lists: &'static [&'static [&'static str]],
    /// The value of each key.
    values: Vec<Option<String>>,
    state: JsonState,
    depth: u32,
    /// One bit for each level: whether it is an object.
    objects: u128,
    /// The current string, if it is kept: a key at the top level, or a model's name.
    text: Vec<u8>,
    /// The key whose value comes next.
    wanted: Option<usize>,
    fault: Option<Unreadable>,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JsonState {
    /// The object itself.
    Begin,
    /// A value or, with `or_end`, the end of an empty array.
    Value {
        or_end: bool,
    },
    /// A key or, with `or_end`, the end of an empty object.
    Key {
        or_end: bool,
    },
    Colon,
    CommaOrEnd,
    /// The rest of a string.
    String {
        is_key: bool,
        escape: Escape,
    },
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    Number(Number),
    /// White space.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    /// This many hexadecimal digits are still to come.
    Hex(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

impl NamedModels {
    /// A reader for a body that names its models with these keys.
    pub fn new(lists: &'static [&'static [&'static str]]) -> Self {
        let keys = lists.concat();
        Self {
            values: vec![None; keys.len()],
            keys,
            lists,
            state: JsonState::Begin,
            depth: 0,
            objects: 0,
            text: Vec::new(),
            wanted: None,
            fault: None,
        }
    }

    /// Takes more of the body.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.fault.is_none() {
            let taken = match self.state {
                JsonState::String { is_key, escape: Escape::None } => self.string(bytes, is_key),
                _ => self.step(bytes[0]).map(|again| usize::from(!again)),
            };
            match taken {
                Ok(taken) => bytes = &bytes[taken..],
                Err(fault) => self.fault = Some(fault),
            }
        }
    }

    /// Why the body is refused, if the bytes so far tell.
    pub fn fault(&self) -> Option<Unreadable> {
        self.fault
    }

    /// The models, once the rest of the body cannot change them any more. It can still make the
    /// body unreadable.
    pub fn settled(&self) -> Option<Vec<String>> {
        let firsts: Option<Vec<String>> = self
            .lists
            .iter()
            .map(|list| list.first().and_then(|key| self.value(key)).map(str::to_owned))
            .collect();
        firsts.filter(|_| self.fault.is_none())
    }

    /// The models of the whole body.
    ///
    /// # Errors
    /// If Ollama would refuse the body too, or could read other models in it.
    pub fn finish(&self) -> Result<Vec<String>, Unreadable> {
        match (self.fault, self.state) {
            (Some(fault), _) => Err(fault),
            (None, JsonState::Done) => Ok(self
                .lists
                .iter()
                .filter_map(|list| list.iter().find_map(|key| self.value(key)))
                .map(str::to_owned)
                .collect()),
            (None, _) => Err(Unreadable::Malformed),
        }
    }

    /// The value of a key, if it is not empty.
    fn value(&self, key: &str) -> Option<&str> {
        let at = self.keys.iter().position(|k| *k == key)?;
        self.values[at].as_deref().filter(|value| !value.is_empty())
    }

    /// Takes one byte outside the text of a string. Returns whether the byte has to be taken again.
    fn step(&mut self, byte: u8) -> Result<bool, Unreadable> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match self.state {
            JsonState::Begin
            | JsonState::Value { .. }
            | JsonState::Key { .. }
            | JsonState::Colon
            | JsonState::CommaOrEnd
            | JsonState::Done
                if is_space => {}
            JsonState::Begin if byte == b'{' => self.open(true)?,
            JsonState::Value { or_end: true } if byte == b']' => self.close(false)?,
            JsonState::Value { .. } => self.value_begins(byte)?,
            JsonState::Key { or_end: true } if byte == b'}' => self.close(true)?,
            JsonState::Key { .. } if byte == b'"' => {
                self.text.clear();
                self.state = JsonState::String { is_key: true, escape: Escape::None };
            }
            JsonState::Colon if byte == b':' => self.state = JsonState::Value { or_end: false },
            JsonState::CommaOrEnd => match byte {
                b',' if self.is_object() => self.state = JsonState::Key { or_end: false },
                b',' => self.state = JsonState::Value { or_end: false },
                b'}' => self.close(true)?,
                b']' => self.close(false)?,
                _ => return Err(Unreadable::Malformed),
            },
            JsonState::String { is_key, escape } => self.escape(byte, is_key, escape)?,
            JsonState::Word([next, rest @ ..]) if byte == *next => {
                self.state =
                    if rest.is_empty() { JsonState::CommaOrEnd } else { JsonState::Word(rest) };
            }
            JsonState::Number(number) => return self.number(byte, number),
            _ => return Err(Unreadable::Malformed),
        }
        Ok(false)
    }

    fn is_object(&self) -> bool {
        self.objects >> self.depth & 1 == 1
    }

    fn open(&mut self, object: bool) -> Result<(), Unreadable> {
        if self.depth == MOST_DEPTH {
            return Err(Unreadable::Malformed);
        }
        self.depth += 1;
        self.objects &= !(1 << self.depth);
        self.objects |= u128::from(object) << self.depth;
        self.state = if object {
            JsonState::Key { or_end: true }
        } else {
            JsonState::Value { or_end: true }
        };
        Ok(())
    }

    fn close(&mut self, object: bool) -> Result<(), Unreadable> {
        if self.is_object() != object {
            return Err(Unreadable::Malformed);
        }
        self.depth -= 1;
        self.state = if self.depth == 0 { JsonState::Done } else { JsonState::CommaOrEnd };
        Ok(())
    }

    fn value_begins(&mut self, byte: u8) -> Result<(), Unreadable> {
        if self.wanted.is_some() && !matches!(byte, b'"' | b'n') {
            return Err(Unreadable::Malformed);
        }
        match byte {
            b'"' => {
                self.text.clear();
                self.state = JsonState::String { is_key: false, escape: Escape::None };
            }
            b'{' => self.open(true)?,
            b'[' => self.open(false)?,
            b't' => self.state = JsonState::Word(b"rue"),
            b'f' => self.state = JsonState::Word(b"alse"),
            b'n' => {
                // For Go, null leaves a string as it is.
                self.wanted = None;
                self.state = JsonState::Word(b"ull");
            }
            b'-' => self.state = JsonState::Number(Number::Minus),
            b'0' => self.state = JsonState::Number(Number::Zero),
            b'1'..=b'9' => self.state = JsonState::Number(Number::Integer),
            _ => return Err(Unreadable::Malformed),
        }
        Ok(())
    }

    /// Takes the text of a string, and returns how many of `bytes` that was.
    fn string(&mut self, bytes: &[u8], is_key: bool) -> Result<usize, Unreadable> {
        let is_text = |byte: &u8| !matches!(byte, 0..b' ' | b'"' | b'\\');
        let text = bytes.iter().take_while(|byte| is_text(byte)).count();
        self.keep(&bytes[..text], is_key)?;
        match bytes.get(text) {
            None => return Ok(text),
            Some(b'"') => self.string_ends(is_key)?,
            Some(b'\\') => {
                self.keep(b"\\", is_key)?;
                self.state = JsonState::String { is_key, escape: Escape::Begun };
            }
            Some(_) => return Err(Unreadable::Malformed),
        }
        Ok(text + 1)
    }

    fn escape(&mut self, byte: u8, is_key: bool, escape: Escape) -> Result<(), Unreadable> {
        let escape = match (escape, byte) {
            (Escape::Begun, b'u') => Escape::Hex(4),
            (Escape::Begun, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Escape::None,
            (Escape::Hex(1), _) if byte.is_ascii_hexdigit() => Escape::None,
            (Escape::Hex(left), _) if byte.is_ascii_hexdigit() => Escape::Hex(left - 1),
            _ => return Err(Unreadable::Malformed),
        };
        self.keep(&[byte], is_key)?;
        self.state = JsonState::String { is_key, escape };
        Ok(())
    }

    /// Keeps the text of a key at the top level, or of a model's name. Other text is skipped.
    fn keep(&mut self, text: &[u8], is_key: bool) -> Result<(), Unreadable> {
        let is_kept = if is_key { self.depth == 1 } else { self.wanted.is_some() };
        if !is_kept {
            return Ok(());
        }
        if self.text.len() + text.len() <= MOST_NAME {
            self.text.extend_from_slice(text);
        } else if !is_key {
            return Err(Unreadable::Malformed);
        } else {
            // Too long to be one of the keys, whatever follows.
            self.text.clear();
            self.text.resize(MOST_NAME, b'x');
        }
        Ok(())
    }

    fn string_ends(&mut self, is_key: bool) -> Result<(), Unreadable> {
        self.state = if is_key { JsonState::Colon } else { JsonState::CommaOrEnd };
        if is_key && self.depth == 1 {
            let key = decoded(&self.text)?;
            if let Some(at) = self.keys.iter().position(|wanted| is_same_key(wanted, &key)) {
                // Two readers could read different models: see `model::named`.
                if self.values[at].is_some() || key != self.keys[at] {
                    return Err(Unreadable::Ambiguous);
                }
                self.values[at] = Some(String::new());
                self.wanted = Some(at);
            }
        } else if !is_key && let Some(at) = self.wanted.take() {
            let name = decoded(&self.text)?;
            if name.len() > MOST_NAME / 6 {
                return Err(Unreadable::Malformed);
            }
            self.values[at] = Some(name);
        }
        Ok(())
    }

    /// Takes the next byte of a number. Returns whether the byte is no longer part of it.
    fn number(&mut self, byte: u8, number: Number) -> Result<bool, Unreadable> {
        let next = match (number, byte) {
            (Number::Minus, b'0') => Number::Zero,
            (Number::Minus, b'1'..=b'9') | (Number::Integer, b'0'..=b'9') => Number::Integer,
            (Number::Zero | Number::Integer, b'.') => Number::Point,
            (Number::Point | Number::Fraction, b'0'..=b'9') => Number::Fraction,
            (Number::Zero | Number::Integer | Number::Fraction, b'e' | b'E') => Number::E,
            (Number::E, b'+' | b'-') => Number::Sign,
            (Number::E | Number::Sign | Number::Exponent, b'0'..=b'9') => Number::Exponent,
            (Number::Zero | Number::Integer | Number::Fraction | Number::Exponent, _) => {
                self.state = JsonState::CommaOrEnd;
                return Ok(true);
            }
            _ => return Err(Unreadable::Malformed),
        };
        self.state = JsonState::Number(next);
        Ok(false)
    }
}

/// Decodes the escapes of a JSON string.
fn decoded(text: &[u8]) -> Result<String, Unreadable> {
    let quoted = [b"\"", text, b"\""].concat();
    serde_json::from_slice(&quoted).map_err(|_| Unreadable::Malformed)
}

#[cfg(test)]
mod tests;
