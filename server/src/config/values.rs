//! Values of the configuration file. They are checked while the file is read, so that an error has
//! its line.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    time::Duration,
};

use common::machine::{config_text::WithUnit, process::parse_idle_timeout};
use hyper::header::HeaderName;
use proto::{
    invitation::{self, MAX_ADDRESSES},
    wire::ADITD_PORT,
};
use serde::{Deserialize, Deserializer, de};

const LEAST_RECHECK: Duration = Duration::from_secs(1);
const LONGEST_RECHECK: Duration = Duration::from_secs(86_400);
const LONGEST_LIFE: Duration = Duration::from_secs(3650 * 86_400);

/// What is wrong with a value, and how to write it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {form}")]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) form: &'static str,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Listen(pub(super) SocketAddr);

impl TryFrom<String> for Listen {
    type Error = Wrong;

    fn try_from(text: String) -> Result<Self, Wrong> {
        let address = text
            .parse()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, ADITD_PORT)));
        address.map(Self).map_err(|_| Wrong {
            what: format!("`{text}` is not an address to listen on"),
            form: "write it as IP:PORT, for example 192.168.1.7:11435 or [::1]:11435",
        })
    }
}

/// The addresses that devices are told.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(super) struct Advertised(pub(super) Vec<String>);

impl TryFrom<Vec<String>> for Advertised {
    type Error = Wrong;

    fn try_from(addresses: Vec<String>) -> Result<Self, Wrong> {
        if let Some(bad) = addresses.iter().find(|address| !invitation::is_address(address)) {
            let form = "write it as HOST:PORT, for example gpu.lan:11435 or [fd00::1]:11435";
            return Err(Wrong { what: format!("`{bad}` can't be advertised"), form });
        }
        if addresses.len() > MAX_ADDRESSES {
            let what = format!(
                "{} addresses are advertised, at most {MAX_ADDRESSES} fit into an invitation",
                addresses.len()
            );
            return Err(Wrong { what, form: "name those that devices need" });
        }
        Ok(Self(addresses))
    }
}

/// The name of a header field.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct FieldName(pub(super) HeaderName);

impl TryFrom<String> for FieldName {
    type Error = Wrong;

    fn try_from(text: String) -> Result<Self, Wrong> {
        // These belong to the question itself (RFC 9110 sections 6.4, 7.2 and 7.6.1).
        const OWN: [&str; 9] = [
            "host",
            "content-length",
            "content-type",
            "transfer-encoding",
            "connection",
            "te",
            "trailer",
            "upgrade",
            "expect",
        ];
        let name: Option<HeaderName> = text.parse().ok();
        let name = name.filter(|name| {
            let name = name.as_str();
            !OWN.contains(&name) && !name.starts_with("x-original-") && !name.starts_with("x-adit-")
        });
        name.map(Self).ok_or_else(|| Wrong {
            what: format!("`{text}` is not a header field that `authorize` can be sent"),
            form: "name fields of requests, for example \"Authorization\" or \"Cookie\"",
        })
    }
}

/// How often `authorize` is asked again.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "WithUnit<'s'>")]
pub(super) struct Recheck(pub(super) Duration);

impl TryFrom<WithUnit<'s'>> for Recheck {
    type Error = Wrong;

    fn try_from(WithUnit(text): WithUnit<'s'>) -> Result<Self, Wrong> {
        let time = humantime::parse_duration(&text).ok();
        let time = time.filter(|time| (LEAST_RECHECK..=LONGEST_RECHECK).contains(time));
        time.map(Self).ok_or_else(|| Wrong {
            what: format!("`{text}` is not a time after which `authorize` is asked again"),
            form: "write it like \"30s\" or \"5m\", from 1s to 1d",
        })
    }
}

/// How long a certificate is valid.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "WithUnit<'d'>")]
pub(super) struct Life(pub(super) Duration);

impl Life {
    const FORM: &str = "write it like 30d or 12h, from 1s to 3650d";
}

impl TryFrom<WithUnit<'d'>> for Life {
    type Error = Wrong;

    fn try_from(WithUnit(text): WithUnit<'d'>) -> Result<Self, Wrong> {
        let life = humantime::parse_duration(&text);
        life.map_err(|_| Wrong {
            what: format!("`{text}` is not a valid certificate lifetime"),
            form: Self::FORM,
        })?
        .try_into()
    }
}

impl TryFrom<Duration> for Life {
    type Error = Wrong;

    fn try_from(life: Duration) -> Result<Self, Wrong> {
        if (Duration::from_secs(1)..=LONGEST_LIFE).contains(&life) {
            return Ok(Self(life));
        }
        let what = format!("`{}` is not a valid certificate lifetime", proto::human::time(life));
        Err(Wrong { what, form: Self::FORM })
    }
}

/// How long a silent session is kept.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "WithUnit<'s'>")]
pub(super) struct IdleTimeout(pub(super) Duration);

impl TryFrom<WithUnit<'s'>> for IdleTimeout {
    type Error = String;

    fn try_from(WithUnit(text): WithUnit<'s'>) -> Result<Self, String> {
        parse_idle_timeout(&text)
            .map(Self)
            .map_err(|why| format!("`{text}` is not a valid idle time-out: {why}"))
    }
}

/// How many requests may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct AboveZero(pub(super) NonZeroUsize);

/// How many requests may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole(pub(super) usize);

impl<'de> Deserialize<'de> for AboveZero {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = whole(deserializer).and_then(NonZeroUsize::new);
        number.map(Self).ok_or_else(|| de::Error::custom("expected a whole number above zero"))
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole(deserializer)
            .map(Self)
            .ok_or_else(|| de::Error::custom("expected a whole number, zero or above"))
    }
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Option<usize> {
    usize::try_from(i64::deserialize(deserializer).ok()?).ok()
}
