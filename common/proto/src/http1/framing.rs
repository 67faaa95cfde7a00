//! Finds where the body of a message ends (RFC 9112 sections 6 and 7). The bytes are not changed.

use super::{BodyLength, head::Fault};

/// The longest line with a chunk's size, in bytes, extensions included.
const MOST_SIZE_LINE: usize = 256;
/// The longest trailer section, in bytes.
const MOST_TRAILERS: usize = 16 * 1024;

/// The rest of one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body(BodyState);

#[derive(Debug, Clone, PartialEq, Eq)]
enum BodyState {
    Left(u64),
    Size { size: u64, digits: usize, line: usize },
    Extension { size: u64, line: usize },
    SizeLf { size: u64 },
    Data(u64),
    DataCr,
    DataLf,
    Trailer { place: ChunkPosition, len: usize },
    UntilClose,
}

/// The position of the next byte in a line of the trailer section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkPosition {
    Start,
    Name,
    Value,
    Lf,
    LastLf,
}

/// Whether we can insert bytes of our own at this point of a body, as its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// As a chunk of their own.
    Chunk,
    /// As they are.
    Plain,
    /// Not at this point, but after the current chunk.
    Later,
    /// Nowhere: the length of the body was announced.
    Never,
}

impl Body {
    /// Whether we can insert bytes of our own at this point, as the end of the body.
    pub fn can_insert(&self) -> Insert {
        match self.0 {
            BodyState::UntilClose => Insert::Plain,
            BodyState::Left(_) | BodyState::Trailer { .. } | BodyState::SizeLf { size: 0 } => {
                Insert::Never
            }
            BodyState::Size { digits: 0, .. } => Insert::Chunk,
            _ => Insert::Later,
        }
    }

    /// A body of this length.
    pub fn new(length: BodyLength) -> Self {
        Self(match length {
            BodyLength::Known(length) => BodyState::Left(length),
            BodyLength::Chunked => BodyState::Size { size: 0, digits: 0, line: 0 },
        })
    }

    /// A body that ends with its connection.
    pub fn until_close() -> Self {
        Self(BodyState::UntilClose)
    }

    /// Whether the body is complete.
    pub fn is_over(&self) -> bool {
        self.0 == BodyState::Left(0)
    }

