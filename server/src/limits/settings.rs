//! Limits in the configuration: for all users, for a role, for a user, for a device. The most specific
//! setting applies, for each limit separately; that of a device counts it alone, and one of a user's
//! own holds in addition.

use std::{collections::HashMap, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use crate::record::Limits;

/// The limits of one table in the file: `[limits]`, `[roles.NAME.limits]`, `[users.NAME.limits]` or
/// `[devices.NAME.limits]`. A limit that is not set comes from the less specific table; `"none"`
/// removes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitSettings {
    /// Requests that a user may make per minute, on average.
    pub requests_per_minute: Setting<NonZeroU32>,
    /// Requests that it may make without a pause; the default is as many as per minute.
    pub burst: Setting<NonZeroU32>,
    /// Requests of the user that may run at once.
    pub at_once: Setting<NonZeroU32>,
    /// Bytes of one request's body: a number, or text such as `"64MiB"`.
    pub body: Setting<Size>,
    /// Tokens per UTC day, of prompts and answers together.
    pub tokens_per_day: Setting<Positive>,
}

/// The value of one limit in a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Setting<T> {
    /// Not set: the less specific table decides.
    #[default]
    Nothing,
    /// No limit.
    None,
    /// This limit.
    At(T),
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub u64);

/// A number above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Positive(pub u64);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LimitTable {
    /// `[limits]`.
    pub default: LimitSettings,
    /// `[roles.NAME.limits]`.
    pub roles: HashMap<String, LimitSettings>,
    /// `[devices.NAME.limits]`.
    pub devices: HashMap<String, LimitSettings>,
    /// `[users.NAME.limits]`.
    pub users: HashMap<String, LimitSettings>,
}

/// Which limits a device has for itself alone, in place of its user's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Alone {
    pub requests_per_minute: bool,
    pub at_once: bool,
    pub body: bool,
    pub tokens_per_day: bool,
}

impl LimitSettings {
    /// As limits that hold besides others: they can lower those, and not remove them.
    ///
    /// # Errors
    /// What cannot be said so.
    pub(crate) fn besides_others(&self) -> Result<Limits, &'static str> {
        let Self { requests_per_minute, burst, at_once, body, tokens_per_day } = *self;
        if matches!(requests_per_minute, Setting::None)
            || matches!(burst, Setting::None)
            || matches!(at_once, Setting::None)
            || matches!(body, Setting::None)
            || matches!(tokens_per_day, Setting::None)
        {
            return Err("a limit can be lowered here, and not removed with `none`");
        }
        if matches!((requests_per_minute, burst), (Setting::Nothing, Setting::At(_))) {
            return Err("`burst` needs `requests_per_minute` beside it");
        }
        Ok(resolved(&[Some(self)]))
    }
}

impl LimitTable {
    /// The limits of a device without a user, with this role and name.
    pub(crate) fn limits(&self, role: &str, device: &str) -> Limits {
        resolved(&[self.devices.get(device), self.roles.get(role), Some(&self.default)])
    }

    /// The limits that a device of a user has for itself alone.
    pub(crate) fn of_device(&self, role: &str, device: &str) -> Limits {
        let burst = self.limits(role, device).burst;
        Limits { burst, ..resolved(&[self.devices.get(device)]) }
    }

    /// The limits of a device's user, for all of the user's devices and keys together. Where the
    /// device has a limit of its own, only what is set for the user itself holds in addition.
    pub(crate) fn of_user(&self, user: &str, role: &str, alone: Alone) -> Limits {
        let user = self.user(user);
        let all = resolved(&[Some(&user), self.roles.get(role), Some(&self.default)]);
        Limits {
            requests_per_minute: all.requests_per_minute.filter(|_| !alone.requests_per_minute),
            burst: all.burst,
            at_once: all.at_once.filter(|_| !alone.at_once),
            body: all.body.filter(|_| !alone.body),
            tokens_per_day: all.tokens_per_day.filter(|_| !alone.tokens_per_day),
        }
    }

    /// What a device does not count as its user's: the limits that only the device has.
    pub(crate) fn alone(&self, user: &str, device: &str) -> Alone {
        let (user, device) = (self.user(user), self.device(device));
        Alone {
            requests_per_minute: is_alone(user.requests_per_minute, device.requests_per_minute),
            at_once: is_alone(user.at_once, device.at_once),
            body: is_alone(user.body, device.body),
            tokens_per_day: is_alone(user.tokens_per_day, device.tokens_per_day),
        }
    }

    fn user(&self, user: &str) -> LimitSettings {
        self.users.get(user).copied().unwrap_or_default()
    }

    fn device(&self, device: &str) -> LimitSettings {
        self.devices.get(device).copied().unwrap_or_default()
    }
}

/// Whether a device's own limit stands in the place of its user's: only the device has one.
fn is_alone<T: Copy>(user: Setting<T>, device: Setting<T>) -> bool {
    matches!(user, Setting::Nothing) && !matches!(device, Setting::Nothing)
}

