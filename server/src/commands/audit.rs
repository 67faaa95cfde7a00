//! `aditd audit`: prints the audit log for people, or as JSON.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use clap::Args;
use common::machine::{
    process::{self, parse_time},
    report::{Exit, Failure, has_printed, style},
};
use proto::{human, wire::DEFAULT_SERVICE};
use serde_json::Value;

use crate::{
    audit::{entry::timestamp, read::Lines},
    state::{
        self, State,
        register::{DeviceError, UserError},
    },
};

/// How many device names of the log are remembered, to list them in an error.
const MOST_NAMED: usize = 64;
/// How often `--follow` looks for new lines.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The shortest time in the queue that is shown, in milliseconds.
const LEAST_QUEUED: f64 = 1.0;

/// Flags of `audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditQuery {
    /// Show only this device or key (name or id)
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Show only the devices and keys of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Begin this long ago, for example 2h [default: the oldest line]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Duration>,
    /// Wait for new lines and show them as they come
    #[arg(long)]
    follow: bool,
    /// Print the lines as they are stored: one JSON object each
    #[arg(long)]
    json: bool,
}

/// Prints the log in `dir` of the server whose state is in `state_dir`. Blocks; with `--follow`
/// until it is stopped or its output is closed.
///
/// # Errors
/// When there is neither a log nor a server, when the log can't be read, or when standard output
/// can't be written.
pub(crate) fn run(dir: &Path, state_dir: &Path, show: &AuditQuery) -> Result<(), Failure> {
    let since = match show.since.map(|since| SystemTime::now().checked_sub(since)) {
        None => None,
        Some(Some(since)) => Some(since),
        Some(None) => return Err(Failure::new("--since goes back too far").exit(Exit::Usage)),
    };
    let mut lines = Lines::open(dir, since)?;
    if lines.is_without_files() {
        // A server that has not logged anything yet is not an error; a missing server is one.
        state::must_exist(state_dir)?;
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let from = since.map(timestamp);
    let mut matched = Matched::default();
    let layout = Layout::of_stdout();
    let mut printed = if show.json { Ok(()) } else { writeln!(out, "{}", layout.header()) };
    while printed.is_ok() {
        match lines.read_line()? {
            Some(line) => {
                printed = print(&mut out, &line, show, from.as_deref(), &mut matched, layout)
            }
            None if let Some(unknown) = matched.unknown(show, state_dir) => {
                // Drops the buffered header, too: nothing else was printed.
                let _ = out.into_parts();
                return Err(unknown.into());
            }
            None if let Some(unknown) = matched.unknown_user(show, state_dir) => {
                let _ = out.into_parts();
                return Err(unknown.into());
            }
            None if show.follow => printed = out.flush().and_then(|()| pause()),
            None => break,
        }
    }
    match printed.and_then(|()| out.flush()) {
        // The reader has closed the pipe, as `head` does.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Failure::new("cannot write to standard output").source(e)),
    }
}

/// Waits a moment. Also notices that the reader has closed the pipe while there is nothing to
/// print.
fn pause() -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) if fds[0].revents().intersects(PollFlags::ERR) => {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
        // A terminal that hung up, or a descriptor that can't be polled: sleep instead.
        _ => {
            std::thread::sleep(LOOK_EVERY);
            Ok(())
        }
    }
}

/// Whether the requested device was seen in the log.
#[derive(Default)]
struct Matched {
    seen: bool,
    known: BTreeSet<String>,
    checked: bool,
    /// Whether the requested user was seen.
    user_seen: bool,
    user_checked: bool,
}

impl Matched {
    /// Called for each line that names a device.
    fn device(&mut self, name: &str, is_asked_for: bool) {
        self.seen |= is_asked_for;
        if !name.is_empty() && self.known.len() < MOST_NAMED && !self.known.contains(name) {
            self.known.insert(name.to_owned());
        }
    }

    /// The error for a user who is neither in the log nor in the register. Checked once.
    fn unknown_user(&mut self, show: &AuditQuery, state_dir: &Path) -> Option<UserError> {
        let name = show.user.as_deref().filter(|_| !self.user_seen && !self.user_checked)?;
        self.user_checked = true;
        let found = State::open(state_dir).ok()?.register.find_user(name, process::unix_now());
        found.err().filter(|why| matches!(why, UserError::Unknown { .. }))
    }

