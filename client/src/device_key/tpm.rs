//! A key in a TPM 2.0. It is a primary key: the TPM derives it from its own secret and from 64 random
//! bytes of the profile, anew for each use, and keeps nothing. Those bytes are useless at another TPM.

use std::{
    fs::OpenOptions,
    io::{self, ErrorKind, Read, Write},
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
    time::Duration,
};

use aws_lc_rs::rand;
use data_encoding::BASE64;
use tpm2_protocol::{
    TpmError, TpmWriter,
    basic::TpmHandle,
    constant::TPM_MAX_COMMAND_SIZE,
    data::{
        Tpm2bDigest, Tpm2bEccParameter, Tpm2bPublic, TpmAlgId, TpmEccCurve, TpmRc, TpmRcBase,
        TpmRh, TpmSt, TpmaObject, TpmsAuthCommand, TpmsEccParms, TpmsEccPoint, TpmsSchemeHash,
        TpmtEccScheme, TpmtKdfScheme, TpmtPublic, TpmtSigScheme, TpmtSymDefObject, TpmtTkHashcheck,
        TpmuAsymScheme, TpmuPublicId, TpmuPublicParms, TpmuSignature,
    },
    frame::{
        TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmFlushContextCommand, TpmFrame,
        TpmResponse, TpmSignCommand, TpmSignResponse, TpmUnmarshalBody, tpm_marshal_command,
    },
};
use zeroize::Zeroizing;

use super::{
    ecdsa::{Point, Signature},
    error::KeyError,
};

/// The length of a coordinate of P-256, in bytes.
const HALF: usize = 32;
/// The head of a response (TPM 2.0 part 1 section 18.2): its tag, its length and its code.
const HEAD: usize = 10;
/// A socket stands for a TPM in tests and in virtual machines, and may be silent: so long its thread
/// waits. Whoever waits for the thread gives up earlier.
const WITHIN: Duration = Duration::from_secs(60);
/// How often a command is sent at most, if the TPM wants it again, and the pause between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// What makes a profile's key another one than all others of the same TPM.
#[derive(Clone)]
pub(crate) struct Seed(Zeroizing<[u8; 2 * HALF]>);

impl Seed {
    /// A new one.
    pub(crate) fn new() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 2 * HALF]);
        rand::fill(&mut *bytes).map_err(|e| KeyError::unusable(&e))?;
        Ok(Self(bytes))
    }

    /// In base64.
    pub(crate) fn to_text(&self) -> String {
        BASE64.encode(&*self.0)
    }

    /// What [`Seed::to_text`] has made.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64.decode(text.as_bytes()).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }
}

/// The TPM behind a character device or a socket, and the key in it.
pub(super) struct Tpm {
    path: String,
    seed: Seed,
}

/// Why a command was not done.
enum Failed {
    Io(io::Error),
    /// The TPM has refused it.
    Refused(TpmRc),
    /// Its answer cannot be read.
    Nonsense(TpmError),
    /// The path leads to something else, which stays as it is.
    NoTpm,
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<TpmError> for Failed {
    fn from(e: TpmError) -> Self {
        Self::Nonsense(e)
    }
}

trait Channel: Read + Write {}
impl<T: Read + Write> Channel for T {}

impl Tpm {
    pub(super) fn new(path: &str, seed: Seed) -> Self {
        Self { path: path.to_owned(), seed }
    }

    /// The public key. Blocks.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn make(&self) -> Result<Point, KeyError> {
        self.with_key(|_, _, point| Ok(point))
    }

