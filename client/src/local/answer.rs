//! Answers of the client to an application when the server cannot answer.

use crate::{
    dial::{DialError, NextAttempt},
    profile::Profile,
};
use common::{machine::report::typed, transport::splice};
use proto::{
    ollama::answer::{self, ErrorAnswer},
    wire::{Code, Revocation},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// The answer to a connection that waits for the tunnel when `adit` stops. `name` is the server's,
/// behind a command.
pub(crate) fn stopping(name: &str) -> ErrorAnswer {
    let cure = typed(format!("start it again with `adit up{name}`"));
    ErrorAnswer::new(503, format!("adit is stopping on this computer: {cure}"))
}

/// The answer to a request whose stream was reset with `code`.
pub(crate) fn for_code(code: Option<Code>) -> ErrorAnswer {
    code.unwrap_or(Code::Cut).into()
}

/// The answer to a request whose session ended because this device or its user was revoked.
pub(crate) fn revoked(revocation: &Revocation, profile: &Profile) -> ErrorAnswer {
    let sentence = format!("adit: {}", revocation.sentence(profile.enrolled.device.as_str()));
    ErrorAnswer { sentence, ..Code::Revoked.into() }
}

/// The answer to a request whose session ended because this device's sign-in has ended.
pub(crate) fn signed_out(profile: &Profile) -> ErrorAnswer {
    let why = DialError::Refused(Code::SignedOut);
    let cure = why.hint(profile, NextAttempt::Automatic);
    let cure = cure.map(|cure| format!(": {}", typed(cure))).unwrap_or_default();
    ErrorAnswer { sentence: format!("adit: {why}{cure}"), ..Code::SignedOut.into() }
}

/// Answers the request that begins with `head`, and closes the connection. If it is not HTTP, the
/// connection is aborted instead.
pub(crate) async fn send(answer: &ErrorAnswer, mut tcp: TcpStream, head: &[u8]) {
    if answer::is_request(head)
        && tcp.write_all(&answer.render(head, std::time::SystemTime::now())).await.is_ok()
    {
        splice::drain(tcp).await;
    } else {
        splice::abort(tcp);
    }
}
