use std::{path::PathBuf, time::Duration};

use tokio::task::JoinHandle;

use super::*;

/// How many look-ups may be open here.
const OPEN: usize = 8;

/// A broker that runs here, and the server's end of its socket.
fn running(broker: Broker) -> (Arc<Broker>, UnixStream, JoinHandle<()>) {
    let (near, far) = UnixStream::pair().expect("a pair");
    let broker = Arc::new(broker);
    let it = broker.clone();
    let task = tokio::spawn(async move { it.answer_all(&far).await });
    (broker, near, task)
}

fn allowed(sockets: Vec<PathBuf>) -> Allowed {
    let (program, args, writable) = ("/usr/bin/aditd".into(), Vec::new(), Vec::new());
    Allowed { program, args, writable, is_limited: true, sockets }
}

async fn ask(server: &UnixStream, ask: &Ask) -> UnixStream {
    let (mut near, far) = UnixStream::pair().expect("a pair");
    descriptors::send(server, &[far.as_fd()]).await.expect("sent");
    drop(far);
    frame::write(&mut near, ask).await.expect("asked");
    near
}

async fn answer<T: serde::de::DeserializeOwned>(mut asked: UnixStream) -> Result<T, Refused> {
    let answer = frame::read_long(&mut asked, MAX_MESSAGE);
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
    answer.expect("no answer").expect("no answer")
}

#[tokio::test]
async fn a_message_without_its_file_does_not_end_the_broker_and_the_end_of_the_server_does() {
    let (_, server, task) = running(Broker::new(allowed(Vec::new())));
    server.try_write(b"x").expect("written");
    let login = ask(&server, &Ask::Login { uid: 0 }).await;
    answer::<Option<String>>(login).await.expect("an answer");
    drop(server);
    tokio::time::timeout(Duration::from_secs(20), task).await.expect("it ends").expect("no panic");
}

#[tokio::test]
async fn names_that_nobody_answers_stop_no_socket_and_end_with_their_askers() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("service");
    let _listener = tokio::net::UnixListener::bind(&path).expect("bound");
    // As if each of the threads waited for a name already.
    let names = LookUps::new((0, OPEN));
    let (broker, server, _) = running(Broker { names, ..Broker::new(allowed(vec![path.clone()])) });
    let name = Ask::Addresses { host: "dead.example".into(), port: 1 };
    let mut waiting = Vec::new();
    for _ in 0..OPEN {
        waiting.push(ask(&server, &name).await);
    }
    // Each of these has its place before the next is answered.
    let until = |places: usize| {
        let broker = broker.clone();
        let wait = async move {
            while broker.names.open.available_permits() != places {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
    };
    until(0).await.expect("all of them wait");
    for _ in 0..QUESTIONS {
        waiting.push(ask(&server, &name).await);
    }
    let refused = answer::<Vec<std::net::SocketAddr>>(waiting.pop().expect("one")).await;
    assert!(refused.is_err(), "one too many");
    answer::<()>(ask(&server, &Ask::Socket { path }).await).await.expect("connected");
    drop(waiting);
    until(OPEN).await.expect("they end with their askers");
}
