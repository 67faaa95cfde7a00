//! Logs in at a token. A PIN is tried once: tokens lock themselves after a few wrong ones.

use std::sync::atomic::Ordering::SeqCst;

use common::machine::report::say;
use cryptoki::{
    error::{Error, RvError},
    session::{Session, SessionState, UserType},
    slot::TokenInfo,
    types::AuthPin,
};
use zeroize::Zeroizing;

use super::{super::error::KeyError, Token, Typed, pin};

impl Token {
    /// Logs in, if that is needed and has not been done in this process.
    pub(super) fn log_in(&mut self, session: &Session, info: &TokenInfo) -> Result<(), KeyError> {
        let is_in = session.get_session_info().map_err(|e| self.failed("be opened", &e))?;
        let is_in = matches!(is_in.session_state(), SessionState::RoUser | SessionState::RwUser);
        if !info.login_required() || is_in {
            return Ok(());
        }
        self.refuse_locked(info)?;
        if info.protected_authentication_path() {
            say(format!("Type the PIN of the token {} at its reader.", self.uri.token_name()));
            self.waits_for_person.store(true, SeqCst);
            let tried = session.login(UserType::User, None);
            self.waits_for_person.store(false, SeqCst);
            return self.judged(tried, info);
        }
        // The last try is spent only on a PIN that was typed after it was said that it is the last.
        let may_try = |typed: &Typed| typed.for_last_try || !info.user_pin_final_try();
        if let Some(typed) = self.pin.take().filter(may_try) {
            let tried = self.try_pin(session, &typed.pin);
            if !is_wrong(&tried) {
                self.pin = Some(Typed { for_last_try: false, ..typed });
            }
            return self.judged(tried, info);
        }
        let Some(path) = &self.uri.pin_source else {
            return Err(KeyError::pin_needed(&self.uri.token_name(), info.user_pin_final_try()));
        };
        if info.user_pin_final_try() {
            return Err(self.lasting(
                "it has one try left for its PIN, which adit does not spend by itself",
                format!("log in once with the token's own tool; or take `pin-source` out of the URI, and type the PIN: see that `{path}` has the right PIN"),
            ));
        }
        let kept = pin::read(path, &self.state_dir, &self.uri.token_name())?;
        // Noted before it is tried: a program that ends in between must not try it again.
        kept.note()?;
        let tried = self.try_pin(session, &kept.pin);
        if !is_wrong(&tried) {
            kept.forget()?;
        }
        self.judged(tried, info)
    }

    fn try_pin(&self, session: &Session, pin: &Zeroizing<String>) -> Result<(), Error> {
        session.login(UserType::User, Some(&AuthPin::from(pin.as_str())))
    }

    pub(super) fn refuse_locked(&self, info: &TokenInfo) -> Result<(), KeyError> {
        if info.user_pin_locked() {
            return Err(self.locked());
        }
        if !info.user_pin_initialized() {
            return Err(self.lasting("it has no PIN yet", "set one with the token's own tool"));
        }
        Ok(())
    }

    fn locked(&self) -> KeyError {
        self.lasting(
            "its PIN is locked after too many wrong ones",
            "unlock it with the token's own tool and its PUK or its SO PIN",
        )
    }

    fn judged(&self, tried: Result<(), Error>, info: &TokenInfo) -> Result<(), KeyError> {
        let Err(why) = tried else { return Ok(()) };
        let count = if info.user_pin_count_low() { ", and it was wrong before" } else { "" };
        match why {
            Error::Pkcs11(RvError::UserAlreadyLoggedIn, _) => Ok(()),
            Error::Pkcs11(RvError::PinLocked, _) => Err(self.locked()),
            Error::Pkcs11(RvError::PinExpired, _) => {
                Err(self.lasting("its PIN has expired", "set a new one with the token's own tool"))
            }
            Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            ) => Err(match &self.uri.pin_source {
                Some(path) => self.lasting(
                    &format!("the PIN in `{path}` is wrong{count}"),
                    format!("write the right PIN into `{path}`: adit does not try this one again, because a token locks itself after a few wrong PINs"),
                ),
                None => self.lasting(
                    &format!("the PIN is wrong{count}"),
                    "run the same command again, and type the right PIN: the token locks itself after a few wrong ones",
                ),
            }),
            why => Err(self.failed("be opened", &why)),
        }
    }
}

/// Whether the token has refused the PIN. It may have counted the try.
fn is_wrong(tried: &Result<(), Error>) -> bool {
    matches!(
        tried,
        Err(Error::Pkcs11(
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinLocked,
            _
        ))
    )
}
