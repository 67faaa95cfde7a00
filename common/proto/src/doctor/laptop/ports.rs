//! The check of the ports where tools look for Ollama. A tool that connects to `localhost` may try
//! IPv4 or IPv6 first, so `adit` must listen on both.

use std::net::SocketAddr;

use super::LaptopFound;
use crate::doctor::{Judgement, bad, ok, warn};

/// An address that tools use, and the program that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub address: SocketAddr,
    pub holder: Holder,
}

/// The program that holds an address. The text describes the process, for example
/// `` `ollama` (pid 812) ``; it is empty if nothing is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// No program.
    Nobody,
    /// This computer has no such address.
    Absent,
    /// The `adit up` of this profile.
    This,
    /// Another `adit`.
    Adit(String),
    /// An Ollama of this computer.
    Ollama(String),
    /// Another program.
    Other(String),
}

impl Holder {
    /// The holder in words, if it is another program.
    fn stranger(&self) -> Option<String> {
        let named = |kind: &str, who: &str| {
            Some(if who.is_empty() { kind.to_owned() } else { format!("{kind}, {who}") })
        };
        match self {
            Self::Nobody | Self::Absent | Self::This => None,
            Self::Adit(who) => named("another adit", who),
            // An `adit` with another state directory answers as its Ollama does.
            Self::Ollama(who) if who.is_empty() => {
                Some("an Ollama of this laptop (or another adit)".to_owned())
            }
            Self::Ollama(who) => named("an Ollama of this laptop", who),
            Self::Other(who) => named("another program", who),
        }
    }

    /// The text about its process; empty if nothing is known.
    fn pid(&self) -> Option<u32> {
        let (Self::Adit(who) | Self::Ollama(who) | Self::Other(who)) = self else { return None };
        who.split_once("(pid ")?.1.split(')').next()?.parse().ok()
    }
}

pub(super) fn port(found: &LaptopFound) -> Option<Judgement> {
    let number = found.adit.port();
    let ports: Vec<_> = found.ports.iter().filter(|p| p.address.port() == number).collect();
    let taken: Vec<_> = ports.iter().filter(|p| p.holder.stranger().is_some()).collect();
    let ours: Vec<_> = ports.iter().filter(|p| p.holder == Holder::This).collect();
    let free: Vec<_> = ports.iter().filter(|p| p.holder == Holder::Nobody).collect();
    if !taken.is_empty() {
        return Some(taken_by(
            found,
            &taken.iter().map(|p| **p).collect::<Vec<_>>(),
            !ours.is_empty(),
        ));
    }
    let up = format!("adit up{}", found.argument);
    match (ours.is_empty(), free.first()) {
        (true, _) => Some(ok(format!("{number} is free: `adit up` can listen there"))),
        (false, None) => Some(ok(format!(
            "adit listens on {}",
            all(&ours.iter().map(|p| p.address).collect::<Vec<_>>())
        ))),
        (false, Some(free)) => {
            let ours = all(&ours.iter().map(|p| p.address).collect::<Vec<_>>());
            let judged = warn(format!(
                "adit listens on {ours} alone, and nobody on {}: a tool that takes `localhost` for that one finds nothing",
                free.address
            ));
            Some(
                judged.cure(format!(
                    "adit down{} && {up} --listen localhost:{number}",
                    found.argument
                )),
            )
        }
    }
}

/// The judgement for an address that another program holds.
fn taken_by(found: &LaptopFound, taken: &[&Port], runs: bool) -> Judgement {
    let number = taken[0].address.port();
    let addresses = all(&taken.iter().map(|p| p.address).collect::<Vec<_>>());
    let mut who: Vec<_> = taken.iter().filter_map(|p| p.holder.stranger()).collect();
    who.dedup();
    let who = who.join(" and ");
    let belongs = if taken.len() > 1 { "belong" } else { "belongs" };
    let judged = if runs {
        bad(format!(
            "{addresses} {belongs} to {who}: a tool that takes `localhost` for that one does not reach adit"
        ))
    } else {
        bad(format!("{addresses} {belongs} to {who}: `adit up` can't listen there"))
    };
    let other = if number == 11500 { 11501 } else { 11500 };
    let listen = format!("adit up{} --listen localhost:{other}", found.argument);
    let judged = judged
        .cure_by("leave it there, and take another port", listen)
        .cure_by("for the tools", format!("export OLLAMA_HOST=http://localhost:{other}"));
    let stop = "or stop it";
    let who = ("see who it is", format!("sudo ss -ltnp 'sport = :{number}'"));
    match &taken[0].holder {
        Holder::Ollama(_) => {
            let stop = format!("{stop} (a service comes back at the next boot)");
            match taken[0].holder.pid() {
                Some(pid) => judged
                    .cure_by(stop, format!("sudo systemctl disable --now ollama || kill {pid}")),
                None => judged
                    .cure_by(who.0, who.1)
                    .cure_by(stop, "sudo systemctl disable --now ollama"),
            }
        }
        // Another one of this user, with the same state directory.
        Holder::Adit(who) if who.starts_with("`adit up ") => {
            let servers = who.trim_start_matches("`adit up ").split('`').next().unwrap_or_default();
            let down: Vec<_> = servers.split(' ').map(|name| format!("adit down {name}")).collect();
            judged.cure_by(stop, down.join(" && "))
        }
        holder => match holder.pid() {
            Some(pid) => judged.cure_by(stop, format!("kill {pid}")),
            None => judged.cure_by(who.0, who.1),
        },
    }
}

fn all(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
