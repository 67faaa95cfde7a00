//! A thread of its own for the service and for the applications, as the processes have that they
//! stand for.

use std::{io, sync::Arc, thread::JoinHandle};

use tokio::{runtime::Handle, sync::oneshot};

use crate::lab::Namespace;

/// A thread with a runtime, in one network. Dropping it ends what runs there.
pub struct Seat {
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Seat {
    /// Takes one in this network, or in the machine's.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(name: &str, network: Option<Arc<Namespace>>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            // Its sleeps end when they should, and not 50 µs later.
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1_000));
            let until_stopped = || drop(runtime.block_on(stopped));
            match network {
                Some(network) => network.inside(until_stopped),
                None => until_stopped(),
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self { runtime: handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Runs `work` there to its end. Dropping this future ends the work, too.
    ///
    /// # Errors
    /// That it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn_on(work, &self.runtime);
        let done = tasks.join_next().await.ok_or(io::ErrorKind::Interrupted)?;
        done.map_err(io::Error::other)
    }

    /// From now on it gets only the processor time that others leave (SCHED_IDLE, sched(7)): it stands
    /// for something that runs on a machine of its own.
    ///
    /// # Errors
    /// What the system says, or that there is no `chrt` (util-linux).
    pub async fn give_way(&self) -> io::Result<()> {
        let thread = self.run(async { rustix::thread::gettid() }).await?;
        let thread = thread.as_raw_nonzero().to_string();
        let mut chrt = tokio::process::Command::new("chrt");
        let out = chrt.args(["--idle", "--pid", "0", &thread]).output().await;
        let out =
            out.map_err(|e| io::Error::new(e.kind(), format!("no `chrt` (util-linux): {e}")))?;
        if out.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&out.stderr).trim().to_owned()))
    }

    /// Where tasks can be started.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
