//! Asks a provider over HTTPS: bounded in time and length, without following redirects.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use proto::{crypto::sha256, failure::in_one_line, human::misleads};
use reqwest::{Certificate, Client, RequestBuilder, Response, Url, redirect};
use serde::de::DeserializeOwned;

use crate::outside::{Names, check_port};

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The longest answer, in bytes.
const LONGEST: usize = 1 << 20;
/// The longest text of a provider that is shown, in characters.
const LONGEST_TEXT: usize = 200;

/// Whose certificates a provider is believed with: the CAs of this system, or those of one file.
/// Clones share their connections.
#[derive(Clone)]
pub(crate) struct ProviderTrust(Arc<Trusted>);

struct Trusted {
    /// The file, and its hash, to notice that it has changed.
    file: Option<(PathBuf, [u8; 32])>,
    certificates: Vec<Certificate>,
    beside: OnceLock<Result<Client, String>>,
    elsewhere: OnceLock<Result<Client, String>>,
}

impl PartialEq for ProviderTrust {
    fn eq(&self, other: &Self) -> bool {
        self.0.file == other.0.file
    }
}

impl Eq for ProviderTrust {}

impl fmt::Debug for ProviderTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProviderTrust").field(&self.file()).finish()
    }
}

impl Default for ProviderTrust {
    /// Trusts the CAs of this system.
    fn default() -> Self {
        static SYSTEM: OnceLock<ProviderTrust> = OnceLock::new();
        SYSTEM.get_or_init(|| Self::of(None, Vec::new())).clone()
    }
}

impl ProviderTrust {
    fn of(file: Option<(PathBuf, [u8; 32])>, certificates: Vec<Certificate>) -> Self {
        let (beside, elsewhere) = Default::default();
        Self(Arc::new(Trusted { file, certificates, beside, elsewhere }))
    }

    /// Trusts only the CAs in `file` (PEM).
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn of_file(file: &Path) -> Result<Self, String> {
        let wrong = |why: String| format!("cannot use `{}` as `ca`: {why}", file.display());
        let pem = std::fs::read(file).map_err(|e| wrong(e.to_string()))?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|e| wrong(in_one_line(&e)))?;
        if certificates.is_empty() {
            let form = "it has no certificate, which begins with `-----BEGIN CERTIFICATE-----`";
            return Err(wrong(form.to_owned()));
        }
        Ok(Self::of(Some((file.to_owned(), sha256(&pem))), certificates))
    }

    /// The file, if one was named.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.0.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// The client for requests to `url`. It uses the proxy that the environment names, but not for
    /// this machine itself.
    pub(crate) fn client(&self, url: &Url) -> io::Result<&Client> {
        // The settings allow http on this machine only.
        let is_here = url.scheme() == "http";
        check_port(url)?;
        let Trusted { file, certificates, beside, elsewhere } = &*self.0;
        let made = if is_here { beside } else { elsewhere }.get_or_init(|| {
            let mut builder = Client::builder()
                .timeout(ANSWER_WITHIN)
                .connect_timeout(CONNECT_WITHIN)
                .redirect(redirect::Policy::none())
                .dns_resolver(Arc::new(Names))
                .user_agent(concat!("aditd/", env!("CARGO_PKG_VERSION")));
            if is_here {
                builder = builder.no_proxy();
            }
            if file.is_some() {
                builder = builder.tls_certs_only(certificates.iter().cloned());
            }
            builder.build().map_err(|e| in_one_line(&e))
        });
        made.as_ref().map_err(|e| io::Error::other(e.clone()))
    }

    /// The document at `url`.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn get(&self, url: &Url) -> io::Result<Vec<u8>> {
        let (status, body) = send(self.client(url)?.get(url.clone())).await?;
        match status {
            200 => Ok(body),
            status => Err(io::Error::other(format!("`{url}` answered with the status {status}"))),
        }
    }

    /// The JSON document at `url`.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn get_json<T: DeserializeOwned>(&self, url: &Url) -> io::Result<T> {
        let body = self.get(url).await?;
        serde_json::from_slice(&body)
            // The error may quote the answer.
            .map_err(|e| plain(&e.to_string()))
            .map_err(|e| io::Error::other(format!("the answer of `{url}` cannot be read: {e}")))
    }
}

/// The status and the body of an answer.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn send(request: RequestBuilder) -> io::Result<(u16, Vec<u8>)> {
    let failed = |e: reqwest::Error| io::Error::other(in_one_line(&e));
    let mut response: Response = request.send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > LONGEST {
            return Err(io::Error::other("the answer is longer than 1 MiB"));
        }
        body.extend_from_slice(&piece);
    }
    Ok((response.status().as_u16(), body))
}

/// What a provider says, as it is shown: bounded, and without what a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !misleads(*c)).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_provider_says_is_bounded_and_changes_no_terminal() {
        for (told, shown) in
            [("disabled", "disabled"), ("a\u{1b}[2Jb\nc", "a[2Jbc"), ("a\u{202e}b\u{200b}", "ab")]
        {
            assert_eq!(plain(told), shown);
        }
        assert_eq!(plain(&"\u{e4}".repeat(1000)).chars().count(), LONGEST_TEXT);
    }
}
