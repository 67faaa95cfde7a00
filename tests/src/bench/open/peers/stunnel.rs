//! stunnel: TLS with certificates on both sides.

use std::{io, net::SocketAddr};

use tempfile::TempDir;

use super::{Running, at_client, at_server, program, running, write};
use crate::bench::net::Net;

pub(super) async fn open(net: &Net, dir: TempDir, upstream: SocketAddr) -> io::Result<Running> {
    let (there, here) = (net.free_at_server()?, net.free_at_client()?);
    let d = dir.path().display();
    for (name, other) in [("server", "client"), ("client", "server")] {
        let made =
            rcgen::generate_simple_self_signed([name.to_owned()]).map_err(io::Error::other)?;
        write(&dir.path().join(format!("{name}.crt")), &made.cert.pem())?;
        write(&dir.path().join(format!("{name}.key")), &made.signing_key.serialize_pem())?;
        let (role, accept, connect) = match name {
            "server" => ("no", there, upstream),
            _ => ("yes", here, there),
        };
        let config = format!(
            "foreground = yes\npid =\ndebug = err\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n[bench]\nclient = {role}\naccept = {accept}\nconnect = {connect}\n\
             cert = {d}/{name}.crt\nkey = {d}/{name}.key\nCAfile = {d}/{other}.crt\nverifyPeer = yes\nsslVersion = TLSv1.3\n"
        );
        write(&dir.path().join(format!("{name}.conf")), &config)?;
    }
    let start = |name: &str| program("stunnel", &[&format!("{d}/{name}.conf")]);
    let server = at_server(net, start("server")).await?;
    let client = at_client(net, start("client")).await?;
    Ok(running(here, [server, client], dir))
}
