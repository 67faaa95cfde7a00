//! Completions: a script for a shell, which asks the program itself what can follow. So it completes
//! what the program finds on this machine too: names of servers, devices and models.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Command, ValueEnum};
use clap_complete::{
    engine::{ArgValueCandidates, CompletionCandidate},
    env::{Bash, CompleteEnv, EnvCompleter, Fish, Zsh},
};

use crate::machine::report::{Failure, data};

/// Set by the script: the shell that asks.
const ASKS: &str = "ADIT_COMPLETE";

/// The flags of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    /// Prints the script that teaches the shell to complete `program`.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn print(&self, program: &str) -> Result<(), Failure> {
        let script = self.script(program);
        data(script.map_err(|e| Failure::new("cannot write the script").source(e))?.trim_end())
    }

    fn script(&self, program: &str) -> io::Result<String> {
        let shell: &dyn EnvCompleter = match self.shell {
            Shell::Bash => &Bash,
            Shell::Zsh => &Zsh,
            Shell::Fish => &Fish,
        };
        let mut script = Vec::new();
        shell.write_registration(ASKS, program, program, program, &mut script)?;
        Ok(String::from_utf8_lossy(&script).into_owned())
    }
}

/// Answers the script of a shell, if it is that which runs this program. `args` are the program's own,
/// its name first.
pub fn answer(command: fn() -> Command, args: &[OsString]) -> Option<ExitCode> {
    std::env::var_os(ASKS)?;
    let here = std::env::current_dir().ok();
    match CompleteEnv::with_factory(command).var(ASKS).try_complete(args, here.as_deref()) {
        Ok(true) => Some(ExitCode::SUCCESS),
        Ok(false) => None,
        Err(e) => {
            let _ = e.print();
            Some(ExitCode::from(2))
        }
    }
}

/// Completes the argument `id` of `command`, if it has one, with what `find` finds when it is asked.
#[must_use]
pub fn complete(
    command: Command,
    id: &str,
    find: impl Fn() -> Vec<String> + Send + Sync + 'static,
) -> Command {
    if !command.get_arguments().any(|arg| arg.get_id() == id) {
        return command;
    }
    let find = move || find().into_iter().map(CompletionCandidate::new).collect::<Vec<_>>();
    command.mut_arg(id, |arg| arg.add(ArgValueCandidates::new(find)))
}

/// The directory behind the flag `flag` on the command line that is being completed, if it is there.
pub fn named_dir(flag: &str) -> Option<PathBuf> {
    named(flag, std::env::args_os().skip_while(|arg| arg != "--").skip(1))
}

fn named(flag: &str, mut words: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    while let Some(word) = words.next() {
        if word == flag {
            return words.next().map(PathBuf::from);
        }
        let joined = word.to_str().and_then(|word| word.strip_prefix(flag)?.strip_prefix('='));
        if let Some(dir) = joined {
            return Some(PathBuf::from(OsStr::new(dir)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_that_is_named_is_the_one_that_is_asked() {
        for (line, dir) in [
            ("adit --state-dir /a up", Some("/a")),
            ("adit up --state-dir=/a b", Some("/a")),
            ("adit up --state-directory /a", None),
            ("adit up --state-dir", None),
            ("adit up", None),
        ] {
            let words = line.split(' ').map(OsString::from);
            assert_eq!(named("--state-dir", words), dir.map(PathBuf::from), "{line}");
        }
    }
}
