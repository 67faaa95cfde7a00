//! The line of a request.

use std::net::SocketAddr;

use proto::identity::Name;
use serde::Serialize;

use super::{
    line::{escaped, ms},
    subject::Subject,
};
use crate::record::{End, RequestRecord, charge::Charge};

/// A request, as the log writes it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RequestEntry {
    #[serde(flatten)]
    device: Subject,
    /// Its number among the requests of its process that were let pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<u64>,
    role: Name,
    service: Name,
    carrier: &'static str,
    remote: SocketAddr,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    queued_ms: f64,
    first_byte_ms: Option<f64>,
    total_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_out: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tokens_estimated: bool,
    end: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
}

impl RequestEntry {
    /// A request that has ended, and what it was charged.
    pub(super) fn new(record: &RequestRecord, charge: &Charge) -> Self {
        Self {
            device: (&record.asker).into(),
            request: record.number,
            role: record.role.clone(),
            service: record.service.clone(),
            carrier: record.asker.carrier.as_str(),
            remote: record.asker.remote,
            method: escaped(&record.method),
            path: escaped(&record.path),
            model: record.model.as_deref().map(escaped),
            status: record.status,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            queued_ms: ms(record.queued),
            first_byte_ms: record.first_byte.map(ms),
            total_ms: ms(record.total),
            tokens_in: charge.read,
            tokens_out: charge.written,
            tokens_estimated: charge.is_estimated,
            end: record.end.as_str(),
            why: match record.end {
                End::Refused(why) => Some(why.as_str()),
                _ => None,
            },
        }
    }
}
