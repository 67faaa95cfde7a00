//! `aditd backup` and `aditd restore`.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use age::secrecy::SecretString;
use clap::Args;
use common::machine::{
    ask,
    files::{self, FileError},
    json,
    owner::become_owner_of,
    process::day,
    report::{Exit, Failure, say},
};
use proto::human;
use serde::Serialize;

use crate::{
    config::Flags,
    state::{
        self,
        backup::{Backup, LONGEST},
    },
};

/// Flags of `backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupFlags {
    /// The new file
    file: PathBuf,
    /// Put the server's keys into it too, encrypted with a passphrase: with them, and the
    /// passphrase, anybody can be this server
    #[arg(long)]
    with_ca_key: bool,
    /// Read the passphrase from this file [default: ask at the terminal]
    #[arg(long, value_name = "FILE", requires = "with_ca_key")]
    passphrase_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreFlags {
    /// A file that `aditd backup` has made
    file: PathBuf,
    /// Replace the state that is there; revocations that its register knows are kept
    #[arg(long)]
    replace: bool,
    /// Read the passphrase from this file [default: ask at the terminal]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A backup that was made.
#[derive(Serialize)]
struct Made<'a> {
    file: &'a Path,
    /// Whether the server's keys are in it.
    has_keys: bool,
}

/// A state that a backup has become. Times are Unix seconds.
#[derive(Serialize)]
struct Restored<'a> {
    state_dir: &'a Path,
    /// When the backup was made.
    made: i64,
    devices: usize,
    /// How many of them are held back until they are confirmed.
    to_confirm: usize,
}

/// Makes a backup.
pub(crate) async fn make(flags: &Flags, backup: BackupFlags) -> Result<(), Failure> {
    let dir = flags.state_dir()?;
    state::must_exist(&dir)?;
    let passphrase = match backup.with_ca_key {
        true => Some(new_passphrase(backup.passphrase_file.as_deref()).await?),
        false => None,
    };
    // Opened with the rights of the person, who may be root; the state is read with its owner's.
    let path = &backup.file;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(
        |e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::new(format!("there is a file `{}` already", path.display()))
                    .hint("choose another name: a backup replaces no file")
                    .exit(Exit::Usage)
            }
            _ => FileError::io("create", path)(e).into(),
        },
    )?;
    let made = become_owner_of(&dir)
        .map_err(Failure::from)
        .and_then(|()| Backup::make(&dir, passphrase.as_ref()))
        .and_then(|made| made.to_bytes())
        .and_then(|bytes| write(&mut file, path, &bytes));
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made?;
    if backup.json {
        json::answer(Made { file: path, has_keys: backup.with_ca_key })?;
    }
    say(format!(
        "The backup is in `{}`{}.",
        path.display(),
        if backup.with_ca_key {
            ", with the server's keys: without the passphrase they can't be read"
        } else {
            ". It has no keys: it can be restored where this server's keys are"
        }
    ));
    Ok(())
}

/// Puts a backup back.
pub(crate) async fn restore(flags: &Flags, restore: RestoreFlags) -> Result<(), Failure> {
    let dir = flags.state_dir()?;
    let backup = Backup::from_bytes(&read(&restore.file)?)?;
    let file = restore.passphrase_file.as_deref().filter(|_| backup.has_keys());
    // Read with the rights of the user who named it.
    let named = file.map(from_file).transpose()?;
    if dir.exists() {
        become_owner_of(&dir)?;
        // Before a person types the passphrase.
        backup.may_be_put(&dir, restore.replace)?;
    }
    let passphrase = match named {
        None if backup.has_keys() => Some(asked("Passphrase of the backup: ").await?),
        named => named,
    };
    let restored = backup.restore(&dir, passphrase.as_ref(), restore.replace)?;
    if restore.json {
        let (devices, to_confirm) = (restored.devices, restored.held);
        json::answer(Restored { state_dir: &dir, made: backup.made, devices, to_confirm })?;
    }
    say(format!(
        "Restored {} from the backup of {}.",
        human::count(restored.devices as u64, "device"),
        day(backup.made)
    ));
    if restored.held > 0 {
        say(common::machine::report::typed(format!(
            "{} held back, because nobody knows what was revoked since: look at `aditd device list`, then `aditd device confirm NAME` for each that should be let in, or `aditd device confirm --all`. Keys for programs have ended: make new ones.",
            match restored.held {
                1 => "1 device is".to_owned(),
                held => format!("{held} devices are"),
            }
        )));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut bytes))
        .map_err(FileError::io("read", path))?;
    Ok(bytes)
}

fn write(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| FileError::io("write", path)(e).into())
}

async fn new_passphrase(file: Option<&Path>) -> Result<SecretString, Failure> {
    if let Some(file) = file {
        return from_file(file);
    }
    use age::secrecy::ExposeSecret;
    let first = asked("New passphrase for the backup: ").await?;
    let again = asked("The same passphrase again: ").await?;
    if first.expose_secret() == again.expose_secret() {
        Ok(first)
    } else {
        Err(Failure::new("the two passphrases differ: nothing was written"))
    }
}

async fn asked(prompt: &str) -> Result<SecretString, Failure> {
    let answer = ask::secret(prompt).await.filter(|answer| !answer.is_empty());
    answer.map(|answer| SecretString::from(answer.as_str().to_owned())).ok_or_else(|| {
        Failure::new("the backup needs a passphrase, and none was typed")
            .hint("run it at a terminal, or name a file that only you can read: `--passphrase-file FILE`")
            .exit(Exit::Usage)
    })
}

fn from_file(path: &Path) -> Result<SecretString, Failure> {
    let mut text = files::read_to_string(path)?;
    let len = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(len);
    if text.is_empty() {
        return Err(Failure::new(format!("there is no passphrase in `{}`", path.display()))
            .exit(Exit::Usage));
    }
    Ok(SecretString::from(std::mem::take(&mut *text)))
}
