//! The aditd that is uploaded to a box: which file, and what it is.

use std::path::{Path, PathBuf};

use common::machine::report::{Exit, Failure};
use data_encoding::HEXLOWER;
use proto::{
    bootstrap::{Binary, Machine},
    crypto::sha256,
};

/// The longest program that is uploaded, in bytes.
const LONGEST: u64 = 512 << 20;

/// A program for a box, in memory.
pub(in crate::commands) struct Program {
    pub(in crate::commands) binary: Binary,
    pub(in crate::commands) bytes: Vec<u8>,
}

impl Program {
    /// Reads the program that is named, or the one beside this adit. The inner error says why there is
    /// none, for a box that needs none.
    ///
    /// # Errors
    /// If the named one cannot be read, or is no program for Linux.
    pub(in crate::commands) fn find(named: Option<&Path>) -> Result<Result<Self, String>, Failure> {
        if let Some(file) = named {
            return Self::read(file).map(Ok).map_err(|why| {
                Failure::new(format!("cannot upload `{}`", file.display()))
                    .source(why)
                    .hint("name an aditd for Linux on the box's kind of machine: `--server-binary FILE`")
                    .exit(Exit::Usage)
            });
        }
        let beside = match std::env::current_exe() {
            Ok(this) => this.with_file_name("aditd"),
            Err(_) => PathBuf::from("aditd"),
        };
        let shown = beside.display();
        Ok(match Self::read(&beside) {
            Ok(program) => Ok(program),
            Err(why) if !beside.exists() => {
                tracing::debug!("{why}");
                Err(format!("there is no aditd to upload: no `{shown}` beside adit"))
            }
            Err(why) => Err(format!("cannot upload `{shown}`: {why}")),
        })
    }

    fn read(file: &Path) -> Result<Self, String> {
        let len = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
        if len > LONGEST {
            return Err(format!("it is longer than {LONGEST} bytes"));
        }
        let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
        let machine = Machine::of_program(&bytes)
            .ok_or_else(|| "it is no program for Linux (it has no ELF header)".to_owned())?;
        let binary = Binary {
            file: file.display().to_string(),
            machine,
            len: bytes.len() as u64,
            sha256: HEXLOWER.encode(&sha256(&bytes)),
        };
        Ok(Self { binary, bytes })
    }
}
