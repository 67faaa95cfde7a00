//! The thread that uses a token or a TPM. A call of a library cannot be cancelled: whoever waits for one
//! that hangs stops waiting, and the thread stays behind.

use std::{
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// How long everything but a signature for a handshake may take. Slow cards need some seconds to make
/// a key.
pub(super) const WITHIN: Duration = Duration::from_secs(20);
/// How long it may take while a person types the PIN at the reader of a token.
pub(super) const PERSON_WITHIN: Duration = Duration::from_secs(120);
/// How long a signature for a handshake may take: the thread that waits for it moves the bytes of all
/// applications.
pub(super) const SIGN_WITHIN: Duration = Duration::from_secs(5);
/// How many jobs wait for a thread that is busy.
const WAITING: usize = 16;

/// How long the end of this process waits for what threads still do.
const END_WITHIN: Duration = Duration::from_secs(2);

type Job<D> = Box<dyn FnOnce(&mut D) + Send>;

/// What a thread is told.
enum Message<D> {
    Do(Job<D>, Pending),
    /// The device is dropped, and the thread ends.
    End(Pending),
}

/// What threads still do, in this whole process.
static THREADS: Mutex<Threads> = Mutex::new(Threads { pending: 0, ended: Vec::new() });
static NOTHING_PENDING: Condvar = Condvar::new();

struct Threads {
    /// How many messages were sent and are not done.
    pending: usize,
    /// Threads that are told to end, or have ended.
    ended: Vec<thread::JoinHandle<()>>,
}

fn threads() -> MutexGuard<'static, Threads> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// That a message is not done yet.
struct Pending;

impl Pending {
    fn new() -> Self {
        threads().pending += 1;
        Self
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut threads = threads();
        threads.pending -= 1;
        if threads.pending == 0 {
            NOTHING_PENDING.notify_all();
        }
    }
}

/// Waits, at the end of this process, until no thread uses a library any more: a library that is used
/// while the process takes it apart crashes. Gives up after two seconds, because one may hang. Blocks.
pub(crate) fn finish() {
    let is_busy = |threads: &mut Threads| threads.pending > 0;
    let waited = NOTHING_PENDING.wait_timeout_while(threads(), END_WITHIN, is_busy);
    let (mut threads, waited) = waited.unwrap_or_else(PoisonError::into_inner);
    let ended = std::mem::take(&mut threads.ended);
    drop(threads);
    if !waited.timed_out() {
        // Nothing but the end of each thread is left.
        ended.into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Why a job has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoResult {
    /// It takes too long.
    Late,
    /// It has panicked, or there is no thread for it.
    Failed,
}

/// What is not used yet has no thread.
enum State<D> {
    Idle(D),
    Running(mpsc::SyncSender<Message<D>>, thread::JoinHandle<()>),
    Gone,
}

/// A device, and the thread that alone uses it, and on which it is dropped.
pub(super) struct Worker<D> {
    state: Mutex<State<D>>,
    /// Whether a job that nobody waits for any more has not ended.
    is_stuck: Arc<AtomicBool>,
    /// Tests wait for less.
    within: Duration,
    person_within: Duration,
}

impl<D: Send + 'static> Worker<D> {
    pub(super) fn new(device: D) -> Self {
        Self {
            state: Mutex::new(State::Idle(device)),
            is_stuck: Arc::default(),
            within: WITHIN,
            person_within: PERSON_WITHIN,
        }
    }

    /// Does `work` and waits for it; longer while `waits_for_person`. Cancellation safe: work that has
    /// begun goes on, and its result is lost.
    ///
    /// # Errors
    /// There is no result in time.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        waits_for_person: &AtomicBool,
        work: impl FnOnce(&mut D) -> T + Send + 'static,
    ) -> Result<T, NoResult> {
        let (answer, answered) = oneshot::channel();
        self.send(Box::new(move |device| {
            if !answer.is_closed() {
                let _ = answer.send(work(device));
            }
        }))?;
        let mut answered = pin!(answered);
        let mut within = tokio::time::timeout(self.within, &mut answered).await;
        if within.is_err() && waits_for_person.load(SeqCst) {
            within = tokio::time::timeout(self.person_within, &mut answered).await;
        }
        match within {
            Ok(answered) => answered.map_err(|_| NoResult::Failed),
            Err(_) => Err(self.late()),
        }
    }

    /// Does `work` and blocks until it is done. Does not wait at all for a thread that is stuck.
    ///
    /// # Errors
    /// There is no result `within` this time.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl FnOnce(&mut D) -> T + Send + 'static,
    ) -> Result<T, NoResult> {
        if self.is_stuck.load(SeqCst) {
            return Err(NoResult::Late);
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let until = Instant::now() + within;
        self.send(Box::new(move |device| {
            // The answer that it is too late may still arrive in time.
            let _ = answer.send((Instant::now() < until).then(|| work(device)));
        }))?;
        match answered.recv_timeout(within) {
            Ok(done) => done.ok_or(NoResult::Late),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self.late()),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(NoResult::Failed),
        }
    }

    fn late(&self) -> NoResult {
        self.is_stuck.store(true, SeqCst);
        NoResult::Late
    }

    fn send(&self, job: Job<D>) -> Result<(), NoResult> {
        let mut state = self.state();
        let (to, thread) = match std::mem::replace(&mut *state, State::Gone) {
            State::Idle(device) => self.start(device)?,
            State::Running(to, thread) => (to, thread),
            State::Gone => return Err(NoResult::Failed),
        };
        let sent = to.try_send(Message::Do(job, Pending::new())).map_err(|e| match e {
            mpsc::TrySendError::Full(_) => NoResult::Late,
            mpsc::TrySendError::Disconnected(_) => NoResult::Failed,
        });
        *state = State::Running(to, thread);
        sent
    }

    fn start(
        &self,
        mut device: D,
    ) -> Result<(mpsc::SyncSender<Message<D>>, thread::JoinHandle<()>), NoResult> {
        let (to, messages) = mpsc::sync_channel(WAITING);
        let is_stuck = self.is_stuck.clone();
        let run = move || {
            for message in messages {
                match message {
                    Message::Do(job, _pending) => job(&mut device),
                    Message::End(_pending) => return drop(device),
                }
                is_stuck.store(false, SeqCst);
            }
        };
        let thread = thread::Builder::new().name("device-key".to_owned());
        thread.spawn(run).map(|thread| (to, thread)).map_err(|_| NoResult::Failed)
    }
}

