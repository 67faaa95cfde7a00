//! Network namespaces that belong to a test. They are held only by descriptors, so they end with
//! the test.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    path::PathBuf,
    pin::Pin,
    process::{Command, Stdio},
    sync::OnceLock,
    task::{Context, Poll},
};

use nix::sched::{CloneFlags, setns, unshare};

/// The namespace of this process.
static HOME: OnceLock<File> = OnceLock::new();
/// The network namespace of the calling thread.
const THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// A network namespace with only loopback in it.
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// Creates one. Needs root.
    ///
    /// # Errors
    /// The error of the kernel.
    pub fn new() -> io::Result<Self> {
        if HOME.get().is_none() {
            let _ = HOME.set(File::open(THIS_THREAD)?);
        }
        // The thread ends here, so it need not return to its namespace.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(THIS_THREAD)
        });
        let namespace = Self { handle: made.join().map_err(|_| io::Error::other("a panic"))?? };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A file that stands for it, for as long as this is kept.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd()))
    }

    /// Runs `act` in the namespace: its sockets and processes belong to it.
    pub fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        let _back = self.enter();
        act()
    }

    /// Runs `future` in the namespace, at each poll. Tasks that it spawns are outside.
    pub fn within<F: Future>(&self, future: F) -> Within<'_, F> {
        Within { namespace: self, future: Box::pin(future) }
    }

    /// Runs commands of `ip`, one per line.
    ///
    /// # Errors
    /// The output of `ip`.
    pub fn ip(&self, commands: &str) -> io::Result<()> {
        self.run("ip", &["-batch", "-"], commands)
    }

    /// Changes the firewall of the namespace with the language of `nft`: all of it or nothing.
    ///
    /// # Errors
    /// The output of `nft`.
    pub fn nft(&self, rules: &str) -> io::Result<()> {
        self.run("nft", &["-f", "-"], rules)
    }

    fn run(&self, program: &str, args: &[&str], input: &str) -> io::Result<()> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.inside(|| command.spawn())?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let ended = child.wait_with_output()?;
        match ended.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{program}: {}",
                String::from_utf8_lossy(&ended.stderr)
            ))),
        }
    }

    /// Changes a setting of the namespace, by its path below `/proc/sys/net`.
    ///
    /// # Errors
    /// If there is no such setting.
    pub fn set(&self, name: &str, value: &str) -> io::Result<()> {
        self.inside(|| std::fs::write(format!("/proc/sys/net/{name}"), value))
    }

    fn enter(&self) -> Back {
        setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("a namespace can be entered");
        Back
    }
}

/// Leaves the namespace when it is dropped.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        let home = HOME.get().expect("known before any namespace was made");
        setns(home, CloneFlags::CLONE_NEWNET).expect("a thread can go home");
    }
}

/// A future that runs in a namespace; see [`Namespace::within`].
pub struct Within<'a, F> {
    namespace: &'a Namespace,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Within<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _back = self.namespace.enter();
        self.future.as_mut().poll(cx)
    }
}
