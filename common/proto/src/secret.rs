//! Secrets as text, read and written without copies of them that stay in memory.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserializer, Serializer, de};
use zeroize::Zeroizing;

/// Writes a secret's text: for `#[serde(with = "…")]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(text: &Zeroizing<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

/// Reads a secret's text.
///
/// # Errors
/// Those of the deserializer.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Zeroizing<String>, D::Error> {
    parsed(from, |text| Ok::<_, fmt::Error>(Zeroizing::new(text.to_owned())))
}

/// Reads a value from the text of a secret.
pub(crate) fn parse<'de, T: FromStr, D: Deserializer<'de>>(from: D) -> Result<T, D::Error>
where
    T::Err: fmt::Display,
{
    parsed(from, T::from_str)
}

fn parsed<'de, T, E: fmt::Display, D: Deserializer<'de>>(
    from: D,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    struct Text<F, T>(F, PhantomData<T>);

    impl<T, E: fmt::Display, F: FnOnce(&str) -> Result<T, E>> de::Visitor<'_> for Text<F, T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a secret as text")
        }

        fn visit_str<W: de::Error>(self, text: &str) -> Result<T, W> {
            self.0(text).map_err(W::custom)
        }

        fn visit_string<W: de::Error>(self, text: String) -> Result<T, W> {
            let text = Zeroizing::new(text);
            self.0(&text).map_err(W::custom)
        }
    }

    // A text in a buffer is borrowed, so that nothing has to be copied to be parsed.
    from.deserialize_str(Text(parse, PhantomData))
}
