//! The code with which people sign in on this device. It has a file of its own: `adit enroll --sso`
//! keeps a new one while a running `adit up` has the profile, which would write the older one again.

use common::machine::files::{self, FileError};

use super::ProfileDir;

const FILE: &str = "sign-in-code";

impl ProfileDir {
    /// The code that was kept last. A file that cannot be used counts as none: a code is soon made.
    pub(super) fn kept_sign_in_code(&self) -> Option<String> {
        let text = files::read_to_string(&self.dir.join(FILE)).ok()?;
        Some(text.trim().to_owned()).filter(|code| !code.is_empty())
    }

    /// Keeps this code in place of any other; with `None`, keeps none.
    ///
    /// # Errors
    /// The file can't be changed.
    pub(crate) fn keep_sign_in_code(&self, code: Option<&str>) -> Result<(), FileError> {
        let path = self.dir.join(FILE);
        match code {
            Some(code) => files::replace(&path, code.as_bytes()),
            None => match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(FileError::io("remove", path)(e))
                }
                _ => Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_that_was_kept_last_is_found_until_none_is_kept() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = ProfileDir::new(&tmp.path().join("state"), "default".parse().expect("a name"));
        assert_eq!(dir.kept_sign_in_code(), None);
        dir.prepare().expect("made");
        for kept in [Some("aditfirst"), Some("aditsecond"), None, None] {
            dir.keep_sign_in_code(kept).expect("kept");
            assert_eq!(dir.kept_sign_in_code().as_deref(), kept);
        }
    }
}
