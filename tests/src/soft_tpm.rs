//! A TPM 2.0 in software: swtpm of Debian, at a Unix socket of the test; and one whose signatures hang.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
};

use crate::{skip::skip_test, world::SOON};

/// A running one. Dropping it kills it.
pub struct SoftTpm {
    dir: PathBuf,
    process: Child,
}

impl Drop for SoftTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl SoftTpm {
    /// Starts a TPM whose state is in `dir`. `None`, and the test says that it is skipped, without
    /// swtpm.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(dir: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(dir.join("state")).expect("a directory");
        let Some(process) = run(&dir) else {
            skip_test("there is no swtpm (Debian: swtpm)");
            return None;
        };
        let tpm = Self { dir, process };
        let listens = async {
            while !tpm.socket().exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, listens).await.expect("swtpm listens");
        Some(tpm)
    }

    /// The value of `--key`.
    pub fn uri(&self) -> String {
        format!("tpm:{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }
}

/// A socket in front of a TPM. Commands for a signature wait there.
pub struct HangingTpm {
    socket: PathBuf,
    goes_on: watch::Sender<bool>,
}

/// TPM2_Sign (TPM 2.0 part 2 section 6.5.2).
const SIGN: [u8; 4] = [0, 0, 1, 0x5d];

impl HangingTpm {
    /// In front of `tpm`.
    ///
    /// # Panics
    /// If there can be no socket.
    pub fn before(tpm: &SoftTpm, socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (goes_on, released) = watch::channel(false);
        let to = tpm.socket();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                tokio::spawn(pass(from, to.clone(), released.clone()));
            }
        });
        Self { socket, goes_on }
    }

    /// The value of `--key`.
    pub fn uri(&self) -> String {
        format!("tpm:{}", self.socket.display())
    }

    /// Lets all commands pass from now on.
    pub fn go_on(&self) {
        self.goes_on.send_replace(true);
    }
}

async fn pass(
    mut from: UnixStream,
    to: PathBuf,
    mut released: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut to = UnixStream::connect(to).await?;
    loop {
        let command = message(&mut from).await?;
        if command[6..10] == SIGN && released.wait_for(|released| *released).await.is_err() {
            return Ok(());
        }
        to.write_all(&command).await?;
        from.write_all(&message(&mut to).await?).await?;
    }
}

/// A command or a response: a tag, the length of the whole, and a code stand before the rest.
async fn message(from: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 10];
    from.read_exact(&mut bytes).await?;
    let len = u32::from_be_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    bytes.resize(len as usize, 0);
    from.read_exact(&mut bytes[10..]).await?;
    Ok(bytes)
}

fn run(dir: &Path) -> Option<Child> {
    let mut swtpm = Command::new("swtpm");
    swtpm.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"]);
    swtpm.arg(format!("dir={}", dir.join("state").display()));
    swtpm.arg("--server").arg(format!("type=unixio,path={}", dir.join("socket").display()));
    swtpm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}
