//! Writes the audit log beside the requests: a bounded channel to one thread. Events that can't be
//! written are counted, and a failure is logged once.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, SystemTime},
};

use common::machine::files::FileError;
use proto::human::count;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{
    AuditSettings, Events,
    entry::{self, Event},
    log::Log,
};

/// How many events may wait for the disk: some seconds of a busy server.
const MAX_PENDING: usize = 4096;
/// The most lines that are written at once.
const BATCH: usize = 256;
/// How long lines are gathered before they are written: the file is opened and the thread is woken
/// once for many lines.
const GATHER: Duration = Duration::from_millis(5);
/// How often writing is tried again while the log can't be written.
const RETRY: Duration = Duration::from_secs(1);
/// How often old files are deleted.
const TEND: Duration = Duration::from_secs(3600);

/// The audit log of a running server. Its methods that note events never wait.
pub(crate) struct Audit {
    required: bool,
    dir: PathBuf,
    to_writer: SyncSender<Message>,
    events: Arc<Events>,
    state: Arc<WriterState>,
}

enum Message {
    Event(SystemTime, Event),
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct WriterState {
    /// Whether the last attempt to write failed, or the channel was full.
    failing: AtomicBool,
    /// Lost lines that no line of the log counts yet.
    untold: AtomicU64,
    /// Lost lines since the start.
    lost: AtomicU64,
    /// Why the log could not be written at the last attempt, and what cures that.
    why: Mutex<Option<(String, String)>>,
}

/// The state of the audit log, for `aditd status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// The directory of the log.
    pub dir: PathBuf,
    /// Lines that could not be written since the start.
    pub lost: u64,
    /// Why the log can't be written now, if so.
    pub failing: Option<String>,
    /// What cures that, if it is known.
    #[serde(default)]
    pub cure: Option<String>,
}

impl Audit {
    /// Starts the writer's thread. It ends when the returned value is dropped.
    ///
    /// # Errors
    /// When the log can't be written and is required.
    pub(crate) fn start(settings: AuditSettings) -> Result<Arc<Self>, FileError> {
        let mut log = Log::new(settings.clone());
        let state = Arc::new(WriterState::default());
        if let Err(e) = log
            .tend(SystemTime::now())
            .and_then(|()| log.append(&[[0; 0]; 0], SystemTime::now()).outcome)
        {
            if settings.required {
                return Err(e);
            }
            state.fails(&e);
        }
        let (to_writer, events) = sync_channel(MAX_PENDING);
        let writer = Writer { log, state: state.clone() };
        let thread =
            std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&events));
        thread.map_err(FileError::io("write", &settings.dir))?;
        Ok(Arc::new(Self {
            required: settings.required,
            dir: settings.dir,
            to_writer,
            events: Arc::default(),
            state,
        }))
    }

    /// Notes an event that has just happened.
    pub(crate) fn note(&self, event: Event) {
        let now = SystemTime::now();
        if !event.is_of_register() {
            self.events.send(now, &event);
        }
        match self.to_writer.try_send(Message::Event(now, event)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.state.lost(1);
                if !self.state.failing.swap(true, Relaxed) {
                    warn!("the disk is too slow for the audit log: lines are lost");
                }
            }
        }
    }

    /// Those who read events as they happen.
    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Whether requests must be refused because they can't be logged.
    pub(crate) fn refuses(&self) -> bool {
        self.required && self.state.failing.load(Relaxed)
    }

    pub(crate) fn status(&self) -> AuditStatus {
        let failing = self.state.failing.load(Relaxed);
        let why = self.state.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (why, cure) = why.filter(|_| failing).unzip();
        AuditStatus {
            dir: self.dir.clone(),
            lost: self.state.lost.load(Relaxed),
            failing: failing.then(|| why.unwrap_or_else(|| "the disk is too slow".to_owned())),
            cure,
        }
    }

    /// Waits until all noted events are written or lost, at most for `within`.
    pub(crate) async fn flush(&self, within: Duration) {
        let (done, is_done) = oneshot::channel();
        if self.to_writer.try_send(Message::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(within, is_done).await;
        }
    }
}

impl WriterState {
    fn lost(&self, lines: u64) {
        self.lost.fetch_add(lines, Relaxed);
        self.untold.fetch_add(lines, Relaxed);
    }

    /// Logs a failure once, until one comes that needs another cure, or writing succeeds again.
    fn fails(&self, error: &FileError) {
        let why = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let mut said = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        self.failing.store(true, Relaxed);
        let now = (why, error.hint_to_go_on("`audit_dir` in the configuration"));
        if said.as_ref().is_none_or(|(_, cure)| *cure != now.1) {
            warn!("the audit log can't be written: {}; {}", now.0, now.1);
        }
        *said = Some(now);
    }

    fn recovers(&self, lost: u64) {
        self.failing.store(false, Relaxed);
        if self.why.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() || lost > 0 {
            info!("the audit log can be written again; lost: {}", count(lost, "line"));
        }
    }
}

