//! Standard input and output without a helper thread, where they are pipes or sockets, as under
//! sshd.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileTypeExt, net},
    },
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixStream, unix::pipe},
};

/// Standard input.
pub(crate) fn input() -> Box<dyn AsyncRead + Send + Unpin> {
    match kind(io::stdin()) {
        Ok(Kind::Pipe(fd)) => {
            pipe::Receiver::from_owned_fd(fd).map_or_else(|_| slow_input(), |pipe| Box::new(pipe))
        }
        Ok(Kind::Socket(socket)) => Box::new(socket),
        _ => slow_input(),
    }
}

/// Standard output.
pub(crate) fn output() -> Box<dyn AsyncWrite + Send + Unpin> {
    match kind(io::stdout()) {
        Ok(Kind::Pipe(fd)) => {
            pipe::Sender::from_owned_fd(fd).map_or_else(|_| slow_output(), |pipe| Box::new(pipe))
        }
        Ok(Kind::Socket(socket)) => Box::new(socket),
        _ => slow_output(),
    }
}

fn slow_input() -> Box<dyn AsyncRead + Send + Unpin> {
    Box::new(tokio::io::stdin())
}

fn slow_output() -> Box<dyn AsyncWrite + Send + Unpin> {
    Box::new(tokio::io::stdout())
}

enum Kind {
    Pipe(OwnedFd),
    Socket(UnixStream),
    /// A file or a terminal: it can't be polled, or must not be changed for others.
    Other,
}

fn kind(stream: impl AsFd) -> io::Result<Kind> {
    let file = File::from(stream.as_fd().try_clone_to_owned()?);
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() {
        return Ok(Kind::Pipe(file.into()));
    }
    if !kind.is_socket() {
        return Ok(Kind::Other);
    }
    let socket = net::UnixStream::from(OwnedFd::from(file));
    socket.set_nonblocking(true)?;
    Ok(Kind::Socket(UnixStream::from_std(socket)?))
}
