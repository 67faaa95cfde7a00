//! The addresses and carriers to try: those of the profile that `--carrier` allows.

use std::time::Duration;

use common::transport::tls;
use quinn::{Connection, Endpoint};

use crate::{
    dial::{
        self, DialError, Dialed,
        route::{CarrierChoice, Route},
    },
    profile::SharedProfile,
    ssh::{SshClient, SshTarget},
};

/// Everything that is needed to connect to the server. Clones share the profile.
#[derive(Clone)]
pub(crate) struct DialPlan {
    /// What is known about the server; its messages change it.
    pub(crate) profile: SharedProfile,
    /// Which carriers may be used.
    pub(crate) choice: CarrierChoice,
    /// The idle time-out of a session.
    pub(crate) idle_timeout: Duration,
}

impl DialPlan {
    /// Connects by the carrier that answers first; UDP starts earlier. Cancellation safe.
    ///
    /// # Errors
    /// The most telling failure.
    pub(crate) async fn dial(&self) -> Result<Dialed, DialError> {
        if let Some(none) = self.no_way() {
            return Err(none);
        }
        dial::dial(&self.config().await?, &self.addresses(), self.ssh().as_ref()).await
    }

    /// Makes another connection over the carrier of one that this endpoint has. Cancellation safe.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn dial_beside(
        &self,
        endpoint: &Endpoint,
        route: &Route,
    ) -> Result<Connection, DialError> {
        dial::beside(&self.config().await?, endpoint, route).await
    }

    /// Connects by UDP. Cancellation safe.
    ///
    /// # Errors
    /// The most telling failure.
    pub(crate) async fn dial_udp(&self) -> Result<Dialed, DialError> {
        dial::dial(&self.config().await?, &self.addresses(), None).await
    }

    /// Connects by SSH. Cancellation safe.
    ///
    /// # Errors
    /// Why it cannot connect.
    pub(crate) async fn dial_ssh(&self) -> Result<Dialed, DialError> {
        dial::dial(&self.config().await?, &[], self.ssh().as_ref()).await
    }

    /// The addresses to try by UDP, best first.
    pub(crate) fn addresses(&self) -> Vec<String> {
        if self.choice == CarrierChoice::Ssh {
            Vec::new()
        } else {
            self.profile.get().enrolled.addresses
        }
    }

    /// How to reach the server over SSH, if that is allowed.
    pub(crate) fn ssh(&self) -> Option<SshTarget> {
        if self.choice == CarrierChoice::Udp { None } else { self.profile.get().ssh }
    }

    /// Why the other carrier is never tried, if so.
    pub(crate) fn why_never(&self, other: &str) -> Option<&'static str> {
        match (other, self.choice) {
            ("udp", CarrierChoice::Ssh) => Some("`--carrier ssh` forbids it"),
            ("ssh", CarrierChoice::Udp) => Some("`--carrier udp` forbids it"),
            ("udp", _) if self.addresses().is_empty() => {
                Some("the server advertises no address but its own loopback")
            }
            ("ssh", _) if self.ssh().is_none() => {
                Some("this device enrolled by code, so SSH is not available")
            }
            _ => None,
        }
    }

    /// The error that there is nothing to try, if so. Waiting does not help: the server sends new
    /// addresses only in a session.
    pub(crate) fn no_way(&self) -> Option<DialError> {
        if !self.addresses().is_empty() || self.ssh().is_some() {
            return None;
        }
        let anew =
            format!("`adit enroll --replace{} USER@HOST`", self.profile.get().profile_dir.flag());
        let (why, hint) = match self.choice {
            CarrierChoice::Udp => (
                "the server advertises no address but its own loopback, and `--carrier udp` forbids SSH",
                "leave out `--carrier udp`: adit prefers UDP anyway, as soon as the server advertises an address that this device can reach".to_owned(),
            ),
            CarrierChoice::Ssh => (
                "this device enrolled by code, so SSH is not available, and `--carrier ssh` forbids UDP",
                format!("leave out `--carrier ssh`, or enroll this device over SSH: {anew}"),
            ),
            CarrierChoice::Auto => (
                "the server advertises no address but its own loopback",
                format!("let the server listen on an address that this device can reach, or enroll over SSH: {anew}"),
            ),
        };
        Some(DialError::NoWay { why, hint })
    }

    /// Whether the system's `ssh` may ask the person at the terminal by itself.
    pub(crate) fn asks_by_itself(&self) -> bool {
        self.ssh().is_some_and(|target| target.client() == SshClient::System)
    }

    /// All addresses that are tried, for people.
    pub(crate) fn sought(&self) -> String {
        dial::all_of(&self.addresses(), self.ssh().as_ref())
    }

    /// Also makes sure that the device's key can sign, on another thread: a token that is missing is a
    /// better error than a handshake that fails.
    async fn config(&self) -> Result<dial::DialConfig, DialError> {
        let profile = self.profile.get();
        profile.key().ready().await.map_err(DialError::Key)?;
        let other = |e: rustls::Error| DialError::Other(e.to_string());
        let roots = tls::roots(profile.ca().map_err(other)?).map_err(other)?;
        let crypto =
            tls::tunnel_client(roots, profile.certified_key().map_err(other)?).map_err(other)?;
        let config = dial::config(crypto, &profile.enrolled.knock_key, self.idle_timeout);
        Ok(config.signed_by(profile.key()))
    }
}