    /// Makes sure that the TPM has the key with this public key. Blocks.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn open(&self, expected: &Point) -> Result<(), KeyError> {
        let found = self.make()?;
        self.must_be(found, expected)
    }

    /// Signs a SHA-256 hash. Blocks.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn sign(&self, expected: &Point, digest: &[u8; 32]) -> Result<Signature, KeyError> {
        let (found, signature) = self.with_key(|channel, key, point| {
            let command = TpmSignCommand {
                handles: [key],
                digest: Tpm2bDigest::try_from(&digest[..])?,
                in_scheme: TpmtSigScheme::default(),
                validation: TpmtTkHashcheck {
                    tag: TpmSt::HashCheck,
                    hierarchy: TpmRh::Null,
                    digest: Tpm2bDigest::default(),
                },
            };
            let signed: TpmSignResponse = run(channel, &command, true)?;
            let TpmuSignature::Ecdsa(halves) = signed.signature.signature else {
                return Ok((point, None));
            };
            Ok((point, both(&halves.signature_r, &halves.signature_s)))
        })?;
        self.must_be(found, expected)?;
        signature.ok_or_else(|| self.strange())
    }

    /// Derives the key, uses it, and removes it from the TPM's memory.
    fn with_key<T>(
        &self,
        work: impl FnOnce(&mut dyn Channel, TpmHandle, Point) -> Result<T, Failed>,
    ) -> Result<T, KeyError> {
        let work = || -> Result<Option<T>, Failed> {
            let mut channel = self.channel()?;
            let made: TpmCreatePrimaryResponse = run(&mut *channel, &self.template()?, true)?;
            let [key] = made.handles;
            let done = match public(&made.out_public.inner) {
                Some(point) => work(&mut *channel, key, point).map(Some),
                None => Ok(None),
            };
            let flushed = flush(&mut *channel, key);
            let done = done?;
            flushed.map(|()| done)
        };
        work().map_err(|e| self.failed(e))?.ok_or_else(|| self.strange())
    }

    /// A P-256 key for signatures over SHA-256, which never leaves the TPM.
    fn template(&self) -> Result<TpmCreatePrimaryCommand, TpmError> {
        let (x, y) = self.seed.0.split_at(HALF);
        let scheme = TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 });
        let public = TpmtPublic {
            object_type: TpmAlgId::Ecc,
            name_alg: TpmAlgId::Sha256,
            object_attributes: TpmaObject::FIXED_TPM
                | TpmaObject::FIXED_PARENT
                | TpmaObject::SENSITIVE_DATA_ORIGIN
                | TpmaObject::USER_WITH_AUTH
                | TpmaObject::NO_DA
                | TpmaObject::SIGN_ENCRYPT,
            auth_policy: Tpm2bDigest::default(),
            parameters: TpmuPublicParms::Ecc(TpmsEccParms {
                symmetric: TpmtSymDefObject { algorithm: TpmAlgId::Null, ..Default::default() },
                scheme: TpmtEccScheme { scheme: TpmAlgId::Ecdsa, details: scheme },
                curve_id: TpmEccCurve::NistP256,
                kdf: TpmtKdfScheme::default(),
            }),
            unique: TpmuPublicId::Ecc(TpmsEccPoint {
                x: Tpm2bEccParameter::try_from(x)?,
                y: Tpm2bEccParameter::try_from(y)?,
            }),
        };
        Ok(TpmCreatePrimaryCommand {
            handles: [TpmHandle::new(TpmRh::Owner.value())],
            in_public: Tpm2bPublic { inner: public },
            ..Default::default()
        })
    }

    fn channel(&self) -> Result<Box<dyn Channel>, Failed> {
        let path = Path::new(&self.path);
        let kind = std::fs::metadata(path)?.file_type();
        if kind.is_socket() {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(WITHIN))?;
            socket.set_write_timeout(Some(WITHIN))?;
            return Ok(Box::new(socket));
        }
        // A command would overwrite a file.
        if !kind.is_char_device() {
            return Err(Failed::NoTpm);
        }
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn must_be(&self, found: Point, expected: &Point) -> Result<(), KeyError> {
        if found == *expected {
            return Ok(());
        }
        Err(KeyError::lasting(
            "the TPM has not the key with which this device enrolled: the TPM was cleared, or the profile is from another computer",
            "enroll again: `adit enroll --replace`, with `--name NAME` if the server has a name here",
        ))
    }

    fn strange(&self) -> KeyError {
        KeyError::lasting(
            format!("the TPM at `{}` makes no P-256 key", self.path),
            "keep the key elsewhere: in a PKCS#11 token (`--key pkcs11:token=LABEL`) or in a file (without `--key`)",
        )
    }

    fn failed(&self, why: Failed) -> KeyError {
        let path = &self.path;
        match why {
            Failed::Io(e) if e.kind() == ErrorKind::NotFound => KeyError::lasting(
                format!("this computer has no TPM 2.0 at `{path}`"),
                "look with `ls /dev/tpm*`, and switch the TPM on in the settings of the firmware; or keep the key elsewhere: `--key pkcs11:token=LABEL`",
            ),
            Failed::Io(e) if e.kind() == ErrorKind::PermissionDenied => KeyError::lasting(
                format!("this user may not use the TPM at `{path}`"),
                "join the group that may, and log in anew: `sudo usermod --append --groups tss \"$USER\"` (look at `ls -l /dev/tpmrm0`)",
            ),
            Failed::NoTpm => KeyError::lasting(
                format!("`{path}` is not a TPM: it is neither a character device nor a socket"),
                "name the device of the TPM: `--key tpm` (it is `/dev/tpmrm0`), or `--key tpm:/PATH` (look with `ls /dev/tpm*`)",
            ),
            Failed::Io(e) => KeyError::passing(
                format!("the TPM at `{path}` does not answer: {e}"),
                "see that no other program holds it; `/dev/tpmrm0` may be shared, and `/dev/tpm0` not",
            ),
            Failed::Refused(code)
                if matches!(code.base(), TpmRcBase::BadAuth | TpmRcBase::AuthFail) =>
            {
                KeyError::lasting(
                    "the owner hierarchy of the TPM has a password, which adit does not know",
                    "remove it, if it is yours: `tpm2_changeauth -c owner -p PASSWORD`; or keep the key elsewhere",
                )
            }
            Failed::Refused(code) => KeyError::passing(
                format!("the TPM at `{path}` refuses: {code}"),
                "look at it with `tpm2_getcap properties-variable`",
            ),
            Failed::Nonsense(e) => KeyError::passing(
                format!("the TPM at `{path}` gives an answer that cannot be read: {e}"),
                "see that a TPM 2.0 is there: `ls -l /dev/tpmrm0`",
            ),
        }
    }
}

