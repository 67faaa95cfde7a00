//! A PKCS#11 token in software: SoftHSM2 of Debian, with tokens in a directory of the test; and the
//! library of OpenSC that writes down each call.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{skip::skip_test, state_files::chmod, world::Device};

/// The PIN of every token.
pub const PIN: &str = "24681357";
/// The library, on Debian and Fedora.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
];
/// The library that writes down each call, beside `pkcs11-tool`.
const SPY: &str = "pkcs11-spy.so";

/// Tokens, and the file with their PIN.
pub struct SoftTokens {
    dir: PathBuf,
    library: &'static str,
}

impl SoftTokens {
    /// Makes a directory for tokens, and one token with this label. `None`, and the test says that it
    /// is skipped, without SoftHSM2 or `pkcs11-tool`.
    ///
    /// # Panics
    /// If the token cannot be made.
    pub fn start(dir: PathBuf, label: &str) -> Option<Self> {
        let library = LIBRARIES.into_iter().find(|path| Path::new(path).exists());
        let runs = |program: &str| {
            let mut command = Command::new(program);
            command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok()
        };
        let Some(library) = library.filter(|_| runs("softhsm2-util") && runs("pkcs11-tool")) else {
            skip_test("there is no SoftHSM2 (Debian: softhsm2) with `pkcs11-tool` (opensc)");
            return None;
        };
        let tokens = Self { dir, library };
        std::fs::create_dir_all(tokens.dir.join("tokens")).expect("a directory");
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.dir.join("tokens").display()
        );
        std::fs::write(tokens.configuration(), conf).expect("written");
        tokens.write_pin(PIN);
        tokens.add(label);
        Some(tokens)
    }

    /// Makes another token.
    ///
    /// # Panics
    /// If that fails.
    pub fn add(&self, label: &str) {
        let mut made = Command::new("softhsm2-util");
        made.args(["--init-token", "--free", "--label", label, "--so-pin", "12345678"]);
        let made = made.args(["--pin", PIN]).env("SOFTHSM2_CONF", self.configuration()).output();
        let made = made.expect("softhsm2-util runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// The device with these tokens.
    pub fn plugged_into(&self, device: Device) -> Device {
        let (name, value) = self.variable();
        device.with_variable(&name, &value)
    }

    /// What says to programs where the tokens are.
    ///
    /// # Panics
    /// If the path is not UTF-8.
    pub fn variable(&self) -> (String, String) {
        let configuration = self.configuration();
        ("SOFTHSM2_CONF".to_owned(), configuration.to_str().expect("a path").to_owned())
    }

    /// The URI of a token's key, with the file of the PIN.
    pub fn uri(&self, token: &str) -> String {
        format!("{}&pin-source=file:{}", self.uri_without_pin(token), self.pin_file().display())
    }

    /// The same without that file.
    pub fn uri_without_pin(&self, token: &str) -> String {
        format!("pkcs11:token={token}?module-path={}", self.library)
    }

    /// The same through the library that writes down each call, and the device whose calls are written
    /// to the file [`SoftTokens::calls`].
    ///
    /// # Panics
    /// Without that library.
    pub fn spied(&self, token: &str, device: Device) -> (String, Device) {
        let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
        let spy = places.iter().map(|dir| Path::new(dir).join(SPY)).find(|path| path.exists());
        let spy = spy.expect("pkcs11-spy.so, which comes with pkcs11-tool");
        let calls = self.dir.join("calls");
        let device = device
            .with_variable("PKCS11SPY", self.library)
            .with_variable("PKCS11SPY_OUTPUT", calls.to_str().expect("a path"));
        (self.uri(token).replace(self.library, spy.to_str().expect("a path")), device)
    }

    /// How often a function of the library was called.
    pub fn calls(&self, function: &str) -> usize {
        let calls = std::fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.ends_with(&format!(": {function}"))).count()
    }

    /// Makes the library that writes down each call hang as soon as it is loaded: nobody reads from the
    /// pipe to which it writes.
    ///
    /// # Panics
    /// If the pipe cannot be made.
    pub fn hang_spied(&self) {
        let calls = self.dir.join("calls");
        let _ = std::fs::remove_file(&calls);
        let made = Command::new("mkfifo").arg(&calls).status().expect("mkfifo runs");
        assert!(made.success(), "a pipe");
    }

    /// Lets those that hang go on, and all that come later.
    ///
    /// # Panics
    /// If the pipe cannot be read.
    pub fn go_on_spied(&self) {
        // With a writer of its own it neither waits for the first one nor ends with the last one.
        let pipe = OpenOptions::new().read(true).write(true).open(self.dir.join("calls"));
        let mut pipe = pipe.expect("the pipe");
        std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
    }

    /// Writes this PIN into the file that the URI names.
    ///
    /// # Panics
    /// If that fails.
    pub fn write_pin(&self, pin: &str) {
        std::fs::write(self.pin_file(), format!("{pin}\n")).expect("written");
        chmod(&self.pin_file(), 0o600);
    }

    /// The file with the PIN.
    pub fn pin_file(&self) -> PathBuf {
        self.dir.join("pin")
    }

    /// Takes all tokens out, or puts them in again.
    ///
    /// # Panics
    /// If that fails.
    pub fn plug(&self, is_in: bool) {
        let (there, away) = (self.dir.join("tokens"), self.dir.join("away"));
        if is_in {
            std::fs::remove_dir(&there).expect("an empty place");
            std::fs::rename(away, there).expect("put in");
        } else {
            std::fs::rename(&there, away).expect("taken out");
            std::fs::create_dir(there).expect("an empty place");
        }
    }

    /// Runs `pkcs11-tool` at a token, logged in, and returns its output.
    ///
    /// # Panics
    /// If it fails.
    pub fn tool(&self, token: &str, args: &[&str]) -> String {
        let mut tool = Command::new("pkcs11-tool");
        tool.args(["--module", self.library, "--token-label", token, "--login", "--pin", PIN]);
        let out = tool.args(args).env("SOFTHSM2_CONF", self.configuration()).output();
        let out = out.expect("pkcs11-tool runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
        text
    }

    fn configuration(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }
}