    /// Whether the body ends only when its connection ends.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.0 == BodyState::UntilClose
    }

    /// Follows the body through `bytes`, and returns how many of them belong to it. Its content,
    /// without the framing, goes to `content`.
    ///
    /// # Errors
    /// [`Fault::Chunk`] at the first byte that cannot stand there in a chunked body.
    pub fn follow(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> Result<usize, Fault> {
        let mut at = 0;
        while at < bytes.len() && !self.is_over() {
            let rest = &bytes[at..];
            let fits = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            match &mut self.0 {
                BodyState::Left(left) | BodyState::Data(left) => {
                    let n = fits(*left);
                    content(&rest[..n]);
                    *left -= n as u64;
                    at += n;
                    if self.0 == BodyState::Data(0) {
                        self.0 = BodyState::DataCr;
                    }
                }
                BodyState::UntilClose => {
                    content(rest);
                    at = bytes.len();
                }
                state => {
                    *state = state.step(rest[0])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }
}

impl BodyState {
    /// One byte of a chunk's frame.
    fn step(&self, byte: u8) -> Result<Self, Fault> {
        Ok(match (self, byte) {
            (Self::Size { line, .. } | Self::Extension { line, .. }, _)
                if *line >= MOST_SIZE_LINE =>
            {
                return Err(Fault::Chunk);
            }
            // 15 digits fit into the 64-bit integers of both ends.
            (Self::Size { size, digits, line }, byte)
                if byte.is_ascii_hexdigit() && *digits < 15 =>
            {
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                Self::Size { size: size * 16 + digit, digits: digits + 1, line: line + 1 }
            }
            (Self::Size { size, digits: 1.., .. }, b'\r') => Self::SizeLf { size: *size },
            (Self::Size { size, digits: 1.., line }, b';') => {
                Self::Extension { size: *size, line: *line }
            }
            (Self::Extension { size, .. }, b'\r') => Self::SizeLf { size: *size },
            (Self::Extension { size, line }, b'\t' | b' '..=b'~') => {
                Self::Extension { size: *size, line: line + 1 }
            }
            (Self::SizeLf { size: 0 }, b'\n') => {
                Self::Trailer { place: ChunkPosition::Start, len: 0 }
            }
            (Self::SizeLf { size }, b'\n') => Self::Data(*size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0, line: 0 },
            (Self::Trailer { place: ChunkPosition::LastLf, .. }, b'\n') => Self::Left(0),
            (Self::Trailer { place, len }, byte) if *len < MOST_TRAILERS => {
                Self::Trailer { place: place.step(byte).ok_or(Fault::Chunk)?, len: len + 1 }
            }
            _ => return Err(Fault::Chunk),
        })
    }
}

impl ChunkPosition {
    fn step(self, byte: u8) -> Option<Self> {
        let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        match (self, byte) {
            (Self::Start, b'\r') => Some(Self::LastLf),
            (Self::Name, b':') => Some(Self::Value),
            (Self::Start | Self::Name, _) if token => Some(Self::Name),
            (Self::Value, b'\r') => Some(Self::Lf),
            (Self::Value, b'\t' | b' '..=b'~' | 0x80..) => Some(Self::Value),
            (Self::Lf, b'\n') => Some(Self::Start),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes belong to the body, whether it is over, and its content, for every way to cut
    /// them in two.
    fn follow(length: BodyLength, bytes: &[u8]) -> Result<(usize, bool, Vec<u8>), Fault> {
        let run = |cuts: &[&[u8]]| {
            let (mut body, mut content, mut taken) = (Body::new(length), Vec::new(), 0);
            for cut in cuts {
                taken += body.follow(cut, |bytes| content.extend_from_slice(bytes))?;
            }
            Ok((taken, body.is_over(), content))
        };
        let whole = run(&[bytes]);
        for cut in 0..bytes.len() {
            assert_eq!(run(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn a_body_of_known_length_ends_there() {
        assert_eq!(follow(BodyLength::Known(0), b"GET"), Ok((0, true, vec![])));
        assert_eq!(follow(BodyLength::Known(3), b"abcGET"), Ok((3, true, b"abc".to_vec())));
        assert_eq!(follow(BodyLength::Known(9), b"abc"), Ok((3, false, b"abc".to_vec())));
    }

    #[test]
    fn chunks_are_followed_to_the_last_with_extensions_and_trailers() {
        for (bytes, content) in [
            ("0\r\n\r\n", ""),
            ("3\r\nabc\r\n0\r\n\r\n", "abc"),
            ("003;a=\"b c\"\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", "abc0123456789"),
            ("1\r\na\r\n0\r\nDigest: x y\r\nEmpty:\r\n\r\n", "a"),
        ] {
            let with_more = format!("{bytes}GET / HTTP/1.1\r\n");
            assert_eq!(
                follow(BodyLength::Chunked, with_more.as_bytes()),
                Ok((bytes.len(), true, content.into())),
                "{bytes:?}"
            );
            assert!(matches!(
                follow(BodyLength::Chunked, &bytes.as_bytes()[..bytes.len() - 1]),
                Ok((_, false, _))
            ));
        }
    }

    #[test]
    fn what_is_not_exactly_a_chunk_is_a_fault() {
        for bad in [
            "\r\n",
            "+3\r\nabc\r\n",
            "-1\r\n",
            " 3\r\n",
            "3 \r\n",
            "0x3\r\n",
            "g\r\n",
            "3\nabc",
            "3\rabc",
            "3\r\nabcd\r\n",
            "3\r\nabc\n",
            "3\r\nabc\rx",
            "3;a\x01\r\n",
            "3;a\n",
            "fffffffffffffffff\r\n",
            "1000000000000000000000\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n folded: 1\r\n\r\n",
            "0\r\nX: 1\n\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\n\n",
        ] {
            assert_eq!(follow(BodyLength::Chunked, bad.as_bytes()), Err(Fault::Chunk), "{bad:?}");
        }
        assert_eq!(
            follow(BodyLength::Chunked, format!("1;{}\r\n", "x".repeat(300)).as_bytes()),
            Err(Fault::Chunk)
        );
        let trailers = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(4000));
        let mut body = Body::new(BodyLength::Chunked);
        assert_eq!(body.follow(trailers.as_bytes(), |_| {}), Err(Fault::Chunk));
    }
}