/// Both halves of a signature. The TPM leaves out leading zeros.
fn both(r: &[u8], s: &[u8]) -> Option<Signature> {
    let mut signature = [0; 2 * HALF];
    for (half, place) in [r, s].into_iter().zip(signature.chunks_mut(HALF)) {
        let zeros = HALF.checked_sub(half.len())?;
        place[zeros..].copy_from_slice(half);
    }
    Some(signature)
}

fn public(public: &TpmtPublic) -> Option<Point> {
    let TpmuPublicId::Ecc(point) = &public.unique else { return None };
    let halves = both(&point.x, &point.y)?;
    Point::from_bytes(&[&[4], &halves[..]].concat())
}

/// Runs a command, with an empty password if `authorized`.
fn run<C: TpmFrame, R: TpmUnmarshalBody>(
    channel: &mut dyn Channel,
    command: &C,
    authorized: bool,
) -> Result<R, Failed> {
    let password =
        TpmsAuthCommand { session_handle: TpmHandle::new(TpmRh::Pw.value()), ..Default::default() };
    let (tag, sessions) = match authorized {
        true => (TpmSt::Sessions, &[password][..]),
        false => (TpmSt::NoSessions, &[][..]),
    };
    // The template has the seed in it.
    let mut bytes = Zeroizing::new([0; TPM_MAX_COMMAND_SIZE]);
    let len = {
        let mut writer = TpmWriter::new(&mut *bytes);
        tpm_marshal_command(command, tag, sessions, &mut writer)?;
        writer.len()
    };
    for _ in 0..TRIES {
        let answer = exchange(channel, &bytes[..len])?;
        let response = TpmResponse::cast(&answer)?;
        match response.rc()? {
            TpmRc::Fmt0(TpmRcBase::Success) => return Ok(response.unmarshal()?),
            code if matches!(
                code.base(),
                TpmRcBase::Retry | TpmRcBase::Yielded | TpmRcBase::Testing
            ) =>
            {
                std::thread::sleep(PAUSE);
            }
            code => return Err(Failed::Refused(code)),
        }
    }
    Err(Failed::Io(ErrorKind::TimedOut.into()))
}

fn flush(channel: &mut dyn Channel, key: TpmHandle) -> Result<(), Failed> {
    let command = TpmFlushContextCommand { flush_handle: key, handles: [] };
    run::<_, tpm2_protocol::frame::TpmFlushContextResponse>(channel, &command, false).map(drop)
}

/// The kernel's device takes a command in one write and gives the answer in one read; a socket may give
/// it in pieces.
fn exchange(channel: &mut dyn Channel, command: &[u8]) -> io::Result<Vec<u8>> {
    channel.write_all(command)?;
    let mut answer = vec![0; TPM_MAX_COMMAND_SIZE];
    let mut len = 0;
    loop {
        let whole = match answer[..len].get(2..6) {
            Some(size) if len >= HEAD => {
                u32::from_be_bytes(size.try_into().unwrap_or_default()) as usize
            }
            _ => HEAD,
        };
        if whole > TPM_MAX_COMMAND_SIZE {
            return Err(ErrorKind::InvalidData.into());
        }
        if len >= whole && len >= HEAD {
            answer.truncate(whole);
            return Ok(answer);
        }
        match channel.read(&mut answer[len..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => len += n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TPM that wants the command again for some time.
    #[derive(Default)]
    struct Busy {
        again: u32,
        sent: u32,
        answer: Vec<u8>,
    }

    impl Write for Busy {
        fn write(&mut self, command: &[u8]) -> io::Result<usize> {
            // TPM_RC_RETRY or TPM_RC_SUCCESS (TPM 2.0 part 2 section 6.6.3), and no parameters.
            let code: u32 = if self.sent < self.again { 0x922 } else { 0 };
            self.sent += 1;
            self.answer = [&[0x80, 0x01, 0, 0, 0, 10][..], &code.to_be_bytes()].concat();
            Ok(command.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Busy {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            into[..self.answer.len()].copy_from_slice(&self.answer);
            Ok(std::mem::take(&mut self.answer).len())
        }
    }

    #[test]
    fn a_command_is_sent_as_often_as_it_says() {
        let key = TpmHandle::new(TpmRh::Null.value());
        for (again, sent, is_done) in
            [(0, 1, true), (1, 2, true), (TRIES - 1, TRIES, true), (TRIES, TRIES, false)]
        {
            let mut busy = Busy { again, ..Busy::default() };
            assert_eq!((flush(&mut busy, key).is_ok(), busy.sent), (is_done, sent), "{again}");
        }
    }
}