/// The part that runs in the thread.
struct Writer {
    log: Log,
    state: Arc<WriterState>,
}

impl Writer {
    fn run(mut self, events: &Receiver<Message>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut is_behind = false;
        loop {
            let failing = self.state.failing.load(Relaxed) || self.state.untold.load(Relaxed) > 0;
            let mut flushes = Vec::new();
            let mut take = |message, batch: &mut Vec<_>| match message {
                Message::Event(at, event) => batch.push(entry::line(at, &event)),
                Message::Flush(done) => flushes.push(done),
            };
            match events.recv_timeout(if failing { RETRY } else { TEND }) {
                Ok(message) => {
                    // Changes of access are written to the disk at once.
                    let can_wait = matches!(
                        message,
                        Message::Event(_, Event::Request(_) | Event::Stream { .. })
                    );
                    if !is_behind && can_wait {
                        std::thread::sleep(GATHER);
                    }
                    take(message, &mut batch);
                }
                Err(RecvTimeoutError::Timeout) if !failing => {
                    if let Err(e) = self.log.tend(SystemTime::now()) {
                        self.state.fails(&e);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while batch.len() < BATCH
                && let Ok(message) = events.try_recv()
            {
                take(message, &mut batch);
            }
            is_behind = batch.len() == BATCH;
            self.write(&batch);
            batch.clear();
            for done in flushes {
                let _ = done.send(());
            }
        }
    }

    fn write(&mut self, batch: &[Vec<u8>]) {
        let now = SystemTime::now();
        // A loss is written before the lines that came after it.
        let untold = self.state.untold.load(Relaxed);
        let told = (untold > 0).then(|| entry::line(now, &Event::Lost { lines: untold }));
        let lines: Vec<&[u8]> = told.iter().chain(batch).map(Vec::as_slice).collect();
        let appended = self.log.append(&lines, now);
        let of_batch = appended.lines.saturating_sub(usize::from(told.is_some()));
        if told.is_some() && appended.lines > 0 {
            self.state.untold.fetch_sub(untold, Relaxed);
        }
        self.state.lost((batch.len() - of_batch) as u64);
        match appended.outcome {
            Ok(()) => self.state.recovers(untold),
            Err(e) => self.state.fails(&e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn lines(dir: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(dir.join(super::super::log::FILE)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn stop(pid: u32) -> Event {
        Event::Stop { pid }
    }

    #[tokio::test]
    async fn what_is_noted_is_written_in_order() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let audit = Audit::start(AuditSettings::in_dir(&tmp.path().join("log"))).expect("started");
        for pid in 0..1000 {
            audit.note(stop(pid));
        }
        audit.flush(LONG).await;
        let pids: Vec<_> = lines(&tmp.path().join("log"))
            .iter()
            .map(|line| line["pid"].as_u64().expect("a pid"))
            .collect();
        assert_eq!(pids, (0..1000).collect::<Vec<_>>());
        assert_eq!(audit.status().failing, None);
    }

    #[tokio::test]
    async fn a_loss_is_counted_and_the_next_line_says_so() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let settings =
            AuditSettings { required: true, ..AuditSettings::in_dir(&tmp.path().join("log")) };
        let audit = Audit::start(settings.clone()).expect("started");
        audit.note(stop(1));
        audit.flush(LONG).await;
        let file = settings.dir.join(super::super::log::FILE);
        // A directory in the file's place: not even root can write to it.
        fs::rename(&file, settings.dir.join("kept")).expect("moved");
        fs::create_dir(&file).expect("made");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).expect("chmod");
        audit.note(stop(2));
        audit.note(stop(3));
        audit.flush(LONG).await;
        assert!(audit.refuses());
        assert_eq!(audit.status().lost, 2);
        assert!(audit.status().failing.expect("why").contains("audit.jsonl"));
        fs::remove_dir(&file).expect("removed");
        for _ in 0..3000 {
            if !audit.refuses() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        audit.note(stop(4));
        audit.flush(LONG).await;
        let lines = lines(&settings.dir);
        assert_eq!(
            (&lines[0]["event"], &lines[0]["lines"], &lines[1]["pid"]),
            (&"lost".into(), &2.into(), &4.into())
        );
        assert_eq!(
            audit.status(),
            AuditStatus { dir: settings.dir, lost: 2, failing: None, cure: None }
        );
    }

    #[test]
    fn a_required_log_that_cannot_be_written_is_an_error_at_the_start() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let dir = tmp.path().join("log");
        fs::write(&dir, "in the way").expect("written");
        let settings = AuditSettings { required: true, ..AuditSettings::in_dir(&dir) };
        assert!(Audit::start(settings.clone()).is_err());
        let audit = Audit::start(AuditSettings { required: false, ..settings }).expect("started");
        assert!(!audit.refuses());
        assert!(audit.status().failing.is_some());
    }
}
