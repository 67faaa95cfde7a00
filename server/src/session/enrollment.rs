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
    device_key::{KEY_IN_FILE, KeyStorage},
    failure::in_one_line,
    identity::{KeyHash, Name, UserName},
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
        register::{
            Device, DeviceError, Invited, Register, RegisterError, SignedIn, User, default_role,
        },
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
    /// Its key is in a file, and devices with this role must keep theirs in hardware.
    #[error("devices with the role `{0}` {KEY_IN_FILE}")]
    KeyInFile(Name),
    /// No certificate could be made.
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
}

/// What a device asks for.
pub(crate) struct EnrollingKey<'a> {
    /// Its signing request (PKCS #10, DER).
    pub(crate) csr: &'a [u8],
    /// How it keeps its key, as it says.
    pub(crate) storage: KeyStorage,
}

/// Enrolls the device with this key.
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
    key: EnrollingKey<'_>,
) -> Result<Enrolled, NotEnrolled> {
    let (by, mut name) = (claim.by(), None);
    let result = claim.run(server, key, &mut name).await;
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
        EnrollingKey { csr, storage }: EnrollingKey<'_>,
        name: &mut Option<Name>,
    ) -> Result<Enrolled, NotEnrolled> {
        let key = DeviceKey::from_csr(csr)?;
        server.state.authorities.get().check_clock(unix_now())?;
        let question = self.question(server).await?;
        *name = Some(question.device.clone());
        if !storage.is_hardware() {
            // `authorize` is not asked about a device that is refused anyway.
            let (claim, hash, user) = (self.clone(), key.hash, question.user.clone());
            let role = server.in_register(move |at| claim.role(at, hash, user.as_ref())).await;
            refuse_file(server, role.map_err(DeviceError::Register)?)?;
        }
        let person = question.user.clone();
        if let Some(authority) = server.gate.authority() {
            authority.ask(question).await?;
        }
        let at = server.clone();
        // A blocking task always runs to its end, so the audit log has everything that the register
        // has.
        let made =
            tokio::task::spawn_blocking(move || self.put_in(&at, &key, storage, person.as_ref()));
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

    /// The role that the device has or gets; `None` if the code has ended. `person` is who logs in.
    /// Blocks.
    fn role(
        &self,
        register: &Register,
        key: KeyHash,
        person: Option<&UserName>,
    ) -> Result<Option<Name>, RegisterError> {
        let known = match self {
            Self::Invitation { token, .. } => {
                return Ok(register.invited(token, unix_now())?.map(|invited| invited.role));
            }
            Self::SignIn { person: signed_in, .. } => match &signed_in.role {
                Some(role) => return Ok(Some(role.clone())),
                None => register.role_for(key, Some(&signed_in.user), |_| true)?,
            },
            Self::User { user, name } => {
                register.role_for(key, person, |device| device.is_enrolled_as(name, *user))?
            }
        };
        Ok(Some(known.unwrap_or_else(default_role)))
    }

    /// Registers the device, notes it and signs its certificate, by the CA that is returned. `person`
    /// is who logs in. Blocks.
    fn put_in(
        self,
        server: &Server,
        key: &DeviceKey,
        storage: KeyStorage,
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
        if !storage.is_hardware() {
            // The role may have changed while `authorize` was asked. A device that is refused leaves no
            // trace, and its code can still be used.
            let role = self.role(register, key.hash, person).map_err(DeviceError::Register)?;
            refuse_file(server, role)?;
        }
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
        if device.key_storage != storage {
            register.keeps_key(device.id, storage).map_err(DeviceError::Register)?;
        }
        let issued = ca.issue_device(device.id, key, now, life)?;
        Ok((device, issued, authority.clone()))
    }
}

/// Refuses a key in a file, if the role wants hardware.
fn refuse_file(server: &Server, role: Option<Name>) -> Result<(), NotEnrolled> {
    match role.filter(|role| server.policy.rules().wants_hardware_key(role)) {
        Some(role) => Err(NotEnrolled::KeyInFile(role)),
        None => Ok(()),
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
            // Told as a failure.
            Self::KeyInFile(_) => EnrollRefusal::NotAllowed,
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
            NotEnrolled::KeyInFile(_) => Self::from_error(why)
                .hint("make the key in hardware: add `--key tpm` or `--key 'pkcs11:token=LABEL'` to `adit enroll`; see docs/hardware-keys.md")
                .exit(Exit::NotAllowed),
            other => Self::from_error(other),
        }
    }
}

/// What the person at a new device is told of a name that it can't have.
pub(super) fn name_refused(error: DeviceError) -> Failure {
    const OTHER: &str = "choose another name: run the same command again with `--device NAME`";
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
