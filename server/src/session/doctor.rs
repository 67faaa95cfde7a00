//! Answers what `adit doctor` asks in a session.

use common::{
    machine::process::unix_millis,
    transport::{
        frame,
        splice::{Receiving, Sending},
    },
};
use proto::{
    doctor::{DoctorAnswer, DoctorRequest},
    wire::Code,
};
use quinn::ReadExactError;

use super::Session;
use crate::doctor;

/// How many questions a stream may have.
const MOST_QUESTIONS: usize = 64;

impl Session {
    /// Answers what `adit doctor` asks, as far as this device may know it.
    pub(super) async fn answer_doctor(
        &self,
        send: &mut Sending,
        recv: &mut Receiving,
    ) -> Result<(), Code> {
        if self.is_expired() {
            return Err(Code::Expired);
        }
        let _slot = self.slots.try_acquire().map_err(|_| Code::TooManyStreams)?;
        for _ in 0..MOST_QUESTIONS {
            let Some(asked) = next_question(recv).await? else {
                send.finish();
                return Ok(());
            };
            // Asked for each answer: a revocation counts at once.
            let device = self.server.policy.admit(&self.peer)?;
            let answer = match asked {
                DoctorRequest::Clock => DoctorAnswer::Clock(unix_millis()),
                DoctorRequest::Report => {
                    DoctorAnswer::Report(doctor::for_device(&self.server, device.id).await)
                }
            };
            let mut framed = Vec::new();
            frame::write(&mut framed, &answer).await.map_err(|_| Code::Busy)?;
            send.write_all(&framed).await.map_err(|_| Code::Cut)?;
        }
        Err(Code::Busy)
    }
}

/// The next question on a stream; `None` at its end.
async fn next_question(recv: &mut Receiving) -> Result<Option<DoctorRequest>, Code> {
    match frame::receive(recv).await {
        Ok(asked) => Ok(Some(asked)),
        Err(e) => match e.get_ref().and_then(|e| e.downcast_ref()) {
            Some(ReadExactError::FinishedEarly(0)) => Ok(None),
            Some(_) => Err(Code::Cut),
            None => Err(Code::Protocol),
        },
    }
}
