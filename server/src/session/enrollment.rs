//! How a device is enrolled, in every case: authorize, register, note in the audit log, sign,
//! refresh. The cases (an invitation, a sign-in, the owner over SSH, a member of the enroll group over
//! SSH) differ only in their [`Claim`].

use std::{net::SocketAddr, sync::Arc};

use common::machine::{
    process::unix_now,
    report::{Exit, Failure},
};
use data_encoding::BASE64;
use proto::{
    failure::in_one_line,
    identity::{Name, UserName},
    rotation::CaNumber,
    wire::{EnrollRefusal, Enrolled},
};
use time::OffsetDateTime;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    audit::{Event, entry::EnrolledBy},
    outside,
    policy::authorize::{AuthorizeError, How, Question},
    running::Server,
    state::{
        authorities::Authority,
        ca::{ClockError, CsrError, DeviceKey, Issued},
        register::{Device, DeviceError, Invited, SignedIn, User, default_role},
    },
};

/// The right by which a device is enrolled.
#[derive(Clone)]
pub(crate) enum Claim {
    /// The device has the token of an invitation.
    Invitation {
        /// The token, which is derived from the invitation's secret.
        token: Zeroizing<Vec<u8>>,
        /// The address of the device.
        from: SocketAddr,
        /// The CA whose hash is in the code. The device accepts no other now.
        ca: CaNumber,
    },
    /// A person has signed in at the provider, and the code opens sign-ins.
    SignIn {
        /// The token of the code.
        token: Zeroizing<Vec<u8>>,
        /// The address of the device.
        from: SocketAddr,
        /// As above.
        ca: CaNumber,
        /// The name that the person has chosen.
        name: Name,
        person: Box<SignedIn>,
    },
    /// A user of this machine enrolls it, authenticated by sshd.
    User {
        user: User,
        /// The name that the user has chosen.
        name: Name,
    },
}

