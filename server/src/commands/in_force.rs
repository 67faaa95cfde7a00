//! Puts a change of the register in force: the running server is told of it.

use std::path::Path;

use common::machine::{
    control,
    report::{Exit, Failure},
};

use crate::{
    running::{Answer, Request},
    state::State,
};

/// Makes the running server apply the register now: access that was removed ends at once. Returns how
/// many sessions it has cut; 0 if no server runs.
pub(crate) async fn in_force(state: &State) -> Result<usize, Failure> {
    in_force_after(state, "the register is changed").await
}

/// As [`in_force`]; `what` has been done, for people.
pub(super) async fn in_force_after(state: &State, what: &str) -> Result<usize, Failure> {
    refresh(&state.dir)
        .await
        .map_err(|why| not_told(&format!("{what}, but the running server could not be told"), why))
}

/// How to cut everybody off when the register cannot be read or written. A restart would not do
/// it: a server that cannot read its register continues with what it knows, or does not start.
const STOP: &str = "to cut every device off now: `sudo systemctl stop aditd` if it is a service, else `pkill -x aditd`";

pub(crate) fn not_cut(error: impl Into<Failure>) -> Failure {
    error.into().hint(STOP)
}

/// As [`refresh`], after this `kind` of thing was revoked.
pub(super) async fn refresh_after_revoking(dir: &Path, kind: &str) -> Result<usize, Failure> {
    refresh(dir).await.map_err(|why| {
        let what = format!(
            "the {kind} is revoked in the register, but the running server could not be told"
        );
        not_told(&what, why)
    })
}

/// Makes the running server apply the register now. Returns how many sessions it has cut; 0 if no
/// server runs.
async fn refresh(dir: &Path) -> Result<usize, Failure> {
    match control::ask(dir, &Request::Refresh).await? {
        None => Ok(0),
        Some(Answer::Refreshed { cut }) => Ok(cut),
        Some(Answer::Failed(why)) => Err(why),
        Some(_) => Err(Failure::new("the server gave an unexpected answer")),
    }
}

/// The error when the register is changed, but the running server may not know it yet.
fn not_told(what: &str, why: Failure) -> Failure {
    let hint = "the server also reads the register by itself, four times a second, if it can";
    // The hints of the server are for its own log; this command has done its part.
    Failure::new(what).caused_by(why.without_hints()).hint(hint).hint(STOP).exit(Exit::Failed)
}
