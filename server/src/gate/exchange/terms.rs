//! What the machine of an exchange is told, and what it says.

use bytes::Bytes;
use proto::{http1::framing::Body, wire::Code};

use crate::{
    gate::refused::Refused,
    record::{self, NotNow},
};

/// The most chunks that are forwarded at once.
pub(in crate::gate) const BATCH: usize = 16;

/// What has happened.
#[derive(Debug)]
pub(in crate::gate) enum Event<'a> {
    /// The device has sent these bytes. The machine takes them all.
    Device(&'a mut Vec<Bytes>),
    /// The device has ended its direction (FIN).
    DeviceEnded,
    /// The device has reset its direction (RST), with this code.
    DeviceReset(u64),
    /// The connection to the device is lost, and all that had come from it has been handed over.
    DeviceLost,
    /// The device takes no more of the answer.
    AnswerRefused,
    /// The connection to the device is lost, as far as the answer is concerned. Bytes that came
    /// before may still be there.
    AnswerLost,
    /// What was to be forwarded has left.
    Forwarded,
    /// What was to be delivered has left.
    Delivered,
    /// The service has sent these bytes.
    Service(&'a [u8]),
    /// The service has ended its direction (FIN).
    ServiceEnded,
    /// The service has reset its connection (RST).
    ServiceReset,
    /// The service takes no more.
    ServiceRefused,
    /// It is the request's turn; or it gets none.
    Turn(Result<(), NotNow>),
    /// The policy has changed, and the request may not pass any more.
    Overruled(Refused),
    /// A limit is reached while the answer runs. `line` is the last line of an answer that has
    /// begun, `refused` what is told instead of one that has not.
    Limit { line: Vec<u8>, refused: Refused },
    /// The server is to stop.
    Draining,
}

/// What is to be done, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::gate) struct Actions {
    /// The request joins the queue, or leaves it.
    pub(in crate::gate) queue: Option<Queue>,
    /// The service has no more to do for this request: its turn is over.
    pub(in crate::gate) release: bool,
    /// Sends these bytes to the service. [`Event::Forwarded`] follows.
    pub(in crate::gate) forward: Vec<Bytes>,
    /// Ends the direction to the service (FIN).
    pub(in crate::gate) finish_service: bool,
    /// Sends bytes to the device. [`Event::Delivered`] follows.
    pub(in crate::gate) deliver: Option<Deliver>,
    /// Ends the direction to the device (FIN).
    pub(in crate::gate) finish_device: bool,
    /// The exchange is over.
    pub(in crate::gate) end: Option<Ending>,
}

/// What becomes of the request's wish for a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum Queue {
    /// It waits for its turn.
    Join,
    /// It needs none any more.
    Leave,
}

/// Bytes for the device: `held`, and then those of the event from `from` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) struct Deliver {
    pub(in crate::gate) held: &'static [u8],
    pub(in crate::gate) from: usize,
}

/// How an exchange ends.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::gate) enum Ending {
    /// In order: the next request may come.
    Next(record::End),
    /// The device is told why it gets no answer.
    Tell(Refused),
    /// The device gets these bytes, the last of its answer, and the service is told to stop.
    Last(Vec<u8>, record::End),
    /// The answer has begun: it is cut with this code.
    Cut(Code, record::End),
    /// The connection ends.
    Close(How, record::End),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum How {
    /// Both directions came to their ends.
    Done,
    /// Likewise, but the device takes no more of the answer.
    Stopped,
    /// The server is to stop, or nobody waits any more: both directions are ended in order.
    Drained,
    /// The service has reset its connection or takes no more.
    Aborted,
    /// The device has reset its direction.
    Reset(u64),
    /// The connection to the device is lost.
    Lost,
}

/// What the machine wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) struct Wants {
    /// Bytes of the service. Otherwise only its reset is looked for.
    pub(in crate::gate) service: bool,
    /// Whether the device still takes the answer.
    pub(in crate::gate) device_takes: bool,
    /// What comes from the device.
    pub(in crate::gate) device: Device,
    /// The request's turn.
    pub(in crate::gate) turn: bool,
}

/// What is to be read from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum Device {
    /// Nothing: it has ended, and has been heard.
    Nothing,
    /// Whatever comes.
    Read,
    /// So many bytes at the most.
    Ahead(usize),
    /// Nothing but a reset, while the service takes what is forwarded.
    Reset,
    /// Nothing but a reset or the loss of the connection: enough has been read ahead.
    Loss,
}

/// A request that may pass.
pub(in crate::gate) struct Request {
    /// What has been read of it: head, and body as far as it had to be read.
    pub(in crate::gate) begun: Vec<Bytes>,
    /// The rest of its body.
    pub(in crate::gate) body: Body,
    /// The most bytes that its body may have.
    pub(in crate::gate) most_body: Option<u64>,
    /// Whether it needs a turn at the service, and when it waits for it.
    pub(in crate::gate) turn: Turn,
    /// Whether an application that ends its direction gives the answer up.
    pub(in crate::gate) ends_with_device: bool,
}

/// When a request waits for its turn at the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum Turn {
    /// It needs none.
    None,
    /// Before anything of it leaves. Nobody waits long: nothing is kept back.
    First,
    /// When it is whole. What would let the service begin is kept back until then.
    Whole,
}
