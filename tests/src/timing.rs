//! How long each test took, for `.ci/run` (the standard test harness does not report it), and the
//! long form of tests, for `just long`.

use std::{cell::RefCell, fs::OpenOptions, io::Write, time::Instant};

/// The variable that names the file; each test adds a line with its name and its seconds.
const FILE: &str = "ADIT_TEST_TIMES";

/// Set for the long form of tests: the same checks with more repetitions and longer outages.
const LONG: &str = "ADIT_LONG_TESTS";

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// A test that runs on this thread; it has ended when the thread ends.
struct Running(Instant);

/// Notes that the test on this thread begins, unless that was noted before.
pub fn begin() {
    RUNNING.with_borrow_mut(|running| {
        running.get_or_insert_with(|| Running(Instant::now()));
    });
}

/// An amount for a test: `usual`, or `long` in the long form.
pub fn usual_or_long<T>(usual: T, long: T) -> T {
    if std::env::var_os(LONG).is_some() { long } else { usual }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(path), thread) = (std::env::var_os(FILE), std::thread::current()) else { return };
        let line = format!(
            "{} {:.2}\n",
            thread.name().unwrap_or("unnamed"),
            self.0.elapsed().as_secs_f64()
        );
        if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
            let _ = file.write_all(line.as_bytes());
        }
    }
}
