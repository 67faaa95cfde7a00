//! The ways that are compared, each in a lab of its own.

use std::{net::SocketAddr, time::Duration};

use tests::{
    lab::{Asked, Carrier, Far, Lab, Link, Setting},
    ollama::Ollama,
    raw,
};
use tokio::{process::Child, task::JoinSet};

use crate::plain::Plain;

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
const WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    AditUdp,
    /// Tokens beside an upload that fills the link.
    AditUdpUpload,
    AditSsh,
    PlainQuic,
    SshForward,
}

impl Way {
    pub(crate) const ALL: [Self; 5] =
        [Self::AditUdp, Self::AditUdpUpload, Self::AditSsh, Self::PlainQuic, Self::SshForward];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AditUdp => "adit, udp",
            Self::AditUdpUpload => "adit, udp, upload",
            Self::AditSsh => "adit, ssh",
            Self::PlainQuic => "plain quic",
            Self::SshForward => "ssh -L",
        }
    }
}

pub(crate) struct Open {
    address: SocketAddr,
    _plain: Option<Plain>,
    _ssh: Option<Child>,
    _upload: Option<JoinSet<()>>,
    far: Far,
}

impl Open {
    /// Opens a way; `None` if that fails on this link.
    pub(crate) async fn new(link: Link, way: Way, seed: u64) -> Option<Self> {
        let carrier = if matches!(way, Way::AditUdp | Way::AditUdpUpload | Way::PlainQuic) {
            Carrier::Udp
        } else {
            Carrier::Ssh
        };
        let far = Far::start(PROGRAM, Setting { link, seed, carrier, ..Setting::default() }).await;
        let (mut plain, mut ssh, mut upload) = (None, None, None);
        let address = match way {
            Way::AditUdp | Way::AditSsh => far.up.address,
            Way::AditUdpUpload => {
                upload = Some(far.upload().await);
                far.up.address
            }
            Way::PlainQuic => {
                plain.insert(Plain::open(&far.lab, far.world.ollama.addr()).await).address
            }
            Way::SshForward => {
                let (address, child) = forward(&far)?;
                ssh = Some(child);
                address
            }
        };
        let open = Self { address, _plain: plain, _ssh: ssh, _upload: upload, far };
        let answers = async {
            while open.far.lab.client.within(tokio::net::TcpStream::connect(address)).await.is_err()
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(WITHIN, answers).await.ok().map(|()| open)
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.far.lab
    }

    pub(crate) fn ollama(&self) -> &Ollama {
        &self.far.world.ollama
    }

    pub(crate) async fn ask(&self, tokens: i64) -> Asked {
        let tcp = self.far.lab.client.within(raw::connect(self.address)).await;
        Asked::on(tcp, raw::generate(tokens, 1).into_bytes())
    }
}

/// `ssh -L` to the lab's sshd, as a person would type it.
fn forward(far: &Far) -> Option<(SocketAddr, Child)> {
    let sshd = far.sshd.as_ref()?;
    let here = SocketAddr::from(([127, 0, 0, 1], 11_500));
    let ssh = far.lab.client.inside(|| sshd.forward(here, far.world.ollama.addr(), None));
    Some((here, ssh.ok()?))
}
