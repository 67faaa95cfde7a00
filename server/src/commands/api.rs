//! `aditd api`: prints where the API is.

use std::path::Path;

use common::machine::{
    control, json,
    report::{Failure, data, say, typed},
};
use serde::Serialize;

use crate::{serve::started, state};

/// Where the API is.
#[derive(Serialize)]
struct Place<'a> {
    socket: &'a Path,
    /// Whether aditd runs, and answers there.
    running: bool,
}

/// Prints the path of the socket.
///
/// # Errors
/// If there is no state, or its path is too long for a socket.
pub(crate) fn run(dir: &Path, as_json: bool) -> Result<(), Failure> {
    state::must_exist(dir)?;
    let (socket, runs) = (control::socket_path(dir)?, control::is_running(dir));
    if as_json {
        return json::answer(Place { socket: &socket, running: runs });
    }
    data(socket.display())?;
    if !runs {
        let start = started::command(dir);
        say(typed(format!("Note: aditd is not running here: start it with `{start}`.")));
    }
    Ok(())
}
