//! How `doctor` ends: the report for people or programs, and the file for a bug report.

use std::path::{Path, PathBuf};

use proto::doctor::{Report, bundle::Bundle};
use serde::Serialize;

use crate::machine::{
    files, format,
    report::{Exit, Failure, data, data_in_colour, say, style},
};

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// JSON instead of text.
    pub json: bool,
    /// A file for a bug report, too.
    pub bundle: Option<PathBuf>,
}

/// The system, for a bug report.
#[derive(Debug, Serialize)]
struct System {
    program: String,
    version: String,
    system: String,
    release: String,
    machine: String,
}

impl Wanted {
    /// That no file would be overwritten: said before anything is looked at.
    ///
    /// # Errors
    /// Exit code 2, with another name.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.bundle {
            Some(path) if path.symlink_metadata().is_ok() => Err(exists(path)),
            _ => Ok(()),
        }
    }

    /// Shows `report`, and writes the file if one is wanted; `parts` go into it beside the report.
    /// `box_name` is what the box is called here, if it is another machine. Returns the exit code.
    ///
    /// # Errors
    /// When standard output or the file can't be written.
    pub fn show(
        &self,
        program: &str,
        report: &Report,
        box_name: Option<&str>,
        parts: impl FnOnce(&mut Bundle),
    ) -> Result<Option<Exit>, Failure> {
        if self.json {
            data(format::to_json(report)?)?;
        } else {
            data_in_colour(report.to_text(style(), box_name))?;
        }
        if let Some(path) = &self.bundle {
            let mut bundle = Bundle::default();
            bundle.add("report", "the lines above", report);
            bundle.add("system", "the operating system and the version", &System::of(program));
            parts(&mut bundle);
            write(path, &bundle)?;
        }
        Ok(report.exit())
    }
}

fn write(path: &Path, bundle: &Bundle) -> Result<(), Failure> {
    match files::create(path, bundle.to_json().as_bytes()) {
        Err(_) if path.symlink_metadata().is_ok() => return Err(exists(path)),
        written => written.map_err(|e| e.named_by("--bundle"))?,
    }
    let list = bundle.list().join("\n  ");
    say(format!(
        "Wrote `{}`, for you alone (mode 600). It holds:\n  {list}\n\
         It holds no keys, codes, prompts or answers. It names devices, addresses and models: look it over before you send it.",
        path.display()
    ));
    Ok(())
}

fn exists(path: &Path) -> Failure {
    Failure::new(format!("there is a file `{}` already", path.display()))
        .hint(format!("name another one: `--bundle '{}.new'`", path.display()))
        .exit(Exit::Usage)
}

impl System {
    fn of(program: &str) -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Self {
            program: program.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            system: text(uname.sysname()),
            release: text(uname.release()),
            machine: text(uname.machine()),
        }
    }
}
