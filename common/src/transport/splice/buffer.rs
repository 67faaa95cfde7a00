//! Buffers for reading from TCP, taken from a pool. An idle connection holds none.

use std::{io, sync::Mutex};

use tokio::{io::Interest, net::TcpStream};

/// The most bytes that are read from TCP at once.
pub(super) const BUFFER: usize = 64 * 1024;
/// The most buffers in the pool.
const POOLED: usize = 32;

/// A buffer of 64 KiB. Dropping it returns it to the pool.
pub struct Buffer(pub(super) Vec<u8>);

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Buffer {
    /// A buffer from the pool, with arbitrary contents.
    pub fn take() -> Self {
        Self(POOL.lock().ok().and_then(|mut pool| pool.pop()).unwrap_or_else(|| vec![0; BUFFER]))
    }

    /// Reads what `tcp` has received, without waiting. Returns the number of bytes; 0 after the
    /// FIN.
    ///
    /// A read that does not fill the buffer has emptied the socket. `tcp` then counts as not
    /// readable until more arrives, which saves one system call.
    ///
    /// # Errors
    /// `WouldBlock` if nothing was received; otherwise the error of the connection.
    pub fn read(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        let mut read = None;
        let done = tcp.try_io(Interest::READABLE, || {
            let n = rustix::io::read(tcp, &mut self.0[..])?;
            read = Some(n);
            match n {
                1..BUFFER => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        read.map_or_else(|| done.map(|()| 0), Ok)
    }

    /// The whole buffer, 64 KiB; a read says how many bytes at its beginning are valid.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut pool) = POOL.lock()
            && pool.len() < POOLED
        {
            pool.push(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connected"), far.expect("accepted").0)
    }

    /// Waits until something was received, and reads it.
    async fn read(tcp: &TcpStream) -> usize {
        loop {
            tcp.readable().await.expect("readable");
            match Buffer::take().read(tcp) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.expect("read"),
            }
        }
    }

    #[tokio::test]
    async fn what_comes_after_a_short_read_is_heard_and_so_is_the_end() {
        let (near, mut far) = pair().await;
        for len in [1, 10, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER, 1] {
            let (bytes, mut left) = (vec![7; len], len);
            let reading = async {
                while left > 0 {
                    left -= read(&near).await;
                }
            };
            let both = async { tokio::join!(far.write_all(&bytes), reading).0 };
            let done = tokio::time::timeout(std::time::Duration::from_secs(30), both).await;
            done.unwrap_or_else(|_| panic!("{len} bytes are not read")).expect("written");
            let again = Buffer::take().read(&near).expect_err("nothing more");
            assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        }
        // The last bytes and the FIN arrive together.
        far.write_all(b"end").await.expect("written");
        drop(far);
        assert_eq!((read(&near).await, read(&near).await), (3, 0));
    }
}
