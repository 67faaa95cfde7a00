//! Small messages on a stream: a length of four bytes, big-endian, then that many bytes of JSON.
//!
//! `LengthDelimitedCodec` of tokio-util is not used: it reads ahead, and behind the last message of a
//! stream come bytes that belong to somebody else.

use std::io;

use crate::transport::splice::Receiving;
use proto::{human::size, wire::MAX_LEN};
use quinn::ReadExactError;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// In bytes. A longer message is not an error.
const USUAL_LEN: usize = 8 << 10;

/// Writes one message. Not cancellation safe: a part may have been written.
pub async fn write<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    // Some messages have secrets in them. A buffer that grows leaves copies in memory.
    let mut framed = Zeroizing::new(Vec::with_capacity(USUAL_LEN));
    framed.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut *framed, message)?;
    let len = framed.len() - 4;
    framed[..4].copy_from_slice(&(len as u32).to_be_bytes());
    to.write_all(&framed).await
}

/// Reads one message of at most [`MAX_LEN`] bytes. Not cancellation safe.
///
/// # Errors
/// `InvalidData` for a message that is too long or isn't the JSON that was expected,
/// `UnexpectedEof` for half of one.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    read_long(from, MAX_LEN).await
}

/// Like [`read`], with another limit in bytes, for a peer that is trusted.
///
/// # Errors
/// Likewise.
pub async fn read_long<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> io::Result<T> {
    let len = from.read_u32().await? as usize;
    if len > most {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {}, at most {} are allowed", size(len as u64), size(most as u64)),
        ));
    }
    let mut body = Zeroizing::new(vec![0; len]);
    from.read_exact(&mut body).await?;
    serde_json::from_slice(&body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Like [`read`], from a stream whose sender is told how far it has been read.
///
/// # Errors
/// Likewise; with a [`ReadExactError`] inside if the stream was reset, or ended before a message began.
pub async fn receive<T: DeserializeOwned>(from: &mut Receiving) -> io::Result<T> {
    // A stream that ends between two messages is no half of one: that error stays what it is.
    let half = |e: ReadExactError| match e {
        ReadExactError::FinishedEarly(1..) => io::ErrorKind::UnexpectedEof.into(),
        e => io::Error::other(e),
    };
    let mut len = [0; 4];
    from.read_exact(&mut len).await.map_err(half)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MAX_LEN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    let mut body = Zeroizing::new(vec![0; len]);
    from.read_exact(&mut body).await.map_err(|e| match e {
        ReadExactError::FinishedEarly(_) => io::ErrorKind::UnexpectedEof.into(),
        e => io::Error::other(e),
    })?;
    serde_json::from_slice(&body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_read_and_half_of_it_is_an_error() {
        let mut wire = Vec::new();
        write(&mut wire, &vec!["a", "b"]).await.expect("written");
        assert_eq!(read::<Vec<String>>(&mut &wire[..]).await.expect("read"), ["a", "b"]);
        for cut in 0..wire.len() {
            assert!(read::<Vec<String>>(&mut &wire[..cut]).await.is_err(), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_length_beyond_the_bound_is_refused_before_anything_is_allocated() {
        let error = read::<String>(&mut &[0xff_u8; 8][..]).await.expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
