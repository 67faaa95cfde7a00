//! Open files that one process gives another on the same machine, over a Unix socket.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{io::Interest, net::UnixStream};

/// The most files in one message. Linux takes 253 (`SCM_MAX_FD`).
pub const MOST: usize = 200;
/// No other program that this process runs gets the files.
#[cfg(target_os = "linux")]
const CLOSED_ON_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(not(target_os = "linux"))]
const CLOSED_ON_EXEC: RecvFlags = RecvFlags::empty();
/// Files are sent beside a byte.
const BYTE: u8 = b'F';

/// Gives these files to the process at the other end. It gets copies. Not cancellation safe.
///
/// # Errors
/// `InvalidInput` for more than [`MOST`] files, and those of the socket.
pub async fn send(to: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    if files.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = to.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(sendmsg(to, &[IoSlice::new(&[BYTE])], &mut control, SendFlags::empty())?)
    });
    match sent.await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(()),
    }
}

/// Takes the files of one [`send`]. Not cancellation safe.
///
/// # Errors
/// `UnexpectedEof` if the other end is closed; `InvalidData` if something else was sent, or this
/// process may not open as many files.
pub async fn receive(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    from.async_io(Interest::READABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received =
            recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, CLOSED_ON_EXEC)?;
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        match received.bytes {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if byte != [BYTE] || received.flags.contains(ReturnFlags::CTRUNC) => {
                Err(io::ErrorKind::InvalidData.into())
            }
            _ => Ok(files),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::AsFd};

    use super::*;

    #[tokio::test]
    async fn files_arrive_open_and_in_their_order() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let files: Vec<_> = (0..5u8)
            .map(|i| {
                let mut file = tempfile::tempfile().expect("a file");
                std::io::Write::write_all(&mut file, &[i]).expect("written");
                std::io::Seek::rewind(&mut file).expect("rewound");
                file
            })
            .collect();
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(&near, &borrowed).await.expect("sent");
        drop(files);
        let came = receive(&far).await.expect("received");
        let read = came.into_iter().map(|file| {
            let mut byte = [0];
            std::fs::File::from(file).read_exact(&mut byte).expect("it is open");
            byte[0]
        });
        assert_eq!(read.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn an_end_and_other_bytes_are_errors() {
        let (near, far) = UnixStream::pair().expect("a pair");
        near.try_write(b"x").expect("written");
        let kind = |result: io::Result<_>| result.map(drop).expect_err("no files").kind();
        assert_eq!(kind(receive(&far).await), io::ErrorKind::InvalidData);
        drop(near);
        assert_eq!(kind(receive(&far).await), io::ErrorKind::UnexpectedEof);
    }
}
