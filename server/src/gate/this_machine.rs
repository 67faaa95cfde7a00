//! What the operating system knows about this machine.

use std::net::IpAddr;

use proto::ollama::host::Own;

#[derive(Debug, Clone, Copy)]
pub(super) struct ThisMachine;

impl Own for ThisMachine {
    fn is_name(&self, name: &str) -> bool {
        rustix::system::uname().nodename().to_str().is_ok_and(|own| own.eq_ignore_ascii_case(name))
    }

    fn is_address(&self, address: IpAddr) -> bool {
        if_addrs::get_if_addrs()
            .is_ok_and(|all| all.iter().any(|interface| interface.ip() == address))
    }
}
