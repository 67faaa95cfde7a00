//! The control socket: a command on the same machine sends the running process one request, and
//! gets one answer, in JSON. An answer may grant something that lasts as long as the process that
//! asked. A program that speaks HTTP there is answered by somebody else.

use std::{
    convert::Infallible,
    fs::{File, TryLockError},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

use crate::{
    machine::files::{self, FileError},
    transport::{accept::accept, frame},
};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often to check whether a process that has closed its connection has ended too: at first, and
/// at the rarest.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// The longest answer, in bytes: it may list thousands of sessions.
const MAX_ANSWER: usize = 16 << 20;
/// The longest path that `sockaddr_un` holds on macOS, where it is shortest, without the final NUL.
const MAX_SOCKET_PATH: usize = 103;

/// The right to be the only running process of a directory, and its control socket. Dropping it, or
/// the end of the process, gives up the right.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    // Held for its lock. The file is not removed: otherwise two processes could each lock a file of
    // that name.
    lock: File,
    /// Another process has the right now.
    is_given: AtomicBool,
}

/// Why a process cannot claim a directory.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process runs on it.
    #[error("is running already{}", pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Taken {
        /// Its process id, if it is known.
        pid: Option<u32>,
    },
    /// The lock or the socket cannot be made.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Control {
    /// Claims `dir`: takes its lock and listens on its `control.sock`.
    pub fn claim(dir: &Path) -> Result<Self, ClaimError> {
        files::refuse_exposed_dir(dir)?;
        let lock = lock(dir)?;
        let path = socket_path(dir)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::io("remove", &path)(e).into());
            }
            _ => {}
        }
        // The directory is 0700: nobody else reaches the socket.
        let listener = UnixListener::bind(&path).map_err(FileError::io("listen on", &path))?;
        Ok(Self { listener, path, lock, is_given: AtomicBool::new(false) })
    }

    /// What another process needs to take the right over: the socket and the lock, in the order of
    /// [`Control::take_over`].
    pub fn handles(&self) -> [BorrowedFd<'_>; 2] {
        [self.listener.as_fd(), self.lock.as_fd()]
    }

    /// Takes the right over from another process, with its [`Control::handles`]. From
    /// [`Control::own`] on this process is the one that the lock names. Must be called within a
    /// runtime.
    ///
    /// # Errors
    /// If they are not what that process had for `dir`.
    pub fn take_over(dir: &Path, [listener, lock]: [OwnedFd; 2]) -> Result<Self, FileError> {
        let path = socket_path(dir)?;
        let failed = |e| FileError::io("take over", &path)(e);
        let listener = std::os::unix::net::UnixListener::from(listener);
        let there = listener.local_addr().map_err(failed)?;
        if there.as_pathname() != Some(&path) {
            return Err(failed(io::Error::other("it is another socket")));
        }
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        // Until the other process gives the right up, the file stays where it is.
        Ok(Self { listener, path, lock: File::from(lock), is_given: AtomicBool::new(true) })
    }

    /// The process that had the right has given it up to this one.
    pub fn own(&self) {
        self.is_given.store(false, Relaxed);
        note_pid(&self.lock);
    }

    /// Gives the right to another process, which has the handles: dropping this leaves the socket
    /// where it is.
    pub fn give_up(&self) {
        self.is_given.store(true, Relaxed);
    }

    /// Answers requests until `retired` is cancelled: then it takes no more, and ends when it has
    /// answered those that it has. A malformed or slow request does not affect others. Connections
    /// on which HTTP is spoken go to `http`, with all of their bytes.
    pub async fn serve_until<Q, A, F, H>(
        &self,
        answer: impl Fn(Q) -> F + Clone + Send + Sync + 'static,
        http: impl Fn(UnixStream) -> H + Clone + Send + Sync + 'static,
        retired: &CancellationToken,
    ) where
        Q: DeserializeOwned + Send + 'static,
        A: Serialize + Send + Sync + 'static,
        F: Future<Output = A> + Send + 'static,
        H: Future<Output = ()> + Send + 'static,
    {
        let serve = move |stream: UnixStream| {
            let (answer, http) = (answer.clone(), http.clone());
            async move {
                let first = tokio::time::timeout(ANSWER_WITHIN, first_byte(&stream)).await;
                // The length of a request is far less than 2^24 bytes.
                if first??.is_ascii_alphabetic() {
                    http(stream).await;
                    return Ok(());
                }
                let answer = |request| {
                    let answer = answer(request);
                    async move { (answer.await, None::<()>) }
                };
                answer_one(stream, answer).await
            }
        };
        let mut asked = tokio::task::JoinSet::new();
        tokio::select! {
            biased;
            () = retired.cancelled() => {}
            never = self.accept_all(serve, &mut asked) => match never {},
        }
        while asked.join_next().await.is_some() {}
    }

    /// Answers requests as long as it is polled; `answer` may also return a grant. The grant is dropped when
    /// all copies of the asker's connection are closed and, on Linux, its process has ended. A
    /// process that runs another program with exec(2) is still the same process.
    pub async fn serve_granting<Q, A, G, F>(
        &self,
        answer: impl Fn(Q) -> F + Clone + Send + Sync + 'static,
    ) -> Infallible
    where
        Q: DeserializeOwned + Send + 'static,
        A: Serialize + Send + Sync + 'static,
        G: Send + 'static,
        F: Future<Output = (A, Option<G>)> + Send + 'static,
    {
        let serve = move |stream| answer_one(stream, answer.clone());
        self.accept_all(serve, &mut tokio::task::JoinSet::new()).await
    }

    async fn accept_all<F>(
        &self,
        serve: impl Fn(UnixStream) -> F,
        asked: &mut tokio::task::JoinSet<io::Result<()>>,
    ) -> Infallible
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        loop {
            tokio::select! {
                (stream, _) = accept("the control socket", || self.listener.accept()) => {
                    asked.spawn(serve(stream));
                }
                Some(_) = asked.join_next() => {}
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if !self.is_given.load(Relaxed) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Takes the lock of a directory. While the returned file is open, no other process runs on the
/// directory or changes files in it.
pub fn lock(dir: &Path) -> Result<File, ClaimError> {
    let lock_path = dir.join("lock");
    let lock = files::open_append(&lock_path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = io::read_to_string(&lock).ok().and_then(|p| p.trim().parse().ok());
            return Err(ClaimError::Taken { pid });
        }
        Err(TryLockError::Error(e)) => return Err(FileError::io("lock", &lock_path)(e).into()),
    }
    note_pid(&lock);
    Ok(lock)
}

/// Writes this process's id into the lock. It only helps people, so an error (a full disk) is
/// ignored.
fn note_pid(mut lock: &File) {
    let _ = lock.set_len(0).and_then(|()| {
        io::Write::write_all(&mut lock, format!("{}\n", std::process::id()).as_bytes())
    });
}

/// The first byte that the other end sends; it is not taken from the stream.
async fn first_byte(stream: &UnixStream) -> io::Result<u8> {
    let mut byte = [0];
    let peek = || {
        let (taken, _) = rustix::net::recv(stream, &mut byte, rustix::net::RecvFlags::PEEK)?;
        Ok(taken)
    };
    match stream.async_io(tokio::io::Interest::READABLE, peek).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(byte[0]),
    }
}

