//! Requests over HTTPS of a server in its sandbox: names are looked up by the broker, and a port that
//! the server may not connect to is named.

use std::{env, io};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// The environment variables that name a proxy.
pub(crate) const PROXIES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];

/// Looks names up as the rest of the server does.
pub(crate) struct Names;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let all = super::addresses(name.as_str(), 0).await?;
            Ok(Box::new(all.into_iter()) as Addrs)
        })
    }
}

/// Checks that this process may connect to the port of `url`. A provider may have named one that the
/// settings do not name. Where a proxy is asked, its port counts, which the settings' rights include.
///
/// # Errors
/// `PermissionDenied`, with the reason.
pub(crate) fn check_port(url: &Url) -> io::Result<()> {
    // The settings allow http on this machine only, where no proxy is asked.
    let has_proxy =
        url.scheme() != "http" && PROXIES.iter().any(|name| env::var_os(name).is_some());
    match url.port_or_known_default() {
        Some(port) if !has_proxy && !super::may_connect(port) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "`{url}` has the TCP port {port}, to which aditd gave up the right to connect when it started (its sandbox): it may connect to 443 and to the ports that its configuration names"
            ),
        )),
        _ => Ok(()),
    }
}
