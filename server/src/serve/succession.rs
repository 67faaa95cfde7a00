//! How one process of the server replaces another, and no running answer is lost.
//!
//! The running process starts the new one, with a socket as its standard input, and gives it copies
//! of everything that it has open: the UDP sockets, the listeners, the state's lock and the control
//! socket. The new process makes itself ready and says so. Until then nothing has changed, and a new
//! process that fails is only a failed order. Then the old one stops reading its sockets and says
//! `Go`; from there on the new one reads them, and hands the datagrams of the old one's connections
//! on to it. The old one tells its devices, which begin sessions in the new one over the same path,
//! and ends when its last answer has.

mod give;
mod take;

use std::{io, net::SocketAddr};

use common::{machine::report::Failure, transport::frame};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

pub(super) use self::{
    give::{Estate, Heir},
    take::Taken,
};
use crate::{ingress::admission::connection_ids::Generation, limits::Usage};

/// The flag by which the new process knows that it takes over.
pub(crate) const TAKE_OVER: &str = "--take-over";
/// The longest message between the two, in bytes: the usage of thousands of devices.
const MAX_MESSAGE: usize = 16 << 20;

/// What the running process gives. The files follow in this order: the control socket and the lock;
/// the UDP sockets; the relays' listeners; those of HTTPS; that of the metrics, if there is one; for each older
/// process its link, and for each UDP socket the way to it; last the ways to the giver.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    version: String,
    pid: u32,
    generation: Generation,
    /// The addresses to listen on, as they are configured.
    listen: Vec<SocketAddr>,
    /// How many UDP sockets there are.
    sockets: usize,
    /// Where each relay carries datagrams to.
    relays: Vec<SocketAddr>,
    /// The addresses of HTTPS, as they are configured, and how many listeners there are.
    #[serde(default)]
    https: (Vec<SocketAddr>, usize),
    /// The address of the metrics, as it is configured.
    metrics: Option<String>,
    older: Vec<OlderOffer>,
    /// How many files follow.
    files: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct OlderOffer {
    generation: Generation,
    pid: u32,
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Everything that can fail is done.
    Ready,
    /// It cannot replace the running process.
    Failed(Failure),
    /// It serves.
    Serving,
}

/// The last message of the running process: from now on the sockets and the usage are the other's.
#[derive(Debug, Serialize, Deserialize)]
struct Go {
    usage: Usage,
}

async fn say(to: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    frame::write(to, message).await
}

async fn hear<T: DeserializeOwned>(from: &mut UnixStream) -> io::Result<T> {
    frame::read_long(from, MAX_MESSAGE).await
}
