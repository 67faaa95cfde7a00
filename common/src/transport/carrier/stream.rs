//! A byte stream as a carrier.

mod queues;

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
};

use self::queues::Queues;
use super::{
    LOCAL, ORDINARY, RECEIVE_SEGMENTS, REMOTE, frame_datagram, next_datagram, portion::Portion,
};

/// The most datagrams that wait for QUIC.
const IN_LIMIT: usize = 1024;
/// A stream with a shorter round trip is short.
const NEAR: Duration = Duration::from_millis(8);

/// QUIC datagrams over a reliable byte stream: each is a length of two bytes (big-endian) and the
/// datagram.
///
/// Over a short stream the work for each datagram limits the speed, so datagrams may be long there,
/// as far as QUIC finds out that they pass (RFC 8899). On others a long one only keeps tokens
/// waiting, and is dropped: see [`StreamCarrier::keep_short`]. The round trip is that of whoever
/// opened the stream, or that of the first datagram and its answer.
pub struct StreamCarrier {
    queues: Mutex<Queues>,
    /// Notified when there are bytes to write.
    written: Notify,
    /// There is room for what comes.
    room: Notify,
    dead: AtomicBool,
    heard: AtomicBool,
    near: AtomicBool,
    /// Long datagrams pass only if it is near.
    strict: AtomicBool,
}

/// Both halves of a stream that has been opened.
pub struct OpenStream<R, W> {
    /// What comes.
    pub read: R,
    /// What goes.
    pub write: W,
    /// The round-trip time to its other end, if that is known.
    pub round_trip: Option<Duration>,
}

