//! What an API call answers that fails: a status and `{"error": {"what", "causes", "hints"}}`.

use common::machine::report::{Exit, Failure};
use hyper::StatusCode;

use crate::state::{
    register::{DeviceError, KeyError, RegisterError, UserError},
    rotation::CaError,
};

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) status: StatusCode,
    pub(super) why: Failure,
}

impl Failed {
    /// A call that asks for something impossible.
    pub(super) fn bad(why: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    pub(super) fn new(status: StatusCode, why: impl std::fmt::Display) -> Self {
        Self { status, why: Failure::new(why) }
    }
}

impl From<Failure> for Failed {
    fn from(why: Failure) -> Self {
        let status = match why.exit_code() {
            Exit::Usage => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, why }
    }
}

impl From<CaError> for Failed {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Conflict(why) => Self { status: StatusCode::CONFLICT, why },
            CaError::Failed(why) => why.into(),
        }
    }
}

impl From<RegisterError> for Failed {
    fn from(error: RegisterError) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, why: error.into() }
    }
}

impl From<DeviceError> for Failed {
    fn from(error: DeviceError) -> Self {
        let status = match &error {
            DeviceError::Unknown { .. } => StatusCode::NOT_FOUND,
            DeviceError::Register(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        Self { status, why: error.into() }
    }
}

impl From<UserError> for Failed {
    fn from(error: UserError) -> Self {
        let status = match &error {
            UserError::Unknown { .. } => StatusCode::NOT_FOUND,
            UserError::Register(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        Self { status, why: error.into() }
    }
}

impl From<KeyError> for Failed {
    fn from(error: KeyError) -> Self {
        let status = match &error {
            KeyError::Unknown { .. } => StatusCode::NOT_FOUND,
            KeyError::Register(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        Self { status, why: error.into() }
    }
}
