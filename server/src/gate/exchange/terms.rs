//! The events and actions of an exchange.

use bytes::Bytes;
use proto::{
    http1::{framing::Body, response::AddedFields},
    wire::Code,
};

use crate::{
    gate::refused::Refused,
    record::{self, NotNow, QueueWait},
};

/// The most chunks that are forwarded in one write.
pub(in crate::gate) const BATCH: usize = 16;

/// What has happened.
#[derive(Debug)]
pub(in crate::gate) enum ExchangeEvent<'a> {
    /// The device has sent these bytes. The machine takes all of them.
    Device(&'a mut Vec<Bytes>),
    /// The device has ended its direction (FIN).
    DeviceEnded,
    /// The device has reset its direction (RST), with this code.
    DeviceReset(u64),
    /// The connection to the device is lost, and all bytes that had come from it were handed over.
    DeviceLost,
    /// The device does not accept more of the answer.
    AnswerRefused,
    /// The connection to the device is lost for the answer. Received bytes may still be waiting.
    AnswerLost,
    /// The bytes to forward were written.
    Forwarded,
    /// The bytes to deliver were written.
    Delivered,
    /// The service has sent these bytes.
    Service(&'a [u8]),
    /// The service has ended its direction (FIN).
    ServiceEnded,
    /// The service has reset its connection (RST).
    ServiceReset,
    /// The service does not accept more.
    ServiceRefused,
    /// The request has its turn after this wait, or gets none.
    Turn(Result<QueueWait, NotNow>),
    /// The policy has changed, and the request may not pass any more.
    Overruled(Refused),
    /// A limit was reached while the answer runs. `line` is the last line for an answer that has
    /// begun, `refused` the answer if none has begun.
    Limit { line: Vec<u8>, refused: Refused },
    /// The server is stopping.
    Draining,
}

/// What is to be done, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::gate) struct Actions {
    /// The request joins the queue, or leaves it.
    pub(in crate::gate) queue: Option<QueueChange>,
    /// The service has finished with this request: its turn is over.
    pub(in crate::gate) release: bool,
    /// Sends these bytes to the service. [`ExchangeEvent::Forwarded`] follows.
    pub(in crate::gate) forward: Vec<Bytes>,
    /// Ends the direction to the service (FIN).
    pub(in crate::gate) finish_service: bool,
    /// Sends bytes to the device. [`ExchangeEvent::Delivered`] follows.
    pub(in crate::gate) deliver: Option<Deliver>,
    /// Ends the direction to the device (FIN).
    pub(in crate::gate) finish_device: bool,
    /// The exchange is over: the service had most likely ended the connection before the request
    /// came, and the request is sent on another one.
    pub(in crate::gate) again: bool,
    pub(in crate::gate) end: Option<Ending>,
}

/// Whether the request waits in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum QueueChange {
    Join,
    Leave,
}

/// Bytes for the device: `held`, and then the bytes of the event from `from` on.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::gate) struct Deliver {
    pub(in crate::gate) held: Bytes,
    pub(in crate::gate) from: usize,
}

/// How an exchange ends.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::gate) enum Ending {
    /// In order: the next request may follow.
    Next(record::End),
    /// The device is told why it gets no answer.
    Tell(Refused),
    /// The device gets these bytes as the last of its answer, and the connection to the service is
    /// closed.
    Last(Vec<u8>, record::End),
    /// The answer has begun: it is cut with this code.
    Cut(Code, record::End),
    Close(How, record::End),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum How {
    /// Both directions have ended.
    Done,
    /// Both directions have ended, but the device did not accept all of the answer.
    Stopped,
    /// The server is stopping, or the client has given up: both directions are ended in order.
    Drained,
    /// The service has reset its connection or accepts no more.
    Aborted,
    Reset(u64),
    Lost,
}

/// The events that the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) struct Wants {
    /// Bytes of the service. If false, only its reset is watched for.
    pub(in crate::gate) service: bool,
    /// The device's STOP_SENDING (it does not accept the answer).
    pub(in crate::gate) device_takes: bool,
    /// Bytes from the device.
    pub(in crate::gate) device: DeviceRead,
    pub(in crate::gate) turn: bool,
}

/// What is to be read from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum DeviceRead {
    /// Nothing: it has ended.
    Nothing,
    Read,
    /// At most this many bytes.
    Ahead(usize),
    /// Only a reset, while bytes are forwarded to the service.
    Reset,
    /// Only a reset or the loss of the connection: enough was read ahead.
    Loss,
}

/// A request that may pass.
pub(in crate::gate) struct ForwardedRequest {
    /// The head, and as much of the body as had to be read.
    pub(in crate::gate) begun: Vec<Bytes>,
    /// The rest of its body.
    pub(in crate::gate) body: Body,
    /// The most bytes that its body may have.
    pub(in crate::gate) most_body: Option<u64>,
    /// Whether it needs a turn at the service, and at which point it waits for it.
    pub(in crate::gate) turn: TurnPoint,
    /// The field that is added to its answer, if that says how it has waited in the queue.
    pub(in crate::gate) added: Option<AddedFields>,
    /// Whether an application that sends FIN gives the answer up.
    pub(in crate::gate) ends_with_device: bool,
    /// Whether it is sent again if the connection ends before a byte of the answer: an earlier
    /// request was answered on it, and repeating this one is safe.
    pub(in crate::gate) may_repeat: bool,
}

/// At which point a request waits for its turn at the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) enum TurnPoint {
    /// It needs no turn.
    None,
    /// Before any of it is forwarded. The wait is short: nothing is kept back.
    First,
    /// When it is whole. The bytes that would let the service begin are kept back until then.
    Whole,
}