async fn answer_one<Q: DeserializeOwned, A: Serialize, G, F: Future<Output = (A, Option<G>)>>(
    mut stream: UnixStream,
    answer: impl Fn(Q) -> F,
) -> io::Result<()> {
    let asker = AskingProcess::of(&stream);
    let exchange = async {
        let request = frame::read(&mut stream).await?;
        let (answer, grant) = answer(request).await;
        frame::write(&mut stream, &answer).await?;
        io::Result::Ok(grant)
    };
    let grant = tokio::time::timeout(ANSWER_WITHIN, exchange).await??;
    if grant.is_some() {
        let _ = stream.read_to_end(&mut Vec::new()).await;
        asker.ended().await;
    }
    Ok(())
}

/// The process that has asked.
struct AskingProcess(#[cfg(target_os = "linux")] Option<std::os::fd::OwnedFd>);

#[cfg(target_os = "linux")]
impl AskingProcess {
    fn of(stream: &UnixStream) -> Self {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};

        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(Pid::from_raw);
        Self(pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
    }

    /// Waits until the process has ended; returns at once if that cannot be known. A process that ends
    /// closes its connection a moment before; only a program that closes the files it inherited
    /// lives on.
    async fn ended(self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(pidfd) = &self.0 else { return };
        // A pidfd is readable when its process has ended (pidfd_open(2)).
        let runs = || {
            let mut looked = [PollFd::new(pidfd, PollFlags::IN)];
            poll(&mut looked, Some(&Timespec::default())) == Ok(0)
        };
        let mut pause = LOOK_AGAIN.0;
        while runs() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl AskingProcess {
    fn of(_: &UnixStream) -> Self {
        Self()
    }

    async fn ended(self) {}
}

/// Asks the process that runs on `dir`. `Ok(None)` if no process runs on it.
///
/// # Errors
/// When a process runs but does not answer within ten seconds, or its socket may not be opened.
pub async fn ask<Q: Serialize, A: DeserializeOwned>(
    dir: &Path,
    request: &Q,
) -> Result<Option<A>, FileError> {
    Ok(ask_for_grant(dir, request).await?.map(|(answer, _)| answer))
}

/// Like [`ask`]; whatever the answer grants lasts until the returned connection is closed, and at
/// least as long as this process.
///
/// # Errors
/// Likewise.
pub async fn ask_for_grant<Q: Serialize, A: DeserializeOwned>(
    dir: &Path,
    request: &Q,
) -> Result<Option<(A, UnixStream)>, FileError> {
    let path = socket_path(dir)?;
    let failed = |e| FileError::io("ask the running process at", &path)(e);
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(failed(e)),
    };
    match exchange(&mut stream, request).await {
        // It has ended meanwhile.
        Err(e) if is_cut(&e) && !is_running(dir) => Ok(None),
        answer => Ok(Some((answer.map_err(failed)?, stream))),
    }
}

/// Like [`ask`], on a connection to the socket at `path`.
///
/// # Errors
/// Likewise, and when the process has ended.
pub async fn ask_on<Q: Serialize, A: DeserializeOwned>(
    mut stream: UnixStream,
    path: &Path,
    request: &Q,
) -> Result<A, FileError> {
    exchange(&mut stream, request)
        .await
        .map_err(|e| FileError::io("ask the running process at", path)(e))
}

async fn exchange<Q: Serialize, A: DeserializeOwned>(
    stream: &mut UnixStream,
    request: &Q,
) -> io::Result<A> {
    let exchange = async {
        frame::write(stream, request).await?;
        frame::read_long(stream, MAX_ANSWER).await
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange).await;
    answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether a process runs on `dir`, as far as can be told at once.
pub fn is_running(dir: &Path) -> bool {
    socket_path(dir).is_ok_and(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
}

/// The path of the control socket of a directory.
///
/// # Errors
/// If it is too long for a socket.
pub fn socket_path(dir: &Path) -> Result<PathBuf, FileError> {
    let path = dir.join("control.sock");
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        let why = format!(
            "a socket's path has at most {MAX_SOCKET_PATH} bytes here: choose a shorter --state-dir"
        );
        return Err(FileError::io("listen on", path)(io::Error::new(
            io::ErrorKind::InvalidFilename,
            why,
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `asked` gets from `control`, which answers with `answer`.
    async fn answered<T>(
        control: &Control,
        asked: impl Future<Output = T>,
        answer: fn(u32) -> u32,
    ) -> T {
        let serving =
            control.serve_granting(move |request| async move { (answer(request), None::<()>) });
        tokio::select! {
            answer = asked => answer,
            never = serving => match never {},
        }
    }

    #[tokio::test]
    async fn one_process_claims_a_directory_and_answers_for_it() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let dir = &tmp.path().join("own");
        files::create_dir(dir).expect("made");
        assert!(ask::<_, u32>(dir, &1).await.expect("no error").is_none());
        let control = Control::claim(dir).expect("claimed");
        assert!(
            matches!(Control::claim(dir), Err(ClaimError::Taken { pid: Some(pid) }) if pid == std::process::id())
        );
        let asked = async { ask::<u32, u32>(dir, &20).await };
        let answer = answered(&control, asked, |q| q + 1).await;
        assert_eq!(answer.expect("no error"), Some(21));
        assert!(is_running(dir));
        drop(control);
        assert!(!is_running(dir));
        assert!(ask::<_, u32>(dir, &1).await.expect("no error").is_none());
        Control::claim(dir).expect("claimed again");
    }

    #[tokio::test]
    async fn the_right_goes_over_without_a_moment_in_which_nobody_has_it() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let dir = &tmp.path().join("own");
        files::create_dir(dir).expect("made");
        let old = Control::claim(dir).expect("claimed");
        let copies = old.handles().map(|handle| handle.try_clone_to_owned().expect("a copy"));
        let new = Control::take_over(dir, copies).expect("taken over");
        let retired = CancellationToken::new();
        let answering = async {
            let ask_last = async {
                let answer = ask::<u32, u32>(dir, &1).await.expect("no error");
                retired.cancel();
                answer
            };
            tokio::join!(
                ask_last,
                old.serve_until(|q: u32| async move { q + 1 }, |_| async {}, &retired)
            )
            .0
        };
        assert_eq!(answering.await, Some(2), "what was asked before is answered");
        old.give_up();
        new.own();
        drop(old);
        assert!(matches!(Control::claim(dir), Err(ClaimError::Taken { .. })));
        let asked = async { ask::<u32, u32>(dir, &20).await };
        let answer = answered(&new, asked, |q| q + 2).await;
        assert_eq!(answer.expect("no error"), Some(22));
        drop(new);
        assert!(!is_running(dir));
        Control::claim(dir).expect("claimed again");
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_is_said_with_its_cure() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let deep = tmp.path().join("x".repeat(110));
        files::create_dir(&deep).expect("dir");
        let Err(ClaimError::File(e)) = Control::claim(&deep) else { panic!("claimed") };
        assert!(
            std::error::Error::source(&e).expect("a cause").to_string().contains("--state-dir")
        );
    }
}
