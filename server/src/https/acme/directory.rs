//! Requests to a certificate authority over HTTPS: bounded in time and length, without following
//! redirects.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use common::machine::process::unix_now;
use http_body_util::{BodyExt, Limited};
use hyper::Request;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use reqwest::{Certificate, Client, StatusCode, header, redirect};

use super::{fault::Fault, settings::AcmeSettings};
use crate::outside::{Names, check_port};

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const LONGEST: usize = 1 << 20;
/// The longest file of CAs that is read, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// The client for one authority.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    client: Client,
    /// Until when it wants to be left alone, in Unix time (`Retry-After`); 0 if it has not said so.
    asked_until: Arc<AtomicI64>,
}

impl Directory {
    /// A client that trusts the CAs of the settings, and uses the proxy that the environment names.
    ///
    /// # Errors
    /// The file of CAs cannot be used.
    pub(super) fn new(settings: &AcmeSettings) -> Result<Self, Fault> {
        let builder = Client::builder()
            .https_only(true)
            .timeout(ANSWER_WITHIN)
            .connect_timeout(CONNECT_WITHIN)
            .redirect(redirect::Policy::none())
            .dns_resolver(Arc::new(Names));
        let builder = match &settings.directory_ca {
            None => builder,
            Some(file) => {
                let wrong = |e: &dyn std::fmt::Display| {
                    Fault::new(format!("cannot use `{}`: {e}", file.display()))
                };
                let pem = super::store::read_up_to(file, LONGEST_FILE).map_err(|e| wrong(&e))?;
                let roots = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(&e))?;
                if roots.is_empty() {
                    return Err(wrong(&"it has no certificate in PEM"));
                }
                builder.tls_certs_only(roots)
            }
        };
        let client = builder.build().map_err(Fault::inside)?;
        Ok(Self { client, asked_until: Arc::default() })
    }

    /// Until when the authority wants no order, in Unix time.
    pub(super) fn asked_until(&self) -> Option<i64> {
        Some(self.asked_until.load(Relaxed)).filter(|until| *until != 0)
    }
}

impl HttpClient for Directory {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let Self { client, asked_until } = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let body = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
            if let Some(library) = parts.headers.get(header::USER_AGENT).cloned() {
                let library = library.to_str().unwrap_or_default();
                let all = format!("aditd/{} {library}", env!("CARGO_PKG_VERSION"));
                let all = all.parse().map_err(|e| Error::Other(Box::new(e)))?;
                parts.headers.insert(header::USER_AGENT, all);
            }
            let other = |e: reqwest::Error| Error::Other(Box::new(e));
            let request = reqwest::Request::try_from(Request::from_parts(parts, body));
            let request = request.map_err(other)?;
            check_port(request.url()).map_err(|e| Error::Other(Box::new(e)))?;
            let response = client.execute(request).await.map_err(other)?;
            let is_asked = matches!(
                response.status(),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            );
            let until = response.headers().get(header::RETRY_AFTER).and_then(|it| it.to_str().ok());
            if let Some(until) =
                until.filter(|_| is_asked).and_then(|it| until_when(it, unix_now()))
            {
                asked_until.store(until, Relaxed);
            }
            let response: hyper::Response<reqwest::Body> = response.into();
            Ok(response.map(|body| Limited::new(body, LONGEST)).into())
        })
    }
}

/// The time that a `Retry-After` names (RFC 9110 section 10.2.3), in Unix time.
fn until_when(value: &str, now: i64) -> Option<i64> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(now + i64::from(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(at.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_is_a_number_of_seconds_or_a_date() {
        for (value, until) in [
            ("120", Some(1_120)),
            (" 0 ", Some(1_000)),
            ("Thu, 01 Jan 1970 01:00:00 GMT", Some(3600)),
            ("-5", None),
            ("soon", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(until_when(value, 1_000), until, "{value}");
        }
    }
}
