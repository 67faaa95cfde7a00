//! The files: their content after other processes have written, after a crash, and after some time.

use std::{collections::HashSet, fs::OpenOptions, os::unix::fs::PermissionsExt};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// Noon of today, because the age of a file is measured by the real clock.
fn noon() -> SystemTime {
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    SystemTime::UNIX_EPOCH + Duration::from_secs(now - now % 86_400 + 43_200)
}

fn settings(dir: &Path) -> AuditSettings {
    AuditSettings::in_dir(&dir.join("audit"))
}

fn line(at: SystemTime, text: &str) -> Vec<u8> {
    format!("{{\"time\":\"{}\",\"text\":\"{text}\"}}\n", timestamp(at)).into_bytes()
}

#[track_caller]
fn append(log: &mut Log, at: SystemTime, text: &str) {
    let appended = log.append(&[line(at, text)], at);
    appended.outcome.expect("written");
    assert_eq!(appended.lines, 1);
}

/// All lines of all files, oldest first, and how many of them are not JSON.
fn texts(dir: &Path) -> (Vec<String>, usize) {
    let mut files = put_aside(dir).expect("files");
    files.push(dir.join(FILE));
    let all: String =
        files.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    let read = all.lines().map(serde_json::from_str::<serde_json::Value>);
    let good: Vec<_> =
        read.filter_map(|line| Some(line.ok()?["text"].as_str()?.to_owned())).collect();
    let torn = all.lines().count() - good.len();
    (good, torn)
}

#[test]
fn a_line_that_a_crash_has_torn_damages_no_other() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let settings = settings(tmp.path());
    let mut log = Log::new(settings.clone());
    append(&mut log, noon(), "whole");
    let path = settings.dir.join(FILE);
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    let mut file = OpenOptions::new().append(true).open(&path).expect("opened");
    file.write_all(b"{\"time\":\"2027-0").expect("torn");
    append(&mut log, noon(), "after");
    file.write_all(b"{\"ti").expect("torn");
    append(&mut Log::new(settings.clone()), noon(), "another process");
    assert_eq!(
        texts(&settings.dir),
        (vec!["whole".into(), "after".into(), "another process".into()], 2)
    );
}

#[test]
fn a_file_that_is_large_or_of_another_day_is_put_aside() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let settings = AuditSettings { size: 150, ..settings(tmp.path()) };
    let mut log = Log::new(settings.clone());
    for i in 0..20 {
        append(&mut log, noon(), &i.to_string());
    }
    let files = put_aside(&settings.dir).expect("files");
    assert!((4..10).contains(&files.len()), "{files:?}");
    assert!(files.iter().all(|path| fs::metadata(path).expect("a file").len() < 250));
    append(&mut log, noon() + DAY, "tomorrow");
    assert_eq!(put_aside(&settings.dir).expect("files").len(), files.len() + 1);
    let expected: Vec<_> = (0..20).map(|i| i.to_string()).chain(["tomorrow".to_owned()]).collect();
    assert_eq!(texts(&settings.dir), (expected, 0));
}

#[test]
fn old_files_and_too_many_files_are_deleted() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let settings = AuditSettings { files: 4, ..settings(tmp.path()) };
    let mut log = Log::new(settings.clone());
    let now = noon();
    for day in 0..10 {
        append(&mut log, now + DAY * day, &day.to_string());
    }
    assert_eq!(put_aside(&settings.dir).expect("files").len(), 3);
    assert_eq!(texts(&settings.dir).0, ["6", "7", "8", "9"]);
    // A file's age is counted from its last write, which is now.
    log.tend(now + settings.keep + DAY).expect("tended");
    assert_eq!(put_aside(&settings.dir).expect("files").len(), 0);
    assert_eq!(texts(&settings.dir).0, [""; 0]);
}

#[test]
fn many_writers_lose_nothing_while_files_are_put_aside() {
    const WRITERS: usize = 8;
    const EACH: usize = 50;
    let tmp = tempfile::tempdir().expect("tempdir");
    let settings = AuditSettings { size: 1000, files: 1000, ..settings(tmp.path()) };
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let settings = &settings;
            scope.spawn(move || {
                let mut log = Log::new(settings.clone());
                for i in 0..EACH {
                    append(&mut log, noon(), &format!("{writer}-{i}"));
                }
            });
        }
    });
    let (texts, torn) = texts(&settings.dir);
    assert_eq!((texts.len(), torn), (WRITERS * EACH, 0));
    assert_eq!(texts.iter().collect::<HashSet<_>>().len(), WRITERS * EACH);
    assert!(put_aside(&settings.dir).expect("files").len() > 10);
}

#[test]
fn a_log_that_others_can_read_is_not_written() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let settings = settings(tmp.path());
    append(&mut Log::new(settings.clone()), noon(), "first");
    fs::set_permissions(settings.dir.join(FILE), fs::Permissions::from_mode(0o644)).expect("chmod");
    let appended = Log::new(settings).append(&[line(noon(), "second")], noon());
    assert!(matches!(appended.outcome, Err(FileError::Exposed { .. })), "{appended:?}");
}
