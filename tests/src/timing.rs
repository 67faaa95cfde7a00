//! How long each test took, for `.ci/run`: the standard harness does not say it.

use std::{cell::RefCell, fs::OpenOptions, io::Write, time::Instant};

/// Names the file that gets one line for each test: its name and its seconds.
const FILE: &str = "ADIT_TEST_TIMES";

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// A test that runs on this thread; it has ended when the thread ends.
struct Running(Instant);

/// The test on this thread begins now, unless it has begun before.
pub fn begin() {
    RUNNING.with_borrow_mut(|running| {
        running.get_or_insert_with(|| Running(Instant::now()));
    });
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
