//! The revocation of a device, in the middle of an answer.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use common::machine::report::Failure;
use hyper::StatusCode;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    curl,
    http::{Answer, Client, Event},
    screen::{At, Screen, shown},
    source::Source,
    stage::{DEVICE, Stage},
};

/// How many tokens are shown before the device is revoked.
const TOKENS: usize = 16;
/// A cut takes milliseconds; an answer that continues for this long was not cut.
const CUT_WITHIN: Duration = Duration::from_secs(10);

/// Revokes the device during an answer, and checks that the answer was cut.
pub(super) async fn run(
    stage: &Stage,
    source: &Source,
    tunnel: SocketAddr,
    screen: &Screen,
) -> Result<(), Failure> {
    let question = source.endless_question();
    screen.command(At::Laptop, &curl(tunnel, &question));
    let mut answer = Answer::ask(tunnel, &question).await?;
    screen.piece("  ");
    for _ in 0..TOKENS {
        match answer.next().await? {
            Event::Token(token) => screen.piece(&token),
            Event::Done => return Err(too_short()),
            Event::Cut => {
                return Err(Failure::new("the answer was cut before the device was revoked"));
            }
        }
    }
    screen.talk(" …");

    screen.command(At::Server, &format!("aditd device revoke {DEVICE}"));
    let entered = Instant::now();
    let (revoked, cut) =
        tokio::try_join!(stage.aditd(&["device", "revoke", DEVICE]), until_cut(answer, entered))?;
    screen.output(&revoked.stderr);
    screen.talk(format_args!(
        "The answer was cut in the middle, {} after that command was entered (its own start included).",
        shown(cut)
    ));
    if let Some(stand_in) = &source.stand_in {
        let idle = stand_in.wait_for(|now| now.running == 0, CUT_WITHIN).await;
        idle.map_err(|_| {
            Failure::new("the answer was cut, but Ollama's stand-in goes on making it")
        })?;
        screen.talk(
            "The stand-in was told as well, and makes no more of it: a GPU would be free again.",
        );
    }
    refused(tunnel, &source.question(), screen).await
}

fn too_short() -> Failure {
    Failure::new("the answer ended by itself before the device was revoked")
        .hint("run the demo again, with another model or with --stand-in")
}

/// How long after `entered` the answer was cut.
async fn until_cut(mut answer: Answer, entered: Instant) -> Result<Duration, Failure> {
    let cut = timeout(CUT_WITHIN, async {
        loop {
            match answer.next().await? {
                Event::Token(_) => {}
                Event::Done => return Err(too_short()),
                Event::Cut => return Ok(entered.elapsed()),
            }
        }
    });
    let went_on = |_| {
        Failure::new(format!(
            "the answer went on for {} s after the revocation",
            CUT_WITHIN.as_secs()
        ))
    };
    cut.await.map_err(went_on)?
}

/// The next request must get an error that says why, in Ollama's format.
async fn refused(tunnel: SocketAddr, question: &Value, screen: &Screen) -> Result<(), Failure> {
    screen.command(At::Laptop, &curl(tunnel, question));
    let asked = Instant::now();
    let (status, body) = Client::connect(tunnel).await?.post("/api/generate", question).await?;
    let took = asked.elapsed();
    let said = String::from_utf8_lossy(&body);
    screen.output(&said);
    let error: Option<Value> = serde_json::from_slice(&body).ok();
    let why = error.as_ref().and_then(|error| error["error"].as_str()).unwrap_or_default();
    // The stand-in could refuse too, but not in these words.
    if status != StatusCode::SERVICE_UNAVAILABLE || !why.contains("revoked") {
        return Err(Failure::new("the next request was not refused as it should be")
            .source(format!("{status}: {said}")));
    }
    screen.talk(format_args!("The next request is refused with {status}, after {}.", shown(took)));
    Ok(())
}
