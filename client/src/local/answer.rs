//! What the client answers an application when the server can't.

use common::transport::splice;
use proto::{
    ollama::answer::{self, ErrorAnswer},
    wire::Code,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// For a connection that is held when `adit` stops.
pub fn stopping() -> ErrorAnswer {
    ErrorAnswer::new(503, "adit is stopping on this computer: start it again with `adit up`")
}

/// What a stream that was reset with `code` means to the application.
pub fn for_code(code: Option<Code>) -> ErrorAnswer {
    code.unwrap_or(Code::Cut).into()
}

/// Answers the request that begins with `head` and closes; what is no HTTP is aborted instead.
pub async fn send(answer: &ErrorAnswer, mut tcp: TcpStream, head: &[u8]) {
    if answer::is_request(head)
        && tcp.write_all(&answer.render(head, std::time::SystemTime::now())).await.is_ok()
    {
        splice::drain(tcp).await;
    } else {
        splice::abort(tcp);
    }
}
