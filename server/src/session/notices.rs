//! What the server sends on the stream of its greeting: answers to probes, that it drains, that
//! another process has replaced this one, and that the device has to renew its certificate.
//!
//! One task owns the stream. A device that sends probes and does not read the answers fills its own
//! flow-control window and blocks only that task.

use std::{sync::Arc, time::Duration};

use common::transport::frame;
use proto::wire::Notice;
use quinn::{RecvStream, SendStream};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::debug;

/// How long the notice of draining may take. A device that reads gets it within this time.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// The notices of one session. They end when this is dropped.
pub(super) struct Notices {
    told: watch::Receiver<bool>,
    moved: watch::Receiver<bool>,
    _answering: AbortOnDropHandle<()>,
    _writing: AbortOnDropHandle<()>,
}

impl Notices {
    /// Answers the probes that arrive on `probes`, and sends a notice when `replaced` or `draining`
    /// is cancelled, and each time that `renew` is woken.
    pub(super) fn start(
        stream: SendStream,
        probes: RecvStream,
        replaced: CancellationToken,
        draining: CancellationToken,
        renew: Arc<Notify>,
    ) -> Self {
        let (tell, told) = watch::channel(false);
        let (note, moved) = watch::channel(false);
        let probed = Arc::new(Notify::new());
        let answering = tokio::spawn(hear_probes(probes, probed.clone(), note));
        let writing = tokio::spawn(async move {
            if let Err(e) = write_notices(stream, &probed, &renew, [replaced, draining], tell).await
            {
                debug!("no more notices: {e}");
            }
        });
        Self {
            told,
            moved,
            _answering: AbortOnDropHandle::new(answering),
            _writing: AbortOnDropHandle::new(writing),
        }
    }

    /// Returns when the device was told that the server drains, or after a second.
    pub(super) async fn draining_is_told(&self) {
        let mut told = self.told.clone();
        let _ = tokio::time::timeout(TOLD_WITHIN, told.wait_for(|told| *told)).await;
    }

    /// Returns when the device has ended the stream of its probes: it has another session, and opens
    /// no more streams in this one.
    pub(super) async fn device_moved(&self) {
        if self.moved.clone().wait_for(|moved| *moved).await.is_err() {
            // The stream was reset, or the connection is over.
            std::future::pending().await
        }
    }
}

/// A probe only asks whether the server is there. Several that arrive at once get one answer.
async fn hear_probes(mut probes: RecvStream, probed: Arc<Notify>, moved: watch::Sender<bool>) {
    loop {
        match probes.read_chunk(1 << 16, true).await {
            Ok(Some(_)) => probed.notify_one(),
            Ok(None) => {
                moved.send_replace(true);
                return std::future::pending().await;
            }
            Err(_) => return,
        }
    }
}

async fn write_notices(
    mut stream: SendStream,
    probed: &Notify,
    renew: &Notify,
    [replaced, draining]: [CancellationToken; 2],
    tell: watch::Sender<bool>,
) -> std::io::Result<()> {
    let mut said = false;
    loop {
        tokio::select! {
            biased;
            () = replaced.cancelled(), if !said => {
                frame::write(&mut stream, &Notice::Replaced).await?;
                said = true;
            }
            () = draining.cancelled(), if !*tell.borrow() => {
                frame::write(&mut stream, &Notice::Draining).await?;
                tell.send_replace(true);
            }
            () = renew.notified() => frame::write(&mut stream, &Notice::Renew).await?,
            () = probed.notified() => frame::write(&mut stream, &Notice::Here).await?,
        }
    }
}
