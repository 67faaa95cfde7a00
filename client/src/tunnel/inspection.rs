//! What a tunnel shows of itself to `adit doctor`: two seconds of small questions on a stream of their
//! own, and on another what the box finds.

use std::{
    io,
    time::{Duration, Instant},
};

use common::machine::process::unix_millis;
use common::transport::{
    frame,
    splice::{Receiving, Sending},
};
use proto::{
    doctor::{
        DoctorAnswer, DoctorRequest, Report,
        way::{ProbeFound, SessionFound},
    },
    wire::{Code, StreamHead},
};
use quinn::{ReadError, ReadExactError};
use serde::{Deserialize, Serialize};

use super::state::Up;
use crate::dial::plan::DialPlan;

/// How long the round trip is measured, and how often.
const PROBED: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_millis(100);
/// The box looks at itself meanwhile, and asks others.
const WITHIN: Duration = Duration::from_secs(8);

/// What a tunnel shows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Inspection {
    /// The tunnel.
    pub(crate) session: SessionFound,
    /// What the box says of itself; or what that would take.
    pub(crate) report: Result<Report, String>,
}

/// Looks at a tunnel. Takes a few seconds. Cancellation safe.
pub(crate) async fn inspect(up: &Up, plan: &DialPlan) -> Inspection {
    let bounded = |why: io::Error| needed(&why, up);
    let (probe, report) = tokio::join!(
        tokio::time::timeout(WITHIN, probe(up)),
        tokio::time::timeout(WITHIN, report(up)),
    );
    let late = || io::ErrorKind::TimedOut.into();
    let probe = probe.unwrap_or_else(|_| Err(late())).map_err(bounded);
    let report = report.unwrap_or_else(|_| Err(late())).map_err(bounded);
    // Before `carried` is locked: this locks it, too.
    let (protection, _) = up.redundancy_now();
    let carried = up.carried();
    let session = SessionFound {
        carrier: carried.route.carrier().to_owned(),
        remote: carried.route.to_string(),
        seconds: up.since.elapsed().unwrap_or_default().as_secs(),
        quiet_seconds: up.quiet_for().as_secs(),
        why_not_other: carried.why_not_the_other(plan),
        drops_ecn_marks: carried.drops_ecn_marks(),
        server_version: up.hello.version.clone(),
        mtu: up.connection.stats().path.current_mtu,
        batches_refused: carried.carrier.batches_refused(),
        redundancy_for_loss: protection.map(|protection| protection.loss),
        probe,
    };
    Inspection { session, report }
}

/// What it would take to have an answer.
fn needed(why: &io::Error, up: &Up) -> String {
    let code = match why.get_ref().and_then(|e| e.downcast_ref()) {
        Some(ReadExactError::ReadError(ReadError::Reset(code))) => {
            Code::from_number(code.into_inner())
        }
        _ => None,
    };
    match code {
        Some(Code::Protocol) => {
            format!("a newer aditd: version {} has no `doctor`", up.hello.version)
        }
        Some(code) => format!("a yes of the box, which said: {}", code.what()),
        None if why.kind() == io::ErrorKind::TimedOut => {
            format!("an answer of the box, which was silent for {} s", WITHIN.as_secs())
        }
        None => format!("a tunnel that stands ({why})"),
    }
}

/// A stream on which the box is asked.
struct BoxStream {
    send: Sending,
    recv: Receiving,
}

impl BoxStream {
    async fn open(up: &Up) -> io::Result<Self> {
        let (send, recv) = up.connection.open_bi().await?;
        let mut send = Sending::within(send, &up.credit);
        send.write_all(&StreamHead::Doctor.encode()).await?;
        Ok(Self { send, recv: Receiving::new(recv, &up.credit) })
    }

    async fn ask(&mut self, request: DoctorRequest) -> io::Result<DoctorAnswer> {
        let mut framed = Vec::new();
        frame::write(&mut framed, &request).await?;
        self.send.write_all(&framed).await?;
        frame::receive(&mut self.recv).await
    }
}

async fn report(up: &Up) -> io::Result<Report> {
    let mut asking = BoxStream::open(up).await?;
    let answer = asking.ask(DoctorRequest::Report).await?;
    asking.send.finish();
    match answer {
        DoctorAnswer::Report(report) => Ok(report),
        DoctorAnswer::Clock(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks the time again and again.
async fn probe(up: &Up) -> io::Result<ProbeFound> {
    let mut asking = BoxStream::open(up).await?;
    let packets = || {
        let path = up.connection.stats().path;
        (path.sent_packets, path.lost_packets)
    };
    // The first answer may come behind an outage, and with the losses of that time.
    asking.ask(DoctorRequest::Clock).await?;
    let (began, (sent, lost)) = (Instant::now(), packets());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut trips: Vec<(Duration, i64)> = Vec::new();
    while trips.is_empty() || began.elapsed() < PROBED {
        ticks.tick().await;
        let (asked, here) = (Instant::now(), unix_millis());
        let DoctorAnswer::Clock(there) = asking.ask(DoctorRequest::Clock).await? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let trip = asked.elapsed();
        // The server read its clock in the middle of the trip, as far as anybody can know.
        trips.push((trip, there.saturating_sub(here).saturating_sub(trip.as_millis() as i64 / 2)));
    }
    asking.send.finish();
    let (sent_by_now, lost_by_now) = packets();
    trips.sort_unstable();
    let milliseconds = |at: usize| trips[at].0.as_secs_f64() * 1e3;
    Ok(ProbeFound {
        shortest: milliseconds(0),
        middle: milliseconds(trips.len() / 2),
        longest: milliseconds(trips.len() - 1),
        // Another path begins anew.
        sent: sent_by_now.saturating_sub(sent),
        lost: lost_by_now.saturating_sub(lost),
        // The shortest trip says most exactly when the clock was read.
        ahead: trips[0].1,
        now: unix_millis() / 1000,
    })
}
