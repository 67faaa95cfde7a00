//! The settings: flags override the environment, which overrides the file, which overrides
//! defaults. They are checked once.

mod acme;
mod differences;
mod file;
mod flags;
mod https;
mod jwt;
mod oidc;
mod outgoing;
mod reach;
mod services;
mod values;

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::machine::{
    config_text::WrittenPath,
    network::own_network_or_example,
    report::{Exit, Failure},
};
use ipnet::IpNet;
use proto::{identity::Name, wire::ADITD_PORT};
use toml::Spanned;

use self::{
    file::Read,
    values::{AboveZero, Advertised, IdleTimeout, Life, Listen, Whole, Wrong},
};
pub(crate) use self::{
    file::{SYSTEM_FILE, of_system},
    flags::{AdvertiseFlags, GLOBAL},
    outgoing::OutgoingPlace,
    reach::addresses,
};
pub use self::{
    flags::{Flags, ServeFlags},
    https::HttpsFlags,
};
use crate::{
    accounting::{AccountingSettings, queue},
    audit::{Age, AuditSettings},
    https::{AcmeSettings, CertificateSource, HttpsSettings},
    ingress::filter::Audience,
    jwt::JwtSettings,
    limits::Size,
    oidc::OidcSettings,
    policy::{
        authorize::{Address, At, Authority, AuthorizeSettings, Trust},
        roles::Rules,
        services::Services,
        upstream::Upstream,
    },
    state,
};

/// The default path of the socket at which members of a group enroll devices.
pub(crate) const DEFAULT_ENROLL_SOCKET: &str = "/run/adit/enroll.sock";

/// All settings, complete and checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that was read, if any.
    pub(crate) file: Option<PathBuf>,
    /// The state directory.
    pub(crate) state_dir: PathBuf,
    pub(crate) listen: Vec<SocketAddr>,
    /// The networks that may reach addresses other than loopback.
    pub(crate) audience: Audience,
    /// Where streams are forwarded.
    pub(crate) services: Services,
    /// How long a device's certificate is valid.
    pub(crate) device_life: Duration,
    /// How long a silent device keeps its session.
    pub(crate) idle_timeout: Duration,
    /// The addresses that devices are told, if set.
    pub advertise: Vec<String>,
    /// Whether to relay for SSH on loopback.
    pub(crate) tcp_relay: bool,
    /// The group whose members may enroll devices.
    pub(crate) enroll_group: Option<String>,
    /// The socket at which they do it.
    pub(crate) enroll_socket: PathBuf,
    /// The HTTPS listener; `None` if it is off.
    pub(crate) https: Option<HttpsSettings>,
    /// The tokens that count. In force at once when the file is read again.
    pub(crate) jwt: Option<JwtSettings>,
    /// Where people sign in. In force at once when the file is read again.
    pub(crate) oidc: Option<OidcSettings>,
    /// What roles and devices may do. In force at once when the file is read again.
    pub(crate) rules: Arc<Rules>,
    /// The devices that the file names.
    pub(crate) devices: Vec<Name>,
    authorize: Option<AuthorizeSettings>,
    /// Whether the server gives up what it does not need after its start.
    pub(crate) sandbox: bool,
    /// Limits, queue, audit log and metrics.
    pub(crate) accounting: AccountingSettings,
}

const DEVICE_LIFE: Duration = Duration::from_secs(30 * 86_400);

/// The settings of a running server.
pub(crate) struct Settings {
    pub(crate) flags: Flags,
    pub(crate) serve: ServeFlags,
    /// The result of the flags and the file.
    pub(crate) config: Config,
}

