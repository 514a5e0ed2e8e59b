//! Lengths of time as people write them: `30m`, `500ms`, `1h 30m`.

use std::time::Duration;

use jiff::SignedDuration;

/// Why a text is not a usable length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a number with a unit, or larger than any number of seconds that we can hold.
    #[error(
        "`{0}` is not a length of time; write a number and a unit, such as `500ms`, `30m` or `1h 30m`, and days in hours, \
         such as `24h`"
    )]
    Malformed(String),
    /// Less than nothing.
    #[error("`{0}` is negative; write a length of time above zero, such as `30m`")]
    Negative(String),
    /// Nothing.
    #[error("`{0}` is no time at all; write a length of time above zero, such as `30m`")]
    Zero(String),
    /// More than the caller takes.
    #[error("`{text}` is longer than `{max}`, the most that is allowed here; shorten it")]
    TooLong {
        /// What was given.
        text: String,
        /// The most that is allowed.
        max: String,
    },
}

/// The length of time that `text` means, in jiff's friendly format: above zero and at most `max`.
///
/// # Errors
/// [`DurationError`], which names `text`.
pub fn parse_duration(text: &str, max: Duration) -> Result<Duration, DurationError> {
    let duration = parse_duration_or_zero(text, max)?;
    if duration.is_zero() { Err(DurationError::Zero(text.to_owned())) } else { Ok(duration) }
}

/// Like [`parse_duration`], where zero has a meaning too (`0s`: never).
///
/// # Errors
/// [`DurationError`], which names `text`; never `Zero`.
pub fn parse_duration_or_zero(text: &str, max: Duration) -> Result<Duration, DurationError> {
    // The words of the parser name its own types, and units of a calendar that have no fixed length.
    let signed: SignedDuration = text.trim().parse().map_err(|_| DurationError::Malformed(text.to_owned()))?;
    if signed.is_negative() {
        return Err(DurationError::Negative(text.to_owned()));
    }
    let duration = signed.unsigned_abs();
    if duration > max {
        return Err(DurationError::TooLong { text: text.to_owned(), max: format_duration(max) });
    }
    Ok(duration)
}

/// The text of a length of time, which [`parse_duration`] reads back: `1h 30m`.
pub fn format_duration(duration: Duration) -> String {
    format!("{:#}", SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn friendly_texts_are_read() {
        for (text, millis) in
            [("30m", 1_800_000), ("500ms", 500), ("1h 30m", 5_400_000), (" 3s ", 3000), ("24h", 86_400_000)]
        {
            assert_eq!(parse_duration(text, DAY), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn every_refusal_names_the_text() {
        for bad in
            ["", "30", "soon", "1d", "-5m", "5m ago", "0s", "25h", "99999999999999999999h", "9223372036854775807h"]
        {
            let error = parse_duration(bad, DAY).unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let days = parse_duration("999999999d", Duration::MAX).unwrap_err().to_string();
        assert!(days.ends_with("and days in hours, such as `24h`") && !days.contains("jiff"), "{days}");
        assert!(matches!(parse_duration("-5m", DAY), Err(DurationError::Negative(_))));
        assert!(matches!(parse_duration("0ms", DAY), Err(DurationError::Zero(_))));
        assert_eq!(parse_duration_or_zero("0ms", DAY), Ok(Duration::ZERO));
        let too_long = parse_duration("86400001ms", DAY).unwrap_err();
        assert_eq!(
            too_long.to_string(),
            "`86400001ms` is longer than `24h`, the most that is allowed here; shorten it"
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(millis in 1_u64..86_400_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration), DAY), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            if let Ok(duration) = parse_duration(&text, DAY) {
                prop_assert!(!duration.is_zero() && duration <= DAY);
            }
        }
    }
}