impl StreamCarrier {
    /// A carrier over `read` and `write`. The future moves its bytes, and ends when the stream
    /// ends. Dropping the future makes the carrier dead.
    pub fn new<R, W>(read: R, write: W) -> (Arc<Self>, impl Future<Output = io::Error> + Send)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        Self::after(std::future::ready(Ok(OpenStream { read, write, round_trip: None })))
    }

    /// Like [`StreamCarrier::new`], over a stream that is still being opened. Datagrams wait until
    /// it is open.
    pub fn after<R, W>(
        opening: impl Future<Output = io::Result<OpenStream<R, W>>> + Send,
    ) -> (Arc<Self>, impl Future<Output = io::Error> + Send)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let carrier = Arc::new(Self {
            queues: Mutex::default(),
            written: Notify::new(),
            room: Notify::new(),
            dead: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            near: AtomicBool::new(false),
            strict: AtomicBool::new(false),
        });
        let moved = carrier.clone();
        let moving = async move {
            let guard = Death(moved.clone());
            let OpenStream { read, write, round_trip } = match opening.await {
                Ok(open) => open,
                Err(e) => return e,
            };
            moved.near.store(round_trip.is_some_and(|time| time <= NEAR), Relaxed);
            let end = tokio::select! { end = moved.read_from(read) => end, end = moved.write_to(write) => end };
            drop(guard);
            end
        };
        (carrier, moving)
    }

    /// Drops long datagrams unless the stream is short. For a session that has none yet: QUIC finds
    /// out that they do not pass. One that has found that they pass would only lose them.
    pub fn keep_short(&self) {
        self.strict.store(true, Relaxed);
    }

    /// Whether it drops long datagrams.
    pub fn drops_long(&self) -> bool {
        self.strict.load(Relaxed) && !self.near.load(Relaxed)
    }

    /// Whether a datagram has arrived over it.
    pub fn has_heard(&self) -> bool {
        self.heard.load(Relaxed)
    }

    async fn read_from(&self, mut from: impl AsyncRead + Unpin) -> io::Error {
        let mut bytes = BytesMut::with_capacity(1 << 17);
        loop {
            match from.read_buf(&mut bytes).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(e) => return e,
            }
            self.arrive(&mut bytes);
            // What does not fit waits in the stream.
            while self.lock().arrived.len() >= IN_LIMIT {
                self.room.notified().await;
            }
            bytes.reserve(1 << 17);
        }
    }

    fn arrive(&self, bytes: &mut BytesMut) {
        let mut queues = self.lock();
        while let Some(datagram) = next_datagram(bytes) {
            if !self.heard.swap(true, Relaxed) {
                let near = queues.first.is_some_and(|first| first.elapsed() <= NEAR);
                self.near.fetch_or(near, Relaxed);
            }
            if self.passes(&datagram) {
                queues.arrived.push_back(datagram);
            }
        }
        if let Some(reader) = queues.reader.take() {
            reader.wake();
        }
    }

    fn passes(&self, datagram: &[u8]) -> bool {
        datagram.len() <= ORDINARY || !self.drops_long()
    }

    async fn write_to(&self, mut to: impl AsyncWrite + Unpin) -> io::Error {
        let (mut batch, mut portion) = (BytesMut::new(), Portion::default());
        loop {
            let waiting = self.lock().take(&mut batch);
            waiting.into_iter().for_each(Waker::wake);
            if batch.is_empty() {
                self.written.notified().await;
                continue;
            }
            while !batch.is_empty() {
                let n = batch.len().min(portion.size());
                let began = Instant::now();
                if let Err(e) = to.write_all(&batch[..n]).await {
                    return e;
                }
                portion.taken(n, began.elapsed());
                batch.advance(n);
                self.was_written(batch.len(), portion.waiting());
            }
            if let Err(e) = to.flush().await {
                return e;
            }
            batch.clear();
        }
    }

    fn was_written(&self, left: usize, limit: usize) {
        let waiting = {
            let mut queues = self.lock();
            (queues.writing, queues.limit) = (left, limit);
            queues.writers_with_room()
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a carrier as dead when it is dropped, and wakes all tasks that wait for it.
struct Death(Arc<StreamCarrier>);

impl Drop for Death {
    fn drop(&mut self) {
        self.0.dead.store(true, Relaxed);
        let waiting = {
            let mut queues = self.0.lock();
            queues.out.clear();
            queues.writing = 0;
            std::mem::take(&mut queues.writers)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for StreamCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamCarrier")
    }
}

impl AsyncUdpSocket for StreamCarrier {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritablePoller(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut queues = self.lock();
        if self.dead.load(Relaxed) {
            return Ok(());
        }
        if queues.is_full() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // One call may hold several datagrams, all but the last of the same size.
        for datagram in transmit
            .contents
            .chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1))
        {
            if self.passes(datagram) {
                frame_datagram(&mut queues.out, datagram);
            }
        }
        drop(queues);
        self.written.notify_one();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queues = self.lock();
        let mut received = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some((len, stride)) = queues.gather(buf) else { break };
            *meta = RecvMeta { addr: REMOTE, len, stride, ecn: None, dst_ip: None };
            received += 1;
        }
        if received > 0 {
            self.room.notify_one();
            return Poll::Ready(Ok(received));
        }
        queues.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LOCAL)
    }

    fn max_transmit_segments(&self) -> usize {
        10
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for room in a carrier's queue.
#[derive(Debug)]
struct WritablePoller(Arc<StreamCarrier>);

impl UdpPoller for WritablePoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queues = self.0.lock();
        if !queues.is_full() || self.0.dead.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        if !queues.writers.iter().any(|writer| writer.will_wake(cx.waker())) {
            queues.writers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit { destination: REMOTE, ecn: None, contents, segment_size, src_ip: None }
    }

    /// A carrier, what moves it, and the other end of its stream.
    fn carrier(
        room: usize,
    ) -> (Arc<StreamCarrier>, impl Future<Output = io::Error> + Send, DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        let (read, write) = tokio::io::split(near);
        let (carrier, moving) = StreamCarrier::new(read, write);
        (carrier, moving, far)
    }

    /// What comes by it next: the datagrams of one batch.
    async fn received(carrier: &StreamCarrier) -> Vec<Vec<u8>> {
        let (mut buffer, mut meta) = (vec![0; 1 << 17], [RecvMeta::default()]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let came = std::future::poll_fn(|cx| carrier.poll_recv(cx, &mut slices, &mut meta));
        assert_eq!(came.await.expect("received"), 1);
        buffer[..meta[0].len].chunks(meta[0].stride).map(<[u8]>::to_vec).collect()
    }

    async fn frame(far: &mut DuplexStream, datagrams: &[&[u8]]) {
        let mut framed = BytesMut::new();
        datagrams.iter().for_each(|datagram| frame_datagram(&mut framed, datagram));
        far.write_all(&framed).await.expect("sent");
    }

    #[tokio::test]
    async fn a_dead_stream_swallows_what_is_sent_and_never_fails() {
        let (carrier, moving, far) = carrier(64);
        drop(far);
        moving.await;
        for _ in 0..1000 {
            carrier.try_send(&transmit(&[1; 5000], Some(1000))).expect("swallowed");
        }
    }

    #[tokio::test]
    async fn what_the_stream_does_not_take_waits_for_room_and_is_not_lost() {
        let (carrier, moving, mut far) = carrier(64);
        let moving = tokio::spawn(moving);
        let (datagram, mut sent) = ([7; 1000], 0);
        while carrier.try_send(&transmit(&datagram, None)).is_ok() {
            sent += 1;
            assert!(sent < 1000, "QUIC is asked to wait");
        }
        let poller = carrier.clone();
        let room = tokio::spawn(async move {
            let mut room = poller.create_io_poller();
            std::future::poll_fn(|cx| room.as_mut().poll_writable(cx)).await
        });
        let mut came = vec![0; sent * 1002];
        far.read_exact(&mut came).await.expect("all of it");
        room.await.expect("no panic").expect("room");
        carrier.try_send(&transmit(&datagram, None)).expect("sent");
        moving.abort();
    }

    #[tokio::test]
    async fn datagrams_of_one_size_come_as_one_batch() {
        let (carrier, moving, mut far) = carrier(1 << 16);
        let moving = tokio::spawn(moving);
        let (full, short, odd) = ([1; 900], [2; 100], [3; 901]);
        frame(&mut far, &[&full, &full, &short, &short, &full, &odd]).await;
        let mut batches: Vec<Vec<Vec<u8>>> = Vec::new();
        while batches.iter().flatten().count() < 6 {
            batches.push(received(&carrier).await);
        }
        let came: Vec<&[u8]> = batches.iter().flatten().map(Vec::as_slice).collect();
        assert_eq!(came, [&full[..], &full, &short, &short, &full, &odd]);
        assert!(batches.iter().all(|batch| batch.iter().rev().skip(1).all(|d| *d == batch[0])));
        moving.abort();
    }

    #[tokio::test]
    async fn long_datagrams_pass_in_a_session_that_has_them_already() {
        let (carrier, moving, mut far) = carrier(1 << 16);
        let moving = tokio::spawn(moving);
        let long = [9; 5000];
        carrier.try_send(&transmit(&long, None)).expect("sent");
        let mut len = [0; 2];
        far.read_exact(&mut len).await.expect("a frame");
        assert_eq!(u16::from_be_bytes(len), 5000);
        frame(&mut far, &[&long]).await;
        assert_eq!(received(&carrier).await, [long]);
        moving.abort();
    }

    #[tokio::test]
    async fn long_datagrams_pass_where_the_first_answer_comes_soon_and_nowhere_else() {
        let long = [9; 5000];
        for near in [true, false] {
            let (carrier, moving, mut far) = carrier(1 << 16);
            carrier.keep_short();
            let moving = tokio::spawn(moving);
            // Nothing is known of it yet.
            carrier.try_send(&transmit(&[&[1; 4], &long[..]].concat(), None)).expect("swallowed");
            carrier.try_send(&transmit(b"first", None)).expect("sent");
            let mut first = [0; 7];
            far.read_exact(&mut first).await.expect("the first");
            assert_eq!(&first[2..], b"first");
            if !near {
                tokio::time::sleep(2 * NEAR).await;
            }
            // On a busy machine even a near one may seem far.
            let began = carrier.lock().first.expect("it was written");
            frame(&mut far, &[b"answer", &long, b"end"]).await;
            let mut came = received(&carrier).await;
            if began.elapsed() > NEAR && near {
                moving.abort();
                continue;
            }
            while came.last().is_none_or(|last| last != b"end") {
                came.extend(received(&carrier).await);
            }
            assert_eq!(came.len(), if near { 3 } else { 2 }, "near: {near}");
            carrier.try_send(&transmit(&long, None)).expect("sent");
            carrier.try_send(&transmit(b"last", None)).expect("sent");
            let mut frame = [0; 2];
            far.read_exact(&mut frame).await.expect("a frame");
            assert_eq!(u16::from_be_bytes(frame), if near { 5000 } else { 4 });
            moving.abort();
        }
    }
}
