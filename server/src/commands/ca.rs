//! `aditd ca show`: the certificate that clients of the HTTPS listener trust.

use clap::Subcommand;
use common::machine::report::{Failure, data, say, typed};
use proto::crypto::sha256;

use crate::state::State;

/// What can be done with the certificate authority.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print its certificate in PEM, for those who use --https without a certificate of their own
    Show,
}

/// Prints the certificate of the CA.
pub(crate) fn show(state: &State) -> Result<(), Failure> {
    data(state.ca.pem().trim_end())?;
    let hash = sha256(state.ca.certificate());
    let hash: Vec<String> = hash.iter().map(|byte| format!("{byte:02X}")).collect();
    say(typed(format!(
        "SHA-256 fingerprint: {}\nSave it in a file, and name the file to the program that uses a key: `curl --cacert FILE`.",
        hash.join(":")
    )));
    Ok(())
}