    /// The error for a device that is neither in the log nor in the register. Checked once.
    fn unknown(&mut self, show: &AuditQuery, state_dir: &Path) -> Option<DeviceError> {
        let text = show.device.clone().filter(|_| !self.seen && !self.checked)?;
        self.checked = true;
        // Without a register only the log says which devices there are.
        let state = State::open(state_dir);
        let is_key = state.as_ref().is_ok_and(|state| state.register.find_key(&text).is_ok());
        if is_key {
            return None;
        }
        let in_register = match state.map(|state| state.register.find(&text)) {
            Ok(Err(DeviceError::Unknown { known, .. })) => known,
            Ok(_) => return None,
            Err(_) => Vec::new(),
        };
        let in_log = self.known.iter().filter_map(|name| name.parse().ok());
        let known: BTreeSet<_> = in_register.into_iter().chain(in_log).collect();
        Some(DeviceError::Unknown { text, known: known.into_iter().collect() })
    }
}

fn print(
    out: &mut impl Write,
    line: &[u8],
    show: &AuditQuery,
    from: Option<&str>,
    matched: &mut Matched,
    layout: Layout,
) -> io::Result<()> {
    // A line that a crash has torn is skipped.
    let Ok(entry) = serde_json::from_slice::<Value>(line) else { return Ok(()) };
    let text = |name: &str| entry[name].as_str().unwrap_or("");
    let is_asked_for = show
        .device
        .as_ref()
        .is_none_or(|device| [text("device"), text("device_id")].contains(&device.as_str()));
    matched.device(text("device"), is_asked_for);
    let is_of_user = show.user.as_ref().is_none_or(|user| text("user") == user.as_str());
    matched.user_seen |= show.user.is_some() && is_of_user;
    let is_wanted = is_asked_for && is_of_user && from.is_none_or(|from| text("time") >= from);
    match (is_wanted, show.json) {
        (false, _) => Ok(()),
        (true, true) => {
            has_printed();
            out.write_all(line)?;
            out.write_all(b"\n")
        }
        (true, false) => writeln!(out, "{}", row(&entry, layout)),
    }
}

const HEADER: &str = "TIME (UTC)           DEVICE           STATUS  ENDED           TOKENS    QUEUED       TIME  WHAT";

const NARROW_HEADER: &str = "TIME (UTC)           DEVICE        STATUS  WHAT";
/// A terminal with fewer columns gets the narrow rows.
const WIDE: usize = 120;

/// How rows are laid out.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// A row each, with a column for each figure.
    Wide,
    /// At most so many columns, with the figures in words.
    Narrow(usize),
}

impl Layout {
    fn of_stdout() -> Self {
        // `style` takes at most the columns that a text is easy to read with.
        let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
        match usize::from(columns) {
            columns if columns == 0 || columns >= WIDE => Self::Wide,
            _ => Self::Narrow(style().width),
        }
    }

    fn header(self) -> &'static str {
        if matches!(self, Self::Wide) { HEADER } else { NARROW_HEADER }
    }

    fn row(self, at: &str, device: &str, columns: [&str; 5], what: &str) -> String {
        let [status, ended, tokens, queued, time] = columns;
        let row = match self {
            Self::Wide => format!(
                "{at:<19}  {device:<15}  {status:<6}  {ended:<14}  {tokens:>7}  {queued:>8}  {time:>9}  {what}"
            ),
            Self::Narrow(width) => {
                let named = |value: &str, before: &str, after: &str| match value {
                    "" | "done" => None,
                    value => Some(format!("{before}{value}{after}")),
                };
                let parts = [
                    Some(what.to_owned()),
                    named(ended, "", ""),
                    named(tokens, "", " tokens"),
                    named(queued, "queued ", ""),
                    named(time, "", ""),
                ];
                let what = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
                let begin = format!("{at:<19}  {device:<12}  {status:<6}  ");
                let indent = begin.chars().count();
                format!("{begin}{}", human::wrapped(&what, indent, width))
            }
        };
        row.trim_end().to_owned()
    }
}

