//! The files of each CA in the state directory.

use std::{fs, path::Path};

use common::machine::files::FileError;
use proto::rotation::{CaFilesFound, CaNumber, FIRST_CA};

/// The names of the files of one CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaFiles {
    /// Its private key. It is removed when the CA retires.
    pub(crate) key: String,
    pub(crate) certificate: String,
    /// The server's key, and its certificate of this CA.
    pub(crate) server_key: String,
    pub(crate) server_certificate: String,
    /// The secret from which the knock keys are derived that go with this CA; `None` for the first
    /// one, whose knock keys are derived from another secret.
    pub(crate) knocks: Option<String>,
}

impl CaFiles {
    /// The names for the CA with this number. Those of the first one have none: it was there before
    /// there could be several.
    pub(crate) fn of(number: CaNumber) -> Self {
        let name = |stem: &str, ending: &str| match number {
            FIRST_CA => format!("{stem}.{ending}"),
            number => format!("{stem}-{number}.{ending}"),
        };
        Self {
            key: name("ca", "key"),
            certificate: name("ca", "crt"),
            server_key: name("server", "key"),
            server_certificate: name("server", "crt"),
            knocks: (number != FIRST_CA).then(|| name("knocks", "key")),
        }
    }

    /// All names, in the order in which the files are made: what makes a CA complete comes last.
    pub(crate) fn all(&self) -> Vec<&str> {
        let names = [&self.key, &self.certificate, &self.server_key, &self.server_certificate];
        self.knocks.iter().chain(names).map(String::as_str).collect()
    }

    /// Removes the files that are there.
    pub(crate) fn remove(&self, dir: &Path) -> Result<(), FileError> {
        // The last one that was made comes first: a CA without it has never been in force.
        self.all().into_iter().rev().try_for_each(|name| remove(&dir.join(name)))
    }
}

/// The CAs whose files are in `dir`, oldest first. Any file in a directory could have such a name, so
/// only those count that have a certificate.
pub(crate) fn found(dir: &Path) -> Vec<CaFilesFound> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| {
        let name = entry.file_name();
        let middle = name.to_str()?.strip_prefix("ca")?.strip_suffix(".crt")?;
        let number = match middle {
            "" => FIRST_CA,
            numbered => numbered.strip_prefix('-')?.parse().ok()?,
        };
        // `ca-02.crt` is no name of ours.
        (number >= FIRST_CA && CaFiles::of(number).certificate == name.to_str()?).then_some(number)
    });
    let mut all: Vec<_> = numbers
        .map(|number| {
            let files = CaFiles::of(number);
            let is_there = |name: &str| dir.join(name).exists();
            CaFilesFound {
                number,
                has_key: is_there(&files.key),
                was_in_force: is_there(&files.server_certificate)
                    && files.knocks.as_deref().is_none_or(is_there),
            }
        })
        .collect();
    all.sort_by_key(|found| found.number);
    all
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(FileError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cas_in_a_directory_are_found_by_their_files() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in [
            "ca.crt",
            "server.crt",
            "ca-2.key",
            "ca-2.crt",
            "knocks-2.key",
            "server-2.crt",
            "ca-11.key",
            "ca-11.crt",
            "server-11.crt",
            "ca-3.key",
            "ca-04.crt",
            "ca-x.crt",
            "cab.crt",
            "ca-0.crt",
            "ca-1.crt",
        ] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        let file = |number, has_key, was_in_force| CaFilesFound { number, has_key, was_in_force };
        let all = [file(1, false, true), file(2, true, true), file(11, true, false)];
        assert_eq!(found(dir.path()), all);
        CaFiles::of(2).remove(dir.path()).expect("removed");
        CaFiles::of(2).remove(dir.path()).expect("they are not there");
        assert_eq!(found(dir.path()).iter().map(|found| found.number).collect::<Vec<_>>(), [1, 11]);
        assert_eq!(CaFiles::of(FIRST_CA).all(), ["ca.key", "ca.crt", "server.key", "server.crt"]);
        assert_eq!(CaFiles::of(7).all()[0], "knocks-7.key");
    }
}
