//! What the operating system knows about this machine.

use std::net::IpAddr;

use common::machine::network::own_addresses;
use proto::ollama::host::Own;

#[derive(Debug, Clone, Copy)]
pub(super) struct ThisMachine;

impl Own for ThisMachine {
    fn is_name(&self, name: &str) -> bool {
        rustix::system::uname().nodename().to_str().is_ok_and(|own| own.eq_ignore_ascii_case(name))
    }

    fn is_address(&self, address: IpAddr) -> bool {
        own_addresses().contains(&address)
    }
}
