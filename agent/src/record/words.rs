//! The closed lists' words in JSON, for types that the kernel shares and that therefore know no serde; and times.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serializer, de};

macro_rules! words {
    ($($name:ident: $type:ident,)+) => {
        $(pub(super) mod $name {
            use agent_common::$type;
            use serde::{Deserializer, Serializer};

            pub(in super::super) fn serialize<S: Serializer>(value: &$type, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(value.as_str())
            }

            pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                super::word(from, stringify!($name), $type::ALL, $type::as_str)
            }
        })+
    };
}

words! { action: Action, effect: Effect, reason: Reason, source: Source, mode: Mode, }

/// The member of `all` whose word comes from `from`.
fn word<'de, D, T>(from: D, what: &str, all: &[T], as_str: fn(T) -> &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Copy,
{
    let text = std::borrow::Cow::<'_, str>::deserialize(from)?;
    let known = all.iter().copied().find(|&value| as_str(value) == text);
    known.ok_or_else(|| de::Error::custom(format_args!("`{text}` is no known {what}")))
}

/// `at` without what is finer than the microseconds that records keep.
pub(super) fn to_micros(at: Timestamp) -> Timestamp {
    let finer = SignedDuration::from_nanos(i64::from(at.subsec_nanosecond().rem_euclid(1000)));
    at.checked_sub(finer).unwrap_or(at)
}

/// RFC 3339, UTC, always six digits of a second, so that lines sort and align as text.
pub(super) mod time {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:.6}", to_micros(*at)))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(from)
    }
}

/// [`time`] for a time that need not be there.
pub(super) mod optional_time {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => time::serialize(at, to),
            None => to.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        Option::deserialize(from)
    }
}
