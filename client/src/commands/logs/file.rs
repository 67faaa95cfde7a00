//! The log in a file: its last lines, and those that follow.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use common::machine::{
    files::{self, FileError},
    log_file, log_lines,
    process::StopSignals,
    report::{Failure, harmless},
};
use proto::log_line::LogLine;

/// How often to look for new lines.
const TICK: Duration = Duration::from_millis(200);

/// What has been read of the log.
pub(super) struct ReadLog {
    /// The last lines.
    pub(super) text: String,
    /// The file, read to its end.
    file: File,
}

impl ReadLog {
    /// Without the begin of a line whose end is not in the file yet.
    pub(super) fn whole_lines(&self) -> &str {
        &self.text[..self.text.rfind('\n').map_or(0, |at| at + 1)]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.trim_end().is_empty()
    }
}

/// The last `count` lines of the log and of the file before it. `None` if there is no log.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn last_lines(path: &Path, count: usize) -> Result<Option<ReadLog>, FileError> {
    let read = |path: &Path| -> Result<Option<(File, String)>, FileError> {
        match files::open_read(path) {
            Ok(mut file) => {
                let text = rest(&mut file).map_err(FileError::io("read", path))?;
                Ok(Some((file, text)))
            }
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    };
    let old = read(&log_file::old(path))?.map(|(_, text)| text).unwrap_or_default();
    let Some((file, text)) = read(path)? else { return Ok(None) };
    let text = last(&(old + &text), count).to_owned();
    Ok(Some(ReadLog { text, file }))
}

/// Prints what is added to the log, until a signal comes or nobody reads it any more.
///
/// # Errors
/// If the log cannot be read, or standard output cannot be written.
pub(super) async fn follow(path: &Path, shown: ReadLog, as_json: bool) -> Result<(), Failure> {
    let mut signals =
        StopSignals::listen().map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let mut begun = shown.text[shown.whole_lines().len()..].to_owned();
    let (mut file, mut ticks) = (shown.file, tokio::time::interval(TICK));
    loop {
        tokio::select! {
            () = signals.asked() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let mut text = rest(&mut file).map_err(FileError::io("read", path))?;
        if let Some(mut next) = newer(path, &file) {
            // What came between the two looks.
            text += &rest(&mut file).map_err(FileError::io("read", path))?;
            text += &rest(&mut next).map_err(FileError::io("read", path))?;
            file = next;
        }
        if as_json {
            begun += &text;
            let whole = begun.rfind('\n').map_or(0, |at| at + 1);
            let lines: String = begun.drain(..whole).collect();
            if !log_lines::print(lines.lines().map(LogLine::of_text))? {
                return Ok(());
            }
            continue;
        }
        let mut out = io::stdout();
        match write!(out, "{}", harmless(&text)).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => {
                written.map_err(|e| Failure::new("cannot write to standard output").source(e))?
            }
        }
    }
}

/// The file at `path`, if it is another one than `file`.
fn newer(path: &Path, file: &File) -> Option<File> {
    let next = files::open_read(path).ok()?;
    let (ours, its) = (file.metadata().ok()?, next.metadata().ok()?);
    ((ours.dev(), ours.ino()) != (its.dev(), its.ino())).then_some(next)
}

/// What has not been read yet. If the file became shorter, it is read from its begin.
fn rest(file: &mut File) -> io::Result<String> {
    if file.metadata()?.len() < file.stream_position()? {
        file.seek(SeekFrom::Start(0))?;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last `count` lines.
fn last(text: &str, count: usize) -> &str {
    let ends = text.trim_end_matches('\n').rmatch_indices('\n').map(|(at, _)| at + 1);
    match count {
        0 => "",
        _ => &text[ends.take(count).nth(count - 1).unwrap_or(0)..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole_and_as_many_as_there_are() {
        for (text, count, is) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("", 4, ""),
        ] {
            assert_eq!(last(text, count), is, "{text:?}, {count}");
        }
    }

    #[test]
    fn lines_of_the_old_file_come_before_those_of_the_new_one() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("up.log");
        assert!(last_lines(&path, 3).expect("no error").is_none());
        std::fs::write(log_file::old(&path), "a\nb\n").expect("written");
        std::fs::write(&path, "c\n").expect("written");
        let read = last_lines(&path, 2).expect("no error").expect("a log");
        assert_eq!(read.text, "b\nc\n");
    }
}
