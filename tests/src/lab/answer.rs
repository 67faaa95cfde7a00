//! Reads an answer as it comes: when each part arrived, and whether all of it did.

use std::{
    io,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest as hash};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::ReadHalf},
    sync::watch,
    task::JoinHandle,
};

use crate::raw::{self, Ending};

/// The SHA-256 of an answer without its date.
fn digest(answer: &str) -> String {
    data_encoding::HEXLOWER.encode(hash(&SHA256, raw::without_date(answer).as_bytes()).as_ref())
}

/// An answer that is being read. Dropping it closes the application's connection.
pub struct Asked {
    progress: watch::Receiver<Progress>,
    task: JoinHandle<Answered>,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    bytes: usize,
    at: Instant,
}

#[derive(Debug)]
pub struct Answered {
    pub text: String,
    pub ending: Ending,
    /// When each part arrived.
    pub arrivals: Vec<Instant>,
}

impl Asked {
    /// Sends the request on `tcp`, and reads until the connection ends.
    pub fn on(tcp: TcpStream, request: Vec<u8>) -> Self {
        let (tell, progress) = watch::channel(Progress { bytes: 0, at: Instant::now() });
        Self { progress, task: tokio::spawn(exchange(tcp, request, tell)) }
    }

    /// Waits until `bytes` bytes have arrived.
    ///
    /// # Panics
    /// If they have not within the time, with what has arrived.
    pub async fn has(&mut self, bytes: usize, within: Duration) {
        let came = self.has_within(bytes, within).await;
        assert!(
            came,
            "{bytes} bytes have not come within {within:?}, but {:?}",
            *self.progress.borrow()
        );
    }

    /// Waits until `bytes` bytes have arrived, the answer has ended, or the time is over; returns
    /// whether they have arrived.
    pub async fn has_within(&mut self, bytes: usize, within: Duration) -> bool {
        let came =
            tokio::time::timeout(within, self.progress.wait_for(|now| now.bytes >= bytes)).await;
        came.is_ok_and(|came| came.is_ok())
    }

    /// Waits for the first bytes after `moment`; returns how long after it they arrived, or `None`
    /// if they did not within the time.
    pub async fn next_after(&mut self, moment: Instant, within: Duration) -> Option<Duration> {
        let came =
            tokio::time::timeout(within, self.progress.wait_for(|now| now.at > moment)).await;
        came.ok()?.ok().map(|now| now.at - moment)
    }

    /// When the last bytes arrived.
    pub fn last(&self) -> Instant {
        self.progress.borrow().at
    }

    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within the time.
    pub async fn ended(mut self, within: Duration) -> Answered {
        let ended = tokio::time::timeout(within, &mut self.task).await;
        ended
            .unwrap_or_else(|_| {
                panic!("no end within {within:?}, at {:?}", *self.progress.borrow())
            })
            .expect("no panic")
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn exchange(mut tcp: TcpStream, request: Vec<u8>, tell: watch::Sender<Progress>) -> Answered {
    let (from, mut to) = tcp.split();
    // A failed write shows in what is received.
    let (answered, _) = tokio::join!(read(from, tell), to.write_all(&request));
    answered
}

async fn read(mut from: ReadHalf<'_>, tell: watch::Sender<Progress>) -> Answered {
    let (mut all, mut arrivals, mut block) = (Vec::new(), Vec::new(), vec![0; 65_536]);
    let ending = loop {
        match from.read(&mut block).await {
            Ok(0) => break Ending::Closed,
            Ok(n) => {
                all.extend_from_slice(&block[..n]);
                let at = Instant::now();
                arrivals.push(at);
                tell.send_replace(Progress { bytes: all.len(), at });
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break Ending::Reset,
            Err(e) => panic!("{e}"),
        }
    };
    Answered { text: text(all), ending, arrivals }
}

/// A cut may be within a character, and a download is not text: then each byte becomes a character.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|e| e.into_bytes().into_iter().map(char::from).collect())
}

impl Answered {
    /// Asserts that the answer is complete and equal to `direct`.
    ///
    /// # Panics
    /// If it is not.
    pub fn is_what_came_directly(&self, direct: &Self) {
        let tail: String =
            self.text.chars().rev().take(300).collect::<Vec<_>>().into_iter().rev().collect();
        assert_eq!(self.ending, Ending::Closed, "cut after {} bytes: …{tail}", self.text.len());
        assert_eq!(digest(&self.text), digest(&direct.text), "{} bytes: …{tail}", self.text.len());
    }

    /// The longest time between two parts.
    pub fn largest_gap(&self) -> Duration {
        self.arrivals.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
    }
}

/// The same answer through the tunnel and without it.
pub struct Both {
    pub tunnelled: Asked,
    pub direct: Asked,
}

impl Both {
    /// Waits until both have ended, and asserts that they are equal.
    ///
    /// # Panics
    /// If they are not, or if one does not end within the time.
    pub async fn are_equal(self, within: Duration) -> Answered {
        let (tunnelled, direct) =
            tokio::join!(self.tunnelled.ended(within), self.direct.ended(within));
        assert_eq!(direct.ending, Ending::Closed);
        tunnelled.is_what_came_directly(&direct);
        tunnelled
    }
}