/// The most specific settings, which come first.
fn resolved(layers: &[Option<&LimitSettings>]) -> Limits {
    let layers = || layers.iter().flatten();
    Limits {
        requests_per_minute: nearest(layers().map(|l| l.requests_per_minute)),
        burst: nearest(layers().map(|l| l.burst)),
        at_once: nearest(layers().map(|l| l.at_once)),
        body: nearest(layers().map(|l| l.body)).map(|Size(bytes)| bytes),
        tokens_per_day: nearest(layers().map(|l| l.tokens_per_day)).map(|Positive(tokens)| tokens),
    }
}

fn nearest<T: Copy>(said: impl Iterator<Item = Setting<T>>) -> Option<T> {
    for said in said {
        match said {
            Setting::Nothing => {}
            Setting::None => return None,
            Setting::At(limit) => return Some(limit),
        }
    }
    None
}

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str =
            "a size is a number of bytes, or a number and KiB, MiB or GiB, for example \"64MiB\"";
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "KiB" | "K" | "k" => 1 << 10,
            "MB" => 1_000_000,
            "MiB" | "M" => 1 << 20,
            "GB" => 1_000_000_000,
            "GiB" | "G" => 1 << 30,
            _ => return Err(WHY),
        };
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).map(Self).ok_or(WHY)
    }
}

/// A value, as a file may write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Raw {
    Number(i64),
    Text(String),
}

/// A type of limit that a file can set.
trait Value: Sized {
    const EXPECTED: &'static str;
    fn from_raw(raw: &Raw) -> Option<Self>;
}

impl Value for NonZeroU32 {
    const EXPECTED: &'static str = "a number from 1 to 4294967295, or \"none\"";
    fn from_raw(raw: &Raw) -> Option<Self> {
        let Raw::Number(number) = raw else { return None };
        u32::try_from(*number).ok().and_then(Self::new)
    }
}

impl Value for Positive {
    const EXPECTED: &'static str = "a number above 0, or \"none\"";
    fn from_raw(raw: &Raw) -> Option<Self> {
        let Raw::Number(number) = raw else { return None };
        u64::try_from(*number).ok().filter(|number| *number > 0).map(Self)
    }
}

impl Value for Size {
    const EXPECTED: &'static str = "a number of bytes, text such as \"64MiB\", or \"none\"";
    fn from_raw(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Number(number) => u64::try_from(*number).ok().map(Self),
            Raw::Text(text) => text.parse().ok(),
        }
    }
}

impl<'de, T: Value> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = || de::Error::custom(format!("expected {}", T::EXPECTED));
        let raw = Raw::deserialize(deserializer).map_err(|_| expected())?;
        if matches!(&raw, Raw::Text(text) if text == "none") {
            return Ok(Self::None);
        }
        T::from_raw(&raw).map(Self::At).ok_or_else(expected)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Raw::deserialize(deserializer)
            .map_err(|_| de::Error::custom("expected a size such as \"64MiB\""))?;
        Self::from_raw(&raw).ok_or_else(|| de::Error::custom("expected a size such as \"64MiB\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> LimitSettings {
        toml::from_str(text).expect(text)
    }

    #[test]
    fn the_most_specific_table_applies_for_each_limit() {
        let table = LimitTable {
            default: settings("requests_per_minute = 60\nat_once = 4\nbody = '1MiB'"),
            roles: [("infer".to_owned(), settings("at_once = 2\ntokens_per_day = 1000"))].into(),
            devices: [("ci".to_owned(), settings("requests_per_minute = 600\nbody = 'none'"))]
                .into(),
            users: HashMap::new(),
        };
        let of = |role, device| table.limits(role, device);
        assert_eq!(of("admin", "laptop").at_once.map(NonZeroU32::get), Some(4));
        assert_eq!(of("infer", "laptop").at_once.map(NonZeroU32::get), Some(2));
        assert_eq!(of("infer", "laptop").body, Some(1 << 20));
        let ci = of("infer", "ci");
        assert_eq!(
            (ci.requests_per_minute.map(NonZeroU32::get), ci.body, ci.tokens_per_day),
            (Some(600), None, Some(1000))
        );
        assert_eq!(
            LimitTable::default().limits("infer", "ci"),
            Limits::default(),
            "without settings nothing is limited"
        );
    }

    #[test]
    fn an_invalid_limit_is_refused_with_what_was_expected() {
        for (text, says) in [
            ("requests_per_minute = 0", "a number from 1"),
            ("at_once = -1", "a number from 1"),
            ("burst = 'many'", "a number from 1"),
            ("tokens_per_day = 0", "a number above 0"),
            ("tokens_per_day = 1.5", "a number above 0"),
            ("body = '64 parsecs'", "64MiB"),
            ("body = '99999999999GiB'", "64MiB"),
            ("request_per_minute = 1", "unknown field"),
        ] {
            let error = toml::from_str::<LimitSettings>(text).expect_err(text).to_string();
            assert!(error.contains(says) && error.contains("line 1"), "{error}");
        }
    }

    #[test]
    fn a_size_is_written_as_people_write_it() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("4KiB", 4096), ("64 MiB", 64 << 20), ("2GB", 2_000_000_000)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "MiB", "-1", "1e3", "1.5MiB", "1TiB ", "٣"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
