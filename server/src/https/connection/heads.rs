//! Reads the heads of requests, each within its time and its length.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use common::transport::splice::{Receiving, pipe::PIECE};
use proto::http1::head::HeadReader;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{gate::refused::Refused, record::Refusal};

/// How long a head may take from its first byte, and how long a stranger may send none.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a caller's connection may be idle between two requests.
const IDLE: Duration = Duration::from_secs(60);

/// What was read.
pub(super) enum NextHead {
    /// A whole head, with its empty line.
    Head(Vec<u8>),
    /// No request has begun, and none will.
    End,
    /// No head can be made of the bytes, which are returned too.
    Refused(Refused, Vec<u8>),
    /// The connection is broken.
    Broken,
}

/// The bytes of a connection that came after the last request.
#[derive(Default)]
pub(super) struct Heads(VecDeque<Bytes>);

impl Heads {
    /// The next head. `is_known`: the connection has shown whose it is, and may be idle for longer.
    pub(super) async fn next(
        &mut self,
        recv: &mut Receiving,
        is_known: bool,
        draining: &CancellationToken,
    ) -> NextHead {
        let mut reader = HeadReader::default();
        let mut deadline = Instant::now() + if is_known { IDLE } else { HEAD_WITHIN };
        loop {
            let bytes = match self.0.pop_front() {
                Some(bytes) => bytes,
                None => tokio::select! {
                    biased;
                    read = recv.read_chunk(PIECE) => match read {
                        Ok(Some(bytes)) => bytes,
                        Ok(None) => return NextHead::End,
                        Err(_) => return NextHead::Broken,
                    },
                    () = sleep_until(deadline) => {
                        return if reader.is_empty() { NextHead::End } else { late(reader.finish()) };
                    }
                    () = draining.cancelled(), if reader.is_empty() => return NextHead::End,
                },
            };
            if bytes.is_empty() {
                continue;
            }
            if reader.is_empty() {
                deadline = Instant::now() + HEAD_WITHIN;
            }
            match reader.take(&bytes) {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    self.0.push_front(bytes.slice(taken..));
                    return NextHead::Head(reader.finish());
                }
                Err(fault) => {
                    let mut line = reader.finish();
                    line.extend_from_slice(&bytes);
                    return NextHead::Refused(fault.into(), line);
                }
            }
        }
    }

    /// The bytes that came after the last head.
    pub(super) fn take_rest(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.0).into_iter().filter(|bytes| !bytes.is_empty()).collect()
    }

    /// Bytes that came after the last request.
    pub(super) fn put_back(&mut self, ahead: Vec<Bytes>) {
        self.0.extend(ahead);
    }
}

fn late(line: Vec<u8>) -> NextHead {
    let sentence =
        format!("adit: the head of the request took longer than {} s", HEAD_WITHIN.as_secs());
    NextHead::Refused(Refused::new(408, Refusal::Malformed, sentence), line)
}
