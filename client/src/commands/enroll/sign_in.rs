//! Guides a person through the sign-in at the provider: shows the page, opens a browser, and waits for
//! the browser to come back if the provider sends it here.

use std::{
    env,
    io::{self, IsTerminal},
    net::Ipv4Addr,
    time::Duration,
};

use common::{
    machine::{
        process::unix_now,
        progress::Progress,
        report::{Failure, say},
    },
    transport::accept::accept,
};
use proto::{
    human::{self, misleads},
    identity::Name,
    invitation::Invitation,
    redirect::{self, Asked, LONGEST_HEAD},
    wire::{RedirectAnswer, SignInRequest, SignInStep},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::Enroll;
use crate::profile::{Profile, ProfileDir};

/// How long a browser may take to send a request.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How many connections of browsers are read at once. Browsers open some that they do not use.
const MOST_CONNECTIONS: usize = 16;

/// The profile of a device that signs in again; `None` if this is another enrollment.
pub(super) fn again(profile_dir: &ProfileDir, flags: &Enroll) -> Result<Option<Profile>, Failure> {
    if !flags.sso || flags.replace || !profile_dir.is_enrolled()? {
        return Ok(None);
    }
    Ok(Some(profile_dir.read()?).filter(|profile| profile.sign_in_code.is_some()))
}

/// The code with which this device has signed in before, if it is still valid and no other is given.
pub(super) fn known_code(again: Option<&Profile>, flags: &Enroll) -> Option<String> {
    let asks = flags.new_code || flags.code_file.is_some();
    let code = again?.sign_in_code.clone().filter(|_| !asks)?;
    let invitation: Invitation = code.parse().ok()?;
    (invitation.expires > unix_now()).then_some(code)
}

/// What a sign-in needs here.
pub(super) struct SignIn {
    device: Name,
    opens_browser: bool,
    /// Where the provider may send a browser back to.
    listener: Option<TcpListener>,
}

impl SignIn {
    pub(super) async fn new(device: Name, opens_browser: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.ok();
        Self { device, opens_browser, listener }
    }

    pub(super) fn request(&self) -> SignInRequest {
        let at = self.listener.as_ref().and_then(|listener| listener.local_addr().ok());
        SignInRequest { device: self.device.clone(), redirect_port: at.map(|at| at.port()) }
    }

    /// Tells the person what to do. Returns what the browser has brought, if it is sent back here.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn guide(&mut self, step: &SignInStep) -> io::Result<Option<RedirectAnswer>> {
        match step {
            SignInStep::Device { url, complete_url, code, expires_in } => {
                let (url, code) = (plain(url), plain(code));
                say(format!(
                    "To enroll this device as `{}`, sign in at this page, in any browser:\n\n    {url}\n\n\
                     and type this code there, which is valid for {}:\n\n    {code}\n",
                    self.device,
                    human::time(Duration::from_secs(*expires_in))
                ));
                self.open(complete_url.as_ref().unwrap_or(&url));
                Ok(None)
            }
            SignInStep::Browser { url, state, .. } => {
                let url = plain(url);
                say(format!(
                    "To enroll this device as `{}`, sign in at this page, in a browser on this computer:\n\n    {url}\n",
                    self.device
                ));
                self.open(&url);
                let _progress = Progress::show("waiting until you have signed in");
                let listener = self.listener.as_ref().ok_or(io::ErrorKind::AddrNotAvailable)?;
                Ok(Some(brought(listener, state).await))
            }
        }
    }

    /// Opens a browser, if there is one and the person has not said otherwise. That it does not open
    /// is no error: the page is shown.
    fn open(&self, url: &str) {
        let is_page = url.starts_with("https://") || url.starts_with("http://");
        if self.opens_browser && is_page && io::stderr().is_terminal() && has_browser() {
            // It goes on after this program.
            let _ = open::that_detached(url);
        }
    }
}

/// Whether a browser that is opened here is seen by the person at the terminal.
fn has_browser() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_far = is_set("SSH_CONNECTION") || is_set("SSH_TTY");
    let has_screen = cfg!(target_os = "macos") || is_set("DISPLAY") || is_set("WAYLAND_DISPLAY");
    has_screen && !is_far
}

/// What the browser brings that has signed in with this state.
async fn brought(listener: &TcpListener, state: &str) -> RedirectAnswer {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            (tcp, _) = accept("the sign-in", || listener.accept()), if connections.len() < MOST_CONNECTIONS => {
                let state = state.to_owned();
                connections.spawn(async move {
                    let asked = tokio::time::timeout(REQUEST_WITHIN, request(tcp, &state)).await;
                    asked.ok().and_then(Result::ok).flatten()
                });
            }
            // A connection that brought nothing ends, too, and makes room for another.
            Some(done) = connections.join_next(), if !connections.is_empty() => {
                if let Ok(Some(brought)) = done {
                    return brought;
                }
            }
        }
    }
}

/// Reads one request and answers it.
async fn request(mut tcp: TcpStream, state: &str) -> io::Result<Option<RedirectAnswer>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > LONGEST_HEAD || tcp.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    let asked = redirect::asked(&head, state);
    // The sign-in counts even if the browser does not wait for its page.
    let _ = tcp.write_all(redirect::answer(&asked).as_bytes()).await;
    let _ = tcp.shutdown().await;
    Ok(match asked {
        Asked::Back(brought) => Some(brought),
        Asked::Other => None,
    })
}

/// A text of the provider without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !misleads(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_that_bring_nothing_hold_up_no_sign_in() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let at = listener.local_addr().expect("an address");
        let connect = || async { TcpStream::connect(at).await.expect("connected") };
        for others in [1, MOST_CONNECTIONS] {
            let browser = async {
                let mut open = vec![connect().await];
                for _ in 1..others {
                    open.push(connect().await);
                }
                let mut back = connect().await;
                let mut icon = open.swap_remove(0);
                icon.write_all(b"GET /favicon.ico HTTP/1.1\r\n\r\n").await.expect("sent");
                let mut answer = String::new();
                icon.read_to_string(&mut answer).await.expect("answered");
                assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
                back.write_all(b"GET /?state=s&code=c HTTP/1.1\r\n\r\n").await.expect("sent");
                (open, back)
            };
            let both = async { tokio::join!(brought(&listener, "s"), browser).0 };
            // Sooner than a connection that says nothing is given up.
            let brought = tokio::time::timeout(REQUEST_WITHIN / 2, both).await.expect("in time");
            let is_the_code = matches!(brought, RedirectAnswer::Code { code, .. } if code == "c");
            assert!(is_the_code, "{others}");
        }
    }
}
