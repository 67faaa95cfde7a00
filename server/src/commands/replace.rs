//! `aditd replace`: the running server starts this program, which replaces it.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::machine::{
    control, json,
    report::{Failure, say},
};
use serde::Serialize;

use crate::{
    running::{self, Answer, Request, replacement::Replacement},
    serve::started,
    state,
};

/// How long the new process may take.
const WITHIN: Duration = Duration::from_secs(90);
/// How often the server is asked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Two processes of the server.
#[derive(Serialize)]
struct Replaced {
    before: ServerProcess,
    now: ServerProcess,
}

#[derive(Serialize)]
struct ServerProcess {
    version: String,
    pid: u32,
}

impl From<&Replacement> for ServerProcess {
    fn from(one: &Replacement) -> Self {
        Self { version: one.version.clone(), pid: one.pid }
    }
}

/// Replaces the server that runs on `dir` with this program, and waits until it serves.
///
/// # Errors
/// If none runs, or why the new process cannot take over. The running one goes on then.
pub(crate) async fn run(dir: &Path, json: bool) -> Result<(), Failure> {
    let program = this_program()?;
    let before = ask(dir, &Request::Replace { program }).await?;
    let began = Instant::now();
    let mut now = before.clone();
    while now.pid == before.pid && now.is_under_way {
        if began.elapsed() > WITHIN {
            return Err(Failure::new("the new aditd is not ready yet")
                .hint("`aditd status` shows which one serves; the log of aditd says more"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        now = ask(dir, &Request::Replacement).await?;
    }
    if now.pid == before.pid {
        let why = now.failed.unwrap_or_else(running::of_another_version);
        return Err(Failure::new("aditd was not replaced").caused_by(why));
    }
    if json {
        json::answer(Replaced { before: (&before).into(), now: (&now).into() })?;
    }
    say(format!(
        "aditd {} (pid {}) has replaced aditd {} (pid {}), which ends when the answers that run there have ended.",
        now.version, now.pid, before.version, before.pid
    ));
    Ok(())
}

async fn ask(dir: &Path, request: &Request) -> Result<Replacement, Failure> {
    match control::ask(dir, request).await {
        Ok(Some(Answer::Replacement(replacement))) => Ok(replacement),
        Ok(Some(Answer::Failed(why))) => Err(why),
        Ok(Some(_)) => Err(running::of_another_version()),
        Ok(None) => {
            let what = format!("aditd is not running on the state in `{}`", dir.display());
            let start = format!("start it with `{}`", started::command(dir));
            Err(state::not_there(what, start, dir))
        }
        Err(e) => Err(Failure::from(e)
            .hint("if the running aditd is older than this command: restart it, which ends running answers")),
    }
}

/// The path by which this program was started, so that the new process is called the same; a link
/// on the way stays one, and the next upgrade changes it.
fn this_program() -> Result<PathBuf, Failure> {
    let failed = |e| Failure::new("cannot find the path of this program").source(e);
    let named = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if named.components().count() > 1 {
        return std::path::absolute(named).map_err(failed);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(&named)).find(|file| file.is_file());
    match found.filter(|_| !named.as_os_str().is_empty()) {
        Some(found) => std::path::absolute(found).map_err(failed),
        None => env::current_exe().map_err(failed),
    }
}
