//! The settings of the HTTPS listener: flags before the table `[https]` of the file.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::Args;
use common::machine::{config_text::WrittenPath, report::Failure};
use ipnet::IpNet;
use serde::Deserialize;

use super::{
    acme::{self, AcmeFile},
    first_of,
    reach::name_networks,
    usage,
    values::Wrong,
};
use crate::{
    https::{CertificateName, CertificateSource, HttpsSettings, PageOrigin},
    policy::upstream::{Kind, Upstream},
};

/// Flags of the HTTPS listener.
#[derive(Debug, Clone, Default, Args)]
pub struct HttpsFlags {
    /// Also answer HTTPS (TCP) on this address, for applications that cannot run `adit` and have a
    /// key; may be given more than once [default: off]
    #[arg(long, value_name = "IP:PORT", env = "ADITD_HTTPS", value_delimiter = ',')]
    pub https: Vec<String>,
    /// Let this network reach --https, for example 192.168.1.0/24; may be given more than once
    #[arg(long, value_name = "NETWORK", env = "ADITD_HTTPS_ALLOW_FROM", value_delimiter = ',')]
    pub https_allow_from: Vec<IpNet>,
    /// Name the server so in the certificate that its own CA issues for --https; may be given more
    /// than once [default: this machine's name and addresses]
    #[arg(long, value_name = "HOST", env = "ADITD_HTTPS_NAME", value_delimiter = ',')]
    pub https_name: Vec<String>,
    /// Use this certificate for --https: a file in PEM, with the certificates of its CAs. It is read
    /// again when it changes
    #[arg(long, value_name = "FILE", env = "ADITD_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of that certificate: a file in PEM that not everybody may read
    #[arg(long, value_name = "FILE", env = "ADITD_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// The table `[https]` of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpsFile {
    listen: Option<Vec<HttpsListen>>,
    allow_from: Option<Vec<IpNet>>,
    names: Option<Vec<CertificateName>>,
    origins: Option<Vec<PageOrigin>>,
    tls_cert: Option<WrittenPath>,
    tls_key: Option<WrittenPath>,
    acme: Option<AcmeFile>,
}

/// An address to listen on, with its port.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct HttpsListen(SocketAddr);

impl TryFrom<String> for HttpsListen {
    type Error = Wrong;

    fn try_from(text: String) -> Result<Self, Wrong> {
        let what = match text.parse::<SocketAddr>() {
            Ok(address) => return Ok(Self(address)),
            Err(_) if text.parse::<IpAddr>().is_ok() => format!("`{text}` has no port"),
            Err(_) => format!("`{text}` is not an address to listen on"),
        };
        Err(Wrong { what, form: "write it as IP:PORT, for example 192.168.1.7:8443 or [::1]:8443" })
    }
}

/// The settings; `None` if the listener is off. `dir` is where the file is.
///
/// # Errors
/// Exit code 2, with the setting, what is wrong with it, and how to write it.
pub(super) fn settle(
    flags: &HttpsFlags,
    file: HttpsFile,
    dir: &Path,
    upstream: &Upstream,
) -> Result<Option<HttpsSettings>, Failure> {
    let named = flags.https.iter().cloned().map(HttpsListen::try_from);
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let listen: Vec<_> =
        first_of(&named, file.listen).into_iter().map(|HttpsListen(address)| address).collect();
    let names = flags.https_name.iter().map(|name| name.parse::<CertificateName>());
    let names = names.collect::<Result<Vec<_>, _>>().map_err(usage)?;
    let of_file = |written: WrittenPath| written.resolve_in(dir);
    let cert = flags.tls_cert.clone().or(file.tls_cert.map(of_file));
    let files = (cert, flags.tls_key.clone().or(file.tls_key.map(of_file)));
    let source = match (files, file.acme) {
        ((None, None), None) => CertificateSource::Own,
        ((None, None), Some(acme)) => CertificateSource::Acme(acme::settle(acme, dir)?),
        ((Some(cert), Some(key)), None) => CertificateSource::Files(cert, key),
        ((Some(_), Some(_)), Some(_)) => {
            return Err(usage(
                "the certificate for HTTPS is named twice: its files, and `[https.acme]`",
            )
            .hint("leave out `tls_cert` and `tls_key`, or `[https.acme]`"));
        }
        ((cert, _), _) => {
            let lacks = if cert.is_some() { "tls_key" } else { "tls_cert" };
            return Err(usage(format!("`{lacks}` is missing below `[https]`"))
                .hint("a certificate and its key belong together: name both, or none"));
        }
    };
    if listen.is_empty() {
        return Ok(None);
    }
    if !upstream.kind.is_http() {
        return Err(usage(
            "HTTPS needs an upstream that speaks HTTP, because each request is read",
        )
        .hint(format!("name it so: `--upstream {}`", upstream.clone().of_kind(Kind::Http))));
    }
    let allow_from = first_of(&flags.https_allow_from, file.allow_from);
    let open = listen.iter().find(|address| !address.ip().to_canonical().is_loopback());
    if let Some(open) = open.filter(|_| allow_from.is_empty()) {
        return Err(usage(format!(
            "refusing HTTPS on {open}: it is not loopback, and no --https-allow-from is set"
        ))
        .hint(name_networks(
            format!("--https {open} --https-allow-from"),
            named.is_empty(),
            "192.168.1.0/24",
        )));
    }
    Ok(Some(HttpsSettings {
        listen,
        allow_from,
        names: first_of(&names, file.names),
        origins: file.origins.unwrap_or_default(),
        source,
    }))
}
