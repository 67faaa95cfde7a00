//! Examines the files of the server: owners, modes, the certificate, and free disk space.

use std::path::{Path, PathBuf};

use common::machine::{files, process::unix_now};
use proto::{
    clock, doctor::gpu_box::Disk, failure::Failure, identity::Certificate, rotation::FIRST_CA,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{
    config::Config,
    state::ca::{self, CaFiles, files::found},
};

/// The files that only the server's user may read, besides those of the CAs.
const FILES: [&str; 4] = ["endpoint.json", "register.sqlite", "usage.json", "audit.jsonl"];
/// The free space that the state and the audit log need, in bytes.
const ENOUGH_FOR_STATE: u64 = 1 << 30;
/// The free space that another model needs, in bytes.
const ENOUGH_FOR_MODELS: u64 = 8 << 30;

/// What was found.
#[derive(Default)]
pub(super) struct FilesFound {
    /// Files of the state whose owner or mode is wrong.
    pub(super) wrong: Vec<Failure>,
    /// The time in Unix seconds; or why the clock can't be right.
    pub(super) clock: Option<Result<i64, Failure>>,
    /// The last second of the server's certificate, and the present time, in Unix seconds.
    pub(super) certificate: Option<(i64, i64)>,
    /// The file systems that must have free space.
    pub(super) disks: Vec<Disk>,
}

/// Examines the files of a server with these settings, on a thread where a slow disk delays no request.
/// `models` is the directory of Ollama's models, if it is known.
pub(super) async fn look(config: &Config, models: Option<PathBuf>) -> FilesFound {
    let (dir, audit) = (config.state_dir.clone(), config.accounting.audit.dir.clone());
    let look = move || {
        let now = unix_now();
        let cas: Vec<_> = found(&dir).iter().map(|ca| (CaFiles::of(ca.number), *ca)).collect();
        let newest = cas.iter().rev().find(|(_, ca)| ca.was_in_force);
        let own = newest.and_then(|(files, _)| certificate(&dir.join(&files.server_certificate)));
        let first = CaFiles::of(FIRST_CA);
        let later = cas.iter().filter(|(_, ca)| ca.number != FIRST_CA);
        let of_cas = later.flat_map(|(files, _)| files.all()).chain(first.all());
        let names = of_cas.chain(FILES).map(|name| dir.join(name));
        let all: Vec<_> = std::iter::once(dir.clone()).chain(names).collect();
        FilesFound {
            wrong: all
                .iter()
                .filter_map(|path| files::inspect(path).err().map(Failure::from))
                .collect(),
            clock: Some(clock_at(&dir, now)),
            certificate: own.map(|own| (own.not_after, now)),
            disks: disks(dir, audit, models),
        }
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// The time in Unix seconds; an error if it is earlier than the making of the CA.
fn clock_at(dir: &Path, now: i64) -> Result<i64, Failure> {
    let ca = certificate(&dir.join("ca.crt"));
    let earliest = ca.map_or(clock::RELEASED, |ca| ca.not_before.max(clock::RELEASED));
    ca::check_clock(earliest, now).map(|()| now).map_err(Failure::from)
}

/// The certificate in a file, if one can be read there.
fn certificate(path: &Path) -> Option<Certificate> {
    let pem = files::read(path).ok()?;
    Certificate::from_der(&CertificateDer::from_pem_slice(&pem).ok()?).ok()
}

fn disks(state: PathBuf, audit: PathBuf, models: Option<PathBuf>) -> Vec<Disk> {
    let is_apart = audit != state;
    let mut all = vec![("state", state, ENOUGH_FOR_STATE)];
    if is_apart {
        all.push(("audit log", audit, ENOUGH_FOR_STATE));
    }
    let models = models.into_iter().chain(models_dirs()).find(|path| path.is_dir());
    all.extend(models.map(|path| ("models", path, ENOUGH_FOR_MODELS)));
    let found = all.into_iter().filter_map(|(what, path, enough)| {
        // A directory that does not exist yet will be made on the disk of its parent.
        let path = path.ancestors().find(|path| path.exists())?.to_owned();
        let free = files::free_space(&path).ok()?;
        Some(Disk { what: what.to_owned(), path: path.display().to_string(), free, enough })
    });
    found.collect()
}

/// The default directories of Ollama's models: of the service, and of a program that the user
/// starts.
fn models_dirs() -> impl Iterator<Item = PathBuf> {
    let home = directories::BaseDirs::new().map(|dirs| dirs.home_dir().join(".ollama/models"));
    std::iter::once(PathBuf::from("/usr/share/ollama/.ollama/models")).chain(home)
}
