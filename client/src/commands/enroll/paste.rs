//! Reads a code that is pasted at a terminal. A paste may have several lines. It is read until the
//! code is complete, because the shell would run the remaining lines, which are part of a secret.

use std::{io, time::Duration};

use common::machine::report::say;
use proto::invitation::{CodeError, Invitation, MAX_CODE_LEN};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::{QueueSelector, tcflush},
};

/// The longest time between two lines of one paste, even over a slow SSH connection.
const SAME_PASTE: Duration = Duration::from_millis(500);
/// How long a person who was asked for the rest may take for each line.
const PERSON: Duration = Duration::from_secs(60);
/// The most bytes that are kept: a code and some text around it.
const LIMIT: usize = MAX_CODE_LEN + 1024;

/// What to do after the text so far.
#[derive(Debug, PartialEq, Eq)]
enum PasteStep {
    /// The code is complete.
    Take,
    /// The text is the beginning of a code.
    WaitForTheRest,
    /// The text is not a code. Only the rest of the same paste is still read.
    WaitForTheEnd,
}

fn after(text: &[u8]) -> PasteStep {
    match String::from_utf8_lossy(text).parse::<Invitation>() {
        Ok(_) | Err(CodeError::Version(_)) => PasteStep::Take,
        Err(CodeError::Incomplete) if text.len() < LIMIT => PasteStep::WaitForTheRest,
        Err(_) => PasteStep::WaitForTheEnd,
    }
}

/// Reads text that is typed or pasted at the terminal on standard input: a complete code, or else
/// everything that was pasted. Blocks.
///
/// # Errors
/// If the terminal cannot be read.
pub(super) fn read() -> io::Result<Vec<u8>> {
    let (mut text, mut line) = (Vec::new(), [0; 4096]);
    let (mut next, mut asked) = (PasteStep::WaitForTheEnd, false);
    loop {
        let wait = match next {
            _ if text.is_empty() => None,
            PasteStep::WaitForTheRest if asked => Some(PERSON),
            _ => Some(SAME_PASTE),
        };
        if !is_readable(wait)? {
            if next == PasteStep::WaitForTheRest && !asked {
                say("The code is not complete: paste the rest, and press Enter.");
                asked = true;
                continue;
            }
            break;
        }
        let read = match rustix::io::read(io::stdin(), &mut line) {
            Err(rustix::io::Errno::INTR) => continue,
            read => read?,
        };
        let line = &line[..read];
        // The end of the input or an empty line means that there is no rest.
        if line.is_empty() || (asked && line.trim_ascii().is_empty()) {
            break;
        }
        text.extend_from_slice(&line[..line.len().min(LIMIT - text.len())]);
        next = after(&text);
        if next == PasteStep::Take {
            return Ok(text);
        }
    }
    // The shell does not get what the terminal still buffers.
    let _ = tcflush(io::stdin(), QueueSelector::IFlush);
    Ok(text)
}

/// Whether there is input, or the end of it, within this time.
fn is_readable(within: Option<Duration>) -> io::Result<bool> {
    let stdin = io::stdin();
    let within = within.and_then(|within| Timespec::try_from(within).ok());
    loop {
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], within.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::invitation::Secret;

    use super::*;

    #[test]
    fn a_beginning_is_waited_for_whatever_stands_around_its_lines() {
        let code = Invitation {
            addresses: vec!["gpu.lan:11435".to_owned()],
            ca: [7; 32],
            expires: 1_800_000_000,
            secret: Secret::generate(),
            sign_in: false,
        }
        .code()
        .to_string();
        let (first, rest) = code.split_at(40);
        let quoted = format!("> \"{first}\r\n> ");
        assert_eq!(after(quoted.as_bytes()), PasteStep::WaitForTheRest);
        assert_eq!(after(format!("{quoted}{rest}\"\r\n").as_bytes()), PasteStep::Take);
        assert_eq!(after(format!("'{code}'\n").as_bytes()), PasteStep::Take);
        assert_eq!(after(b"hello\n"), PasteStep::WaitForTheEnd);
        // The error is in the CA's hash. In a length it could look like a missing end.
        let mut wrong = code.into_bytes();
        wrong[20] = if wrong[20] == b'a' { b'b' } else { b'a' };
        assert_eq!(after(&wrong), PasteStep::WaitForTheEnd, "a typing error has no rest");
    }
}