fn row(entry: &Value, layout: Layout) -> String {
    let text = |name: &str| entry[name].as_str().unwrap_or("");
    let at = text("time").replacen('T', " ", 1);
    let at = at.get(..19).unwrap_or(&at);
    let device = if text("device").is_empty() { "-" } else { text("device") };
    let (mut status, mut tokens, mut queued) = (String::new(), String::new(), String::new());
    let ended = if text("why").is_empty() { text("end") } else { text("why") };
    let time = entry["total_ms"].as_f64().map_or(String::new(), duration);
    let size = |name: &str| human::size(entry[name].as_u64().unwrap_or(0));
    let bytes = || format!("{} in, {} out", size("bytes_in"), size("bytes_out"));
    let peer = || format!("{} over {}", text("remote"), text("carrier"));
    let mut what = match text("event") {
        "request" => {
            status = entry["status"].as_u64().map_or("-".to_owned(), |status| status.to_string());
            tokens = counted(entry);
            queued = entry["queued_ms"]
                .as_f64()
                .filter(|ms| *ms >= LEAST_QUEUED)
                .map_or(String::new(), duration);
            // Most servers have the one service only.
            let service = Some(text("service")).filter(|name| *name != DEFAULT_SERVICE);
            [service.unwrap_or_default(), text("method"), text("path"), text("model")]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        }
        "connect" => format!("connected from {}", peer()),
        "taken_over" => {
            let was = if entry["was_alive"] == true { "was alive" } else { "was silent" };
            format!("session taken over by {}; that of {} {was}", peer(), text("before"))
        }
        "disconnect" => format!("disconnected from {}, {}", peer(), bytes()),
        "stream" => format!("tcp stream to `{}`, {}", text("service"), bytes()),
        "lost" => {
            let lines = human::count(entry["lines"].as_u64().unwrap_or(0), "line");
            format!("{lines} before this one could not be written: what they said is lost")
        }
        _ => return layout.row(at, device, ["", "", "", "", ""], &event(entry)),
    };
    // The log has only our own lines, but the file may have been edited.
    what.retain(|c| !human::misleads(c));
    layout.row(at, device, [&status, ended, &tokens, &queued, &time], &what)
}

/// The tokens of a request: those of the prompt and of the answer together.
fn counted(entry: &Value) -> String {
    let counted: Vec<_> =
        [&entry["tokens_in"], &entry["tokens_out"]].iter().filter_map(|n| n.as_u64()).collect();
    if counted.is_empty() {
        return String::new();
    }
    let about = if entry["tokens_estimated"] == true { "~" } else { "" };
    format!("{about}{}", counted.iter().sum::<u64>())
}

/// An event other than a request: its kind and its fields.
fn event(entry: &Value) -> String {
    let mut what = entry["event"].as_str().unwrap_or("").replace('_', " ");
    for (name, value) in entry.as_object().into_iter().flatten() {
        if ["time", "event", "device"].contains(&name.as_str()) || value.is_null() {
            continue;
        }
        what += &format!(" {name}={}", readable(name, value));
    }
    // The log has only our own lines, but the file may have been edited.
    what.chars().filter(|c| !human::misleads(*c)).collect()
}

/// A value as people read it.
fn readable(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(at) if name == "expires" => {
            at.as_i64().map(process::minute).unwrap_or_default()
        }
        Value::Object(one) => one
            .iter()
            .map(|(name, value)| format!("{name}:{}", readable(name, value)))
            .collect::<Vec<_>>()
            .join(","),
        other => other.to_string(),
    }
}

fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 1e3 => format!("{ms:.1} ms"),
        ms if ms < 6e4 => format!("{:.1} s", ms / 1e3),
        ms => human::time(Duration::from_millis(ms as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::entry::{
            self, Event, SessionPeer,
            tests::{event as event_of, record},
        },
        record::{End, Refusal, charge::Charge},
    };

    fn show(event: &Event, show: &AuditQuery, from: Option<&str>) -> String {
        let line =
            entry::line(SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123), event);
        let mut out = Vec::new();
        print(&mut out, line.trim_ascii_end(), show, from, &mut Matched::default(), Layout::Wide)
            .expect("printed");
        String::from_utf8(out).expect("text")
    }

    fn all() -> AuditQuery {
        AuditQuery { device: None, user: None, since: None, follow: false, json: false }
    }

    #[test]
    fn a_narrow_terminal_has_no_row_that_is_longer() {
        let line = entry::line(SystemTime::UNIX_EPOCH, &event_of(&record(End::Done)));
        let entry: Value = serde_json::from_slice(line.trim_ascii_end()).expect("JSON");
        let shown = row(&entry, Layout::Narrow(80));
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(NARROW_HEADER.len() <= 80 && shown.contains(" tokens"), "{shown}");
    }

    #[test]
    fn a_request_is_one_row_under_the_header() {
        let row = show(&event_of(&record(End::Done)), &all(), None);
        assert_eq!(
            format!("{HEADER}\n{row}"),
            "TIME (UTC)           DEVICE           STATUS  ENDED           TOKENS    QUEUED       TIME  WHAT\n\
             2027-01-15 08:00:00  laptop           200     done                 49              20.0 ms  POST /api/chat llama3\n"
        );
        let charge = Charge { read: Some(9), written: Some(0), is_estimated: true };
        let row = show(&Event::request(&record(End::Cancelled), &charge), &all(), None);
        assert!(row.contains(" ~9 "), "{row}");
        let row = show(&event_of(&record(End::Refused(Refusal::Role))), &all(), None);
        assert!(row.contains(" role "), "{row}");
        let mut waited = record(End::Cancelled);
        waited.queued = Duration::from_millis(4200);
        let row = show(&event_of(&waited), &all(), None);
        assert!(row.contains(" cancelled            49     4.2 s    20.0 ms "), "{row}");
    }

    #[test]
    fn sessions_and_tcp_streams_are_told_in_words() {
        let who = || SessionPeer::from(&record(End::Done).asker);
        let rows = [
            (Event::Connect { who: who() }, "laptop connected from 10.0.0.7:4000 over udp"),
            (
                Event::TakenOver {
                    who: who(),
                    before: "10.0.0.8:1".parse().expect("one"),
                    was_alive: true,
                },
                "laptop session taken over by 10.0.0.7:4000 over udp; that of 10.0.0.8:1 was alive",
            ),
            (
                Event::Disconnect {
                    who: who(),
                    why: "silent",
                    bytes_in: 2048,
                    bytes_out: 3 << 30,
                    total_ms: 11_520_000.0,
                },
                "laptop silent 3h 12m disconnected from 10.0.0.7:4000 over udp, 2 KiB in, 3 GiB out",
            ),
            (
                Event::Stream {
                    who: who(),
                    service: "db".parse().expect("a name"),
                    bytes_in: 1,
                    bytes_out: 0,
                    total_ms: 1.5,
                    end: "done",
                    why: None,
                },
                "laptop done 1.5 ms tcp stream to `db`, 1 byte in, 0 bytes out",
            ),
        ];
        for (event, row) in rows {
            let shown = show(&event, &all(), None);
            let words: Vec<_> = shown.split_whitespace().skip(2).collect();
            assert_eq!(words.join(" "), row);
        }
    }

    #[test]
    fn other_events_say_what_they_are() {
        let row = show(&Event::Stop { pid: 7 }, &all(), None);
        assert!(
            row.starts_with("2027-01-15 08:00:00  -") && row.ends_with("stop pid=7\n"),
            "{row}"
        );
        let row = show(&Event::Lost { lines: 3 }, &all(), None);
        assert!(
            row.ends_with(
                " 3 lines before this one could not be written: what they said is lost\n"
            ),
            "{row}"
        );
        let event: Value =
            serde_json::from_str(r#"{"event":"enroll","by":{"ssh":7},"expires":1800000000}"#)
                .expect("JSON");
        assert_eq!(super::event(&event), "enroll by=ssh:7 expires=2027-01-15T08:00");
    }

    #[test]
    fn only_the_requested_lines_are_shown() {
        let event = event_of(&record(End::Done));
        let of = |device: &str| AuditQuery { device: Some(device.to_owned()), ..all() };
        assert_ne!(show(&event, &of("laptop"), None), "");
        assert_eq!(show(&event, &of("lap"), None), "");
        assert_eq!(show(&event, &all(), Some("2027-01-15T08:00:00.124Z")), "");
        assert_ne!(show(&event, &all(), Some("2027-01-15T08:00:00.123Z")), "");
        let mut out = Vec::new();
        print(&mut out, b"{\"time\":\"2027", &all(), None, &mut Matched::default(), Layout::Wide)
            .expect("a torn line is passed over");
        assert!(out.is_empty());
    }
}
