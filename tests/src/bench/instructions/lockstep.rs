//! Work in lock-step: the next token, request or block leaves when the one before has arrived. So
//! how much comes at once does not depend on how fast the machine is.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::counts::Work;
use crate::bench::load::{CHUNK, GET, answer, chunk};

const TOKENS: usize = 200;
const REQUESTS: usize = 200;
const BLOCK: usize = 50_000;
/// 2 MB.
const BLOCKS: usize = 40;
/// Units of work before anything is counted.
const WARM_UP: usize = 20;
/// Programs run slowly under valgrind.
const WITHIN: Duration = Duration::from_secs(120);

/// A service; this process is also the application that asks it.
pub(super) struct LockStep {
    listener: TcpListener,
    address: SocketAddr,
}

/// One kind of work, under way.
pub(super) struct Running {
    work: Work,
    app: TcpStream,
    service: TcpStream,
}

impl LockStep {
    pub(super) async fn listen() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins: the application connects to `to`, and its request arrives here.
    pub(super) async fn begin(&self, to: SocketAddr, work: Work) -> io::Result<Running> {
        let begin = async {
            let mut app = TcpStream::connect(to).await?;
            app.set_nodelay(true)?;
            app.write_all(&request(work)).await?;
            let (mut service, _) = self.listener.accept().await?;
            service.set_nodelay(true)?;
            head(&mut service).await?;
            match work {
                Work::Request => {
                    service.write_all(&answer()).await?;
                    app.read_exact(&mut answer()).await?;
                }
                Work::Token | Work::MegabyteDown => {
                    let framing = if work == Work::Token {
                        "Transfer-Encoding: chunked"
                    } else {
                        "Content-Length: 1000000000"
                    };
                    service
                        .write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes())
                        .await?;
                    head(&mut app).await?;
                }
                Work::MegabyteUp => {}
            }
            Ok(Running { work, app, service })
        };
        tokio::time::timeout(WITHIN, begin).await?
    }
}

fn request(work: Work) -> Vec<u8> {
    let head = match work {
        Work::Request => return GET.to_vec(),
        Work::Token => "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 29\r\n\r\n{\"model\":\"bench\",\"prompt\":\"\"}".to_owned(),
        Work::MegabyteDown => "GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        Work::MegabyteUp => format!(
            "POST /api/blobs/sha256:{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n",
            "0".repeat(64)
        ),
    };
    head.into_bytes()
}

/// Reads a head, byte by byte: nothing behind it may be taken. A body that follows a head in the
/// same write is left behind it, and is read with what comes.
async fn head(tcp: &mut TcpStream) -> io::Result<()> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(tcp.read_u8().await?);
    }
    Ok(())
}

impl Running {
    /// Some of it, so that everything is as it stays.
    pub(super) async fn warm_up(&mut self) -> io::Result<()> {
        self.steps(WARM_UP).await
    }

    /// Does it; how many units that were.
    pub(super) async fn work(&mut self) -> io::Result<f64> {
        let (steps, units) = match self.work {
            Work::Token => (TOKENS, TOKENS as f64),
            Work::Request => (REQUESTS, REQUESTS as f64),
            Work::MegabyteDown | Work::MegabyteUp => (BLOCKS, (BLOCKS * BLOCK) as f64 / 1e6),
        };
        self.steps(steps).await?;
        Ok(units)
    }

    async fn steps(&mut self, steps: usize) -> io::Result<()> {
        let all = async {
            for _ in 0..steps {
                self.step().await?;
            }
            Ok(())
        };
        tokio::time::timeout(WITHIN, all).await?
    }

    async fn step(&mut self) -> io::Result<()> {
        match self.work {
            Work::Token => {
                self.service.write_all(&chunk(1)).await?;
                self.app.read_exact(&mut [0; CHUNK]).await?;
            }
            Work::Request => {
                self.app.write_all(GET).await?;
                head(&mut self.service).await?;
                let mut answer = answer();
                self.service.write_all(&answer).await?;
                self.app.read_exact(&mut answer).await?;
            }
            Work::MegabyteDown => carry(&mut self.service, &mut self.app).await?,
            Work::MegabyteUp => carry(&mut self.app, &mut self.service).await?,
        }
        Ok(())
    }
}

async fn carry(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let (sent, mut arrived) = (vec![7; BLOCK], vec![0; BLOCK]);
    let (written, read) = tokio::join!(from.write_all(&sent), to.read_exact(&mut arrived));
    written.and(read.map(drop))
}