impl Config {
    /// Reads and checks all settings.
    ///
    /// # Errors
    /// Exit code 2, with the setting, what is wrong with it, and how to write it.
    pub fn resolve(flags: &Flags, serve: &ServeFlags) -> Result<Self, Failure> {
        let path = flags.file();
        let dir = path.as_deref().map_or(Path::new("/"), file::dir_of);
        let of_file = |written: WrittenPath| written.resolve_in(dir);
        let Read { file, rules, limits, services, jwt, oidc, devices } = path
            .as_deref()
            .map(|path| file::read(path, serve.places))
            .transpose()?
            .unwrap_or_default();
        let state_dir = flags
            .state_dir
            .clone()
            .or(file.state_dir.map(of_file))
            .or_else(state::default_dir)
            .ok_or_else(homeless)?;
        let named =
            serve.listen.iter().cloned().map(Listen::try_from).collect::<Result<Vec<_>, _>>()?;
        let mut listen: Vec<_> =
            first_of(&named, file.listen).into_iter().map(|Listen(address)| address).collect();
        if listen.is_empty() {
            listen = vec![
                (Ipv4Addr::LOCALHOST, ADITD_PORT).into(),
                (Ipv6Addr::LOCALHOST, ADITD_PORT).into(),
            ];
        }
        // An address that is named twice is used once; port 0 is another port each time.
        let mut known = HashSet::new();
        listen.retain(|address| address.port() == 0 || known.insert(*address));
        let networks = first_of(&serve.allow_from, file.allow_from);
        if let Some(open) = listen
            .iter()
            .find(|address| !address.ip().to_canonical().is_loopback())
            .filter(|_| networks.is_empty())
        {
            return Err(usage(format!(
                "refusing to listen on {open}: it is not loopback, and no --allow-from is set"
            ))
            .hint(reach::name_networks(
                format!("--listen {open} --allow-from"),
                named.is_empty(),
                &own_network_or_example(),
            )));
        }
        also_ipv4(&mut listen, &networks);
        let audit_dir = file.audit_dir.map(of_file);
        let audit = AuditSettings::in_dir(audit_dir.as_deref().unwrap_or(&state_dir));
        let accounting = AccountingSettings {
            limits,
            max_in_flight: file.max_in_flight.map(|AboveZero(most)| most),
            max_queue: file.max_queue.map_or(queue::MAX_WAITING, |Whole(most)| most),
            queue_header: file.queue_header.unwrap_or(false),
            audit: AuditSettings {
                required: file.audit_required.unwrap_or(false),
                size: file.audit_size.map_or(audit.size, |Size(bytes)| bytes),
                keep: file.audit_keep.map_or(audit.keep, |Age(age)| age),
                ..audit
            },
            metrics: file.metrics,
        };
        let named = serve.advertise.named()?;
        let Advertised(advertise) =
            if named.is_empty() { file.advertise.unwrap_or_default() } else { Advertised(named) };
        let authorize = file.authorize.map(Spanned::into_inner);
        let is_https = authorize.as_ref().is_some_and(Address::is_https);
        let ca = file.authorize_ca.map(Spanned::into_inner).map(of_file);
        let trust = is_https.then(|| Trust::new(ca.as_deref())).transpose()?;
        let life = serve.device_life.map(Life::try_from).transpose()?.or(file.device_life);
        let named = serve.upstream.clone().map(|written| {
            services.allow.admit(written).map_err(|e| {
                let failure = e.cure().into_iter().fold(usage(&e), Failure::hint);
                failure.hint("to see how it is written: `aditd serve --help`")
            })
        });
        let upstream = named.transpose()?.or(services.default).unwrap_or_default();
        Ok(Self {
            file: path.clone(),
            state_dir,
            listen,
            audience: Audience::new(networks),
            services: Services::new(upstream.clone(), services.others),
            device_life: life.map_or(DEVICE_LIFE, |Life(life)| life),
            idle_timeout: serve
                .idle_timeout
                .or(file.idle_timeout.map(|IdleTimeout(time)| time))
                .unwrap_or(proto::wire::IDLE_TIMEOUT),
            advertise,
            tcp_relay: serve.tcp_relay.or(file.tcp_relay).unwrap_or(true),
            https: https::settle(&serve.https, file.https, dir, &upstream)?,
            enroll_group: serve.enroll_group.clone().or(file.enroll_group),
            enroll_socket: file.enroll_socket.map_or_else(|| DEFAULT_ENROLL_SOCKET.into(), of_file),
            jwt,
            oidc,
            rules: Arc::new(rules),
            sandbox: !serve.no_sandbox && file.sandbox.unwrap_or(true),
            devices,
            authorize: authorize.map(|address| AuthorizeSettings {
                trust,
                address,
                at: file.authorize_at.map_or_else(|| vec![At::Request], Spanned::into_inner),
                headers: file
                    .authorize_headers
                    .map(|names| names.into_inner().into_iter().map(|name| name.0).collect())
                    .unwrap_or_default(),
                recheck: file.authorize_recheck.map(|time| time.into_inner().0),
            }),
            accounting,
        })
    }

    /// Every place to which requests of devices are forwarded, by its service, `ollama` first. The
    /// rights of the process are derived from these.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = (&Name, &Upstream)> {
        self.services.iter()
    }

    /// The place of the service `ollama`.
    pub(crate) fn upstream(&self) -> &Upstream {
        self.services.default_one()
    }

    /// The certificate authority that is asked for the certificate of the HTTPS listener, if there
    /// is one: by HTTPS, or by the proxy of the environment. It takes files to read, too
    /// ([`AcmeSettings::files`]).
    pub(crate) fn acme(&self) -> Option<&AcmeSettings> {
        match &self.https.as_ref()?.source {
            CertificateSource::Acme(acme) => Some(acme),
            CertificateSource::Own | CertificateSource::Files(..) => None,
        }
    }

    /// What is set of the service that is asked besides the roles.
    pub(crate) fn authorize(&self) -> Option<&AuthorizeSettings> {
        self.authorize.as_ref()
    }

    /// The service that is asked besides the roles.
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.authorize.clone().map(|settings| Arc::new(Authority::new(settings)))
    }
}

/// `[::]` stands for every address. Each address family has a socket of its own, so `0.0.0.0` is
/// added if an IPv4 network is allowed; not for port 0, which is another port each time.
fn also_ipv4(listen: &mut Vec<SocketAddr>, networks: &[IpNet]) {
    let has_ipv4 = networks.iter().any(|network| matches!(network, IpNet::V4(_)));
    let everywhere = |address: &&SocketAddr| {
        address.ip() == Ipv6Addr::UNSPECIFIED && address.port() != 0 && has_ipv4
    };
    let ports: Vec<u16> = listen.iter().filter(everywhere).map(SocketAddr::port).collect();
    for port in ports {
        if !listen.iter().any(|address| address.is_ipv4() && address.port() == port) {
            listen.push((Ipv4Addr::UNSPECIFIED, port).into());
        }
    }
}

fn first_of<T: Clone>(flags: &[T], file: Option<Vec<T>>) -> Vec<T> {
    if flags.is_empty() { file.unwrap_or_default() } else { flags.to_vec() }
}

impl From<Wrong> for Failure {
    fn from(Wrong { what, form }: Wrong) -> Self {
        usage(what).hint(form)
    }
}

fn homeless() -> Failure {
    usage("there is no home directory to keep the server's state in")
        .hint("name a place with --state-dir or ADITD_STATE_DIR")
}

fn usage(what: impl std::fmt::Display) -> Failure {
    Failure::new(what).exit(Exit::Usage)
}

#[cfg(test)]
mod tests;