/// Why a device was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum NotEnrolled {
    /// Its signing request can't be parsed, or has a wrong signature.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// The server's clock is certainly wrong.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The invitation is used or expired.
    #[error(transparent)]
    Invitation(EnrollRefusal),
    /// `authorize` refused it, or could not be asked.
    #[error(transparent)]
    Authorize(#[from] AuthorizeError),
    /// The name is not available, or the register can't be written.
    #[error(transparent)]
    Register(#[from] DeviceError),
    /// No certificate could be made.
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
}

/// Enrolls the device with this signing request (PKCS #10, DER).
///
/// # Errors
/// Nothing has changed then, except after [`NotEnrolled::Sign`]: the device is in the register, and
/// the same key gets its certificate at the next attempt.
///
/// # Cancel safety
/// If the device is in the register, its line is in the audit log, even if this future is dropped.
pub(crate) async fn enroll(
    server: &Arc<Server>,
    claim: Claim,
    csr: &[u8],
) -> Result<Enrolled, NotEnrolled> {
    let (by, mut name) = (claim.by(), None);
    let result = claim.run(server, csr, &mut name).await;
    match &result {
        Ok(enrolled) => info!(device = %enrolled.device, id = %enrolled.device_id, ?by, "enrolled"),
        Err(why) => {
            warn!(?by, "an enrollment was refused: {}", in_one_line(why));
            let why = why.to_string();
            server.accounting.audit.note(Event::EnrollRefused { device: name, by, why });
        }
    }
    result
}

impl Claim {
    fn by(&self) -> EnrolledBy {
        match self {
            Self::Invitation { from, .. } => EnrolledBy::Invitation(*from),
            Self::SignIn { from, .. } => EnrolledBy::Sso(*from),
            Self::User { user, .. } => EnrolledBy::Ssh(user.uid),
        }
    }

    /// `name` is set as soon as it is known.
    async fn run(
        self,
        server: &Arc<Server>,
        csr: &[u8],
        name: &mut Option<Name>,
    ) -> Result<Enrolled, NotEnrolled> {
        let key = DeviceKey::from_csr(csr)?;
        server.state.authorities.get().check_clock(unix_now())?;
        let question = self.question(server).await?;
        *name = Some(question.device.clone());
        let person = question.user.clone();
        if let Some(authority) = server.gate.authority() {
            authority.ask(question).await?;
        }
        let at = server.clone();
        // A blocking task always runs to its end, so the audit log has everything that the register
        // has.
        let made = tokio::task::spawn_blocking(move || self.put_in(&at, &key, person.as_ref()));
        let made = made.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let (device, issued, authority) = made?;
        // The device connects as soon as it has its certificate, and the policy must know it by
        // then. If the register can't be read now, that is logged, and the server reads it again
        // later.
        let _ = server.refresh().await;
        Ok(Enrolled {
            device: device.name,
            device_id: device.id,
            certificate: BASE64.encode(&issued.certificate),
            ca: BASE64.encode(authority.certificate()),
            knock_key: authority.knock_key(device.id, device.key),
            addresses: server.addresses(),
            services: server.policy.services_of(&device.role),
            relay_port: server.open.relay,
        })
    }

    /// The question to `authorize`.
    async fn question(&self, server: &Server) -> Result<Question, NotEnrolled> {
        match self {
            Self::User { user, name } => Ok(Question::enrolling(
                name.clone(),
                How::Ssh,
                Some(user.uid),
                Some(user_of_login(user.uid).await),
                default_role(),
            )),
            Self::SignIn { name, person, .. } => Ok(Question::enrolling(
                name.clone(),
                How::Sso,
                None,
                Some(person.user.clone()),
                person.role.clone().unwrap_or_else(default_role),
            )),
            Self::Invitation { token, .. } => {
                let token = token.clone();
                let invited =
                    server.in_register(move |register| register.invited(&token, unix_now())).await;
                let Invited { name, role, user, sso, .. } = invited
                    .map_err(DeviceError::Register)?
                    .ok_or(NotEnrolled::Invitation(EnrollRefusal::Closed))?;
                if sso {
                    return Err(NotEnrolled::Invitation(EnrollRefusal::SignIn));
                }
                Ok(Question::enrolling(name, How::Code, None, user, role))
            }
        }
    }

    /// Registers the device, notes it and signs its certificate, by the CA that is returned. `person`
    /// is who logs in. Blocks.
    fn put_in(
        self,
        server: &Server,
        key: &DeviceKey,
        person: Option<&UserName>,
    ) -> Result<(Device, Issued, Arc<Authority>), NotEnrolled> {
        let by = self.by();
        let now = OffsetDateTime::now_utc();
        let life = server.life_of(matches!(self, Self::SignIn { .. }));
        let now_unix = now.unix_timestamp();
        let not_after = (now + life).unix_timestamp();
        let register = &server.state.register;
        let authorities = server.state.authorities.get();
        let current = (authorities.current(), authorities.signing());
        let (authority, ca) = match &self {
            Self::Invitation { ca, .. } | Self::SignIn { ca, .. } => authorities
                .get(*ca)
                .and_then(|authority| Some((authority, authority.ca()?)))
                .ok_or(NotEnrolled::Invitation(EnrollRefusal::Closed))?,
            Self::User { .. } => current,
        };
        let device = match self {
            Self::Invitation { token, .. } => register
                .redeem(&token, key.hash, not_after, now_unix)
                .map_err(DeviceError::Register)?
                .map_err(NotEnrolled::Invitation)?,
            Self::SignIn { token, name, person, .. } => register
                .enroll_signed_in(&token, &name, &person, key.hash, not_after, now_unix)?
                .map_err(NotEnrolled::Invitation)?,
            Self::User { user, name } => {
                register.enroll(&name, user, person, key.hash, not_after, now_unix)?
            }
        };
        server.accounting.audit.note(Event::Enroll { device: device.subject(), by });
        if device.ca != authority.number {
            // Its code is older than a rotation, or the same device enrolls again.
            register.has_ca(device.id, authority.number).map_err(DeviceError::Register)?;
        }
        let issued = ca.issue_device(device.id, key, now, life)?;
        Ok((device, issued, authority.clone()))
    }
}

impl NotEnrolled {
    /// What a device with an invitation is told: only what it needs.
    pub fn refusal(&self) -> EnrollRefusal {
        match self {
            Self::Request(_) => EnrollRefusal::BadRequest,
            Self::Clock(ClockError { now, .. }) => EnrollRefusal::Clock { shows: *now },
            Self::Invitation(why) => *why,
            Self::Authorize(AuthorizeError::No(_)) => EnrollRefusal::NotAllowed,
            Self::Authorize(AuthorizeError::Failed(_)) => EnrollRefusal::NotAsked,
            Self::Register(_) | Self::Sign(_) => EnrollRefusal::ServerFailed,
        }
    }
}

/// The person who logs in as this user of this machine: by the login's name, or by its number if that
/// name is unknown or can't be a user's name.
async fn user_of_login(uid: u32) -> UserName {
    let named = outside::login(uid).await.and_then(|name| name.parse().ok());
    named.unwrap_or_else(|| format!("uid-{uid}").parse().expect("a user's name"))
}

/// What a user of this machine is told. The reader is at the device, where names are chosen.
impl From<NotEnrolled> for Failure {
    fn from(why: NotEnrolled) -> Self {
        match why {
            NotEnrolled::Register(why) => name_refused(why),
            NotEnrolled::Authorize(why) => why.into(),
            NotEnrolled::Clock(why) => why.into(),
            other => Self::from_error(other),
        }
    }
}

fn name_refused(error: DeviceError) -> Failure {
    const OTHER: &str = "choose another name: add `--device NAME` to `adit enroll`";
    let frees = match &error {
        DeviceError::NameTaken(name) => {
            format!(
                "if this computer is to replace `{name}`, the owner of the server frees the name: `aditd device revoke {name}` and `aditd device forget {name}`"
            )
        }
        DeviceError::NameOfRevoked(name) => {
            format!(
                "if this computer is to replace `{name}`, the owner of the server frees the name: `aditd device forget {name}`"
            )
        }
        DeviceError::NameOfAnother { name, .. } => {
            format!(
                "if the name should be yours, the owner of the server runs `aditd device forget {name} --free-name`"
            )
        }
        DeviceError::NameInvited(name) => {
            format!(
                "use its code; or the owner of the server withdraws it: `aditd device revoke {name}`"
            )
        }
        DeviceError::LooksLikeId(_) => {
            return Failure::from_error(error).hint(OTHER).exit(Exit::Usage);
        }
        _ => return error.into(),
    };
    Failure::from_error(error).hint(format!("{OTHER}; or, {frees}"))
}
