//! A plain forwarder over QUIC for comparison: one stream per connection, a keep-alive of 5 s, and
//! quinn's defaults.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use tests::lab::{Lab, Namespace, SERVER};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const NAME: &str = "plain";
const PORT: u16 = 11_600;
const IDLE: Duration = Duration::from_secs(30 * 60);

/// Both ends. Dropping it ends them.
pub(crate) struct Plain {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Plain {
    /// Connects the two networks of a lab; `upstream` is in the server's network.
    pub(crate) async fn open(lab: &Lab, upstream: SocketAddr) -> Self {
        let cert = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        let der = cert.cert.der().clone();
        let key = rustls::pki_types::PrivateKeyDer::try_from(cert.signing_key.serialize_der())
            .expect("a key");
        let mut server =
            ServerConfig::with_single_cert(vec![der.clone()], key).expect("a configuration");
        server.transport_config(transport());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der).expect("a root");
        let mut client =
            ClientConfig::with_root_certificates(Arc::new(roots)).expect("a configuration");
        client.transport_config(transport());

        let mut tasks = JoinSet::new();
        let far = endpoint(&lab.server, SocketAddr::from((SERVER, PORT)), Some(server));
        tasks.spawn(serve(far, lab.server.clone(), upstream));
        let near = endpoint(&lab.client, SocketAddr::from(([0, 0, 0, 0], 0)), None);
        let to = SocketAddr::from((SERVER, PORT));
        let connection = loop {
            match near.connect_with(client.clone(), to, NAME).expect("a configuration").await {
                Ok(connection) => break connection,
                Err(e) => println!("plain quic: {e}"),
            }
        };
        let listener = lab.client.within(TcpListener::bind("127.0.0.1:0")).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tasks.spawn(listen(listener, connection, near));
        Self { address, _tasks: tasks }
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let idle = VarInt::from_u32(IDLE.as_millis() as u32);
    transport.max_idle_timeout(Some(idle.into())).keep_alive_interval(Some(Duration::from_secs(5)));
    Arc::new(transport)
}

fn endpoint(at: &Namespace, address: SocketAddr, server: Option<ServerConfig>) -> Endpoint {
    let socket = at.inside(|| std::net::UdpSocket::bind(address)).expect("a port");
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime))
        .expect("an endpoint")
}

async fn listen(listener: TcpListener, connection: Connection, _endpoint: Endpoint) {
    let mut running = JoinSet::new();
    while let Ok((mut tcp, _)) = listener.accept().await {
        let connection = connection.clone();
        running.spawn(async move {
            let _ = tcp.set_nodelay(true);
            let Ok((send, recv)) = connection.open_bi().await else { return };
            let _ = tokio::io::copy_bidirectional(&mut tcp, &mut tokio::io::join(recv, send)).await;
        });
    }
}

async fn serve(endpoint: Endpoint, network: Arc<Namespace>, upstream: SocketAddr) {
    let mut running = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        while let Ok((send, recv)) = connection.accept_bi().await {
            let network = network.clone();
            running.spawn(async move {
                let Ok(mut tcp) = network.within(TcpStream::connect(upstream)).await else {
                    return;
                };
                let _ = tcp.set_nodelay(true);
                let _ =
                    tokio::io::copy_bidirectional(&mut tcp, &mut tokio::io::join(recv, send)).await;
            });
        }
    }
}
