//! What systemd is told of this process (sd_notify(3)). The socket is connected once, at the start: a
//! server in its sandbox can connect to none.

use std::{
    ffi::OsStr,
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
    sync::OnceLock,
};

use sd_notify::NotifyState;

static SOCKET: OnceLock<UnixDatagram> = OnceLock::new();

/// Connects to systemd, if it has started this process and wants to be told.
pub(super) fn open() {
    let Some(at) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let connected = || {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address(&at)?)?;
        Ok::<_, io::Error>(socket)
    };
    match connected() {
        Ok(socket) => drop(SOCKET.set(socket)),
        Err(e) => tracing::warn!("cannot tell systemd how this process stands: {e}"),
    }
}

fn address(at: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = at.as_encoded_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(at)
}

/// Tells it.
pub(super) fn tell(state: &NotifyState<'_>) {
    if let Some(socket) = SOCKET.get() {
        let _ = socket.send(format!("{state}\n").as_bytes());
    }
}