impl<D> Worker<D> {
    fn state(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D> Drop for Worker<D> {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.state(), State::Gone);
        if let State::Running(to, thread) = state {
            // If it has no room for this, it hangs.
            let _ = to.try_send(Message::End(Pending::new()));
            let mut threads = threads();
            threads.ended.retain(|thread| !thread.is_finished());
            threads.ended.push(thread);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NOBODY: AtomicBool = AtomicBool::new(false);
    /// Longer than any test.
    const LONG: Duration = Duration::from_secs(600);

    /// The thread hangs until the sender is used.
    fn hang<D: Send + 'static>(worker: &Worker<D>) -> mpsc::Sender<()> {
        let (go_on, ended) = mpsc::channel();
        let (begins, begun) = mpsc::channel();
        let hanging = move |_: &mut D| {
            let _ = begins.send(());
            let _ = ended.recv();
        };
        worker.send(Box::new(hanging)).expect("there is room");
        begun.recv().expect("it begins");
        go_on
    }

    /// A device for whose work nobody waits.
    fn impatient<D: Send + 'static>(device: D) -> Worker<D> {
        let mut worker = Worker::new(device);
        (worker.within, worker.person_within) = (Duration::ZERO, Duration::ZERO);
        worker
    }

    #[tokio::test]
    async fn who_waits_for_work_that_hangs_gives_up_and_the_next_ones_too_until_it_goes_on() {
        let mut worker = impatient(1);
        let go_on = hang(&worker);
        assert_eq!(worker.run(&NOBODY, |number| *number = 7).await, Err(NoResult::Late));
        // It is known that the thread hangs, so this does not block.
        assert_eq!(worker.wait(LONG, |number| *number), Err(NoResult::Late));
        go_on.send(()).expect("it hangs");
        worker.within = LONG;
        assert_eq!(worker.run(&NOBODY, |number| *number).await, Ok(1), "nobody waited for the 7");
        assert_eq!(worker.wait(LONG, |number| *number), Ok(1));
    }

    #[tokio::test]
    async fn a_person_has_more_time() {
        let mut worker = impatient(());
        worker.person_within = LONG;
        let go_on = hang(&worker);
        let person = AtomicBool::new(true);
        let typed = async { go_on.send(()).expect("it hangs") };
        let (done, ()) = tokio::join!(worker.run(&person, |()| ()), typed);
        assert_eq!(done, Ok(()));
    }

    #[tokio::test]
    async fn no_more_work_is_kept_than_there_is_room_for() {
        let mut worker = impatient(());
        let go_on = hang(&worker);
        for _ in 0..WAITING {
            assert_eq!(worker.run(&NOBODY, |()| ()).await, Err(NoResult::Late));
        }
        worker.within = LONG;
        assert_eq!(worker.run(&NOBODY, |()| ()).await, Err(NoResult::Late), "refused at once");
        drop(go_on);
    }

    #[tokio::test]
    async fn a_signature_is_waited_for_as_long_as_was_said_and_a_panic_is_told() {
        let worker = Worker::new(());
        let go_on = hang(&worker);
        assert_eq!(worker.wait(Duration::from_millis(1), |()| ()), Err(NoResult::Late));
        go_on.send(()).expect("it hangs");
        assert_eq!(worker.run(&NOBODY, |()| ()).await, Ok(()));
        let panicked = worker.wait::<()>(LONG, |()| panic!("a defect"));
        assert_eq!(panicked, Err(NoResult::Failed));
        assert_eq!(worker.run(&NOBODY, |()| ()).await, Err(NoResult::Failed));
    }

    #[test]
    fn a_job_that_begins_too_late_is_late_and_not_a_defect() {
        for _ in 0..2000 {
            let worker = Worker::new(());
            assert_eq!(worker.wait(Duration::ZERO, |()| ()), Err(NoResult::Late));
        }
    }

    #[test]
    fn a_device_is_dropped_on_its_own_thread_before_the_process_ends() {
        struct Device(mpsc::Sender<thread::ThreadId>);
        impl Drop for Device {
            fn drop(&mut self) {
                let _ = self.0.send(thread::current().id());
            }
        }
        let (dropped, on) = mpsc::channel();
        let worker = Worker::new(Device(dropped));
        let its_own = worker.wait(LONG, |_| thread::current().id()).expect("done");
        drop(worker);
        finish();
        assert_eq!(on.try_recv(), Ok(its_own));
        assert_ne!(its_own, thread::current().id());
    }
}
