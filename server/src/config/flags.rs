//! The settings that are flags, or variables of the environment.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use common::machine::{
    process::{parse_idle_timeout, parse_time},
    report::Failure,
};
use ipnet::IpNet;

use super::{file, homeless, https::HttpsFlags, values::Advertised};
use crate::{policy::upstream::WrittenUpstream, state};

/// Options of every command have a heading of their own in the help.
pub(crate) const GLOBAL: &str = "Global options";

/// Settings of every command, from flags and environment.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Keep the server's state in DIR [default: /var/lib/adit for root, else the user's data
    /// directory]
    #[arg(long, value_name = "DIR", env = "ADITD_STATE_DIR", global = true, help_heading = GLOBAL)]
    pub state_dir: Option<PathBuf>,
    /// Read settings from FILE (TOML) [default: /etc/adit/aditd.toml if it exists]
    #[arg(long, value_name = "FILE", env = "ADITD_CONFIG", global = true, help_heading = GLOBAL)]
    pub config: Option<PathBuf>,
}

impl Flags {
    /// The configuration file, as an absolute path.
    pub fn file(&self) -> Option<PathBuf> {
        let named = self
            .config
            .as_ref()
            .map(|named| std::path::absolute(named).unwrap_or_else(|_| named.clone()));
        named.or_else(file::of_system)
    }

    /// The state directory, for commands that need nothing else. Other errors in the file are
    /// reported by the server.
    ///
    /// # Errors
    /// Exit code 2 if no state directory is known, or if that of the file cannot be used.
    pub fn state_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.state_dir {
            return Ok(dir.clone());
        }
        let of_file = self.file().map(|path| file::state_dir(&path)).transpose()?.flatten();
        of_file.or_else(state::default_dir).ok_or_else(homeless)
    }
}

/// Flags of `serve`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeFlags {
    /// Listen on this UDP address; may be given more than once [default: port 11435 of 127.0.0.1
    /// and of ::1]
    #[arg(long, value_name = "ADDR", env = "ADITD_LISTEN", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Let this network reach the server at addresses that are not loopback; may be given more than
    /// once [default: no network]
    #[arg(long, value_name = "CIDR", env = "ADITD_ALLOW_FROM", value_delimiter = ',')]
    pub allow_from: Vec<IpNet>,
    /// Forward to this service on loopback, or at a Unix socket (unix:/PATH); openai:// is vLLM,
    /// llama.cpp or LM Studio [default: http://127.0.0.1:11434]
    #[arg(long, value_name = "[http://|openai://|tcp://]ADDR", env = "ADITD_UPSTREAM")]
    pub upstream: Option<WrittenUpstream>,
    /// Issue certificates that are valid for this long; they renew themselves after two thirds
    /// [default: 30d]
    #[arg(long, value_name = "TIME", env = "ADITD_DEVICE_LIFE", value_parser = parse_time)]
    pub device_life: Option<Duration>,
    /// Keep the session and the running answers of a silent device this long [default: 30m]
    #[arg(long, value_name = "TIME", env = "ADITD_IDLE_TIMEOUT", value_parser = parse_idle_timeout)]
    pub idle_timeout: Option<Duration>,
    /// Also listen on TCP on each loopback UDP port, for SSH keys that may only forward ports
    /// [default: true]
    #[arg(long, value_name = "true|false", env = "ADITD_TCP_RELAY")]
    pub tcp_relay: Option<bool>,
    /// Let members of this group enroll devices over SSH, besides root and the owner of the state
    /// [default: nobody]
    #[arg(long, value_name = "GROUP", env = "ADITD_ENROLL_GROUP")]
    pub enroll_group: Option<String>,
    /// Do not give up rights after the start: see `sandbox` in the reference of the configuration
    #[arg(long)]
    pub no_sandbox: bool,
    /// Take the sockets over from the running server, which has started this process: see
    /// `aditd replace`
    #[arg(long, hide = true)]
    pub take_over: bool,
    /// Read only where the server is and listens: other users of the machine may not read every file.
    #[arg(skip)]
    pub places: bool,
    /// The HTTPS listener.
    #[command(flatten)]
    pub https: HttpsFlags,
    /// Addresses that devices are told.
    #[command(flatten)]
    pub advertise: AdvertiseFlags,
}

/// The addresses at which clients are told to find the server.
#[derive(Debug, Clone, Default, Args)]
pub struct AdvertiseFlags {
    /// Tell devices to connect to this address; may be given more than once [default: the addresses
    /// that the server listens on]
    #[arg(long, value_name = "HOST:PORT", env = "ADITD_ADVERTISE", value_delimiter = ',')]
    pub advertise: Vec<String>,
}

impl AdvertiseFlags {
    /// The addresses that the flags name.
    ///
    /// # Errors
    /// Exit code 2 if one is not an address.
    pub fn named(&self) -> Result<Vec<String>, Failure> {
        let Advertised(named) = self.advertise.clone().try_into()?;
        Ok(named)
    }
}
