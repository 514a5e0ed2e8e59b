//! Values of `writd.toml` that are written as texts.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::domain::Mode;
use crate::domain::duration::{DurationError, format_duration, parse_duration, parse_duration_or_zero};

use super::Require;

const HOUR: Duration = Duration::from_secs(3600);
const MAX_TTL: Duration = HOUR.saturating_mul(24 * 365);
const MAX_HOLD: Duration = Duration::from_secs(1);
const MIN_STALE: Duration = Duration::from_millis(500);

/// Why a text of the file is refused. Each ends with the next step.
#[derive(Debug, thiserror::Error)]
pub(super) enum FieldError {
    #[error("`{0}` is not an absolute path; begin it with `/`")]
    Relative(String),
    #[error("`{given}` is not known here; use one of `{known}`")]
    Unknown { given: String, known: String },
    #[error("`{given}` is too short to tell a busy daemon from a lost one; write at least `{least}`")]
    Stale { given: String, least: String },
    #[error("`{0}` is no name server; write its address, as in `192.0.2.53`, `2001:db8::53` or `127.0.0.1:5353`")]
    Server(String),
    #[error("{0}")]
    Duration(#[from] DurationError),
}

pub(super) fn parse_path(text: &str) -> Result<PathBuf, FieldError> {
    let path = Path::new(text);
    if path.is_absolute() { Ok(path.to_owned()) } else { Err(FieldError::Relative(text.to_owned())) }
}

/// Port 53 unless it says another.
pub(super) fn parse_server(text: &str) -> Result<SocketAddr, FieldError> {
    let plain = || text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    text.parse().or_else(|_| plain()).map_err(|_| FieldError::Server(text.to_owned()))
}

/// The longest life that tasks may have.
pub(super) fn parse_max_ttl(text: &str) -> Result<Duration, FieldError> {
    Ok(parse_duration(text, MAX_TTL)?)
}

/// Zero holds nothing.
pub(super) fn parse_hold(text: &str) -> Result<Duration, FieldError> {
    Ok(parse_duration_or_zero(text, MAX_HOLD)?)
}

/// Up to an hour; zero is none.
pub(super) fn parse_hour(text: &str) -> Result<Duration, FieldError> {
    Ok(parse_duration_or_zero(text, HOUR)?)
}

pub(super) fn parse_stale(text: &str) -> Result<Duration, FieldError> {
    let stale = parse_duration(text, HOUR)?;
    let short = || FieldError::Stale { given: text.to_owned(), least: format_duration(MIN_STALE) };
    if stale < MIN_STALE { Err(short()) } else { Ok(stale) }
}

pub(super) fn parse_require(text: &str) -> Result<Require, FieldError> {
    one_of(text, &[("any", Require::Any), ("reduced", Require::Reduced), ("full", Require::Full)])
}

pub(super) fn parse_mode(text: &str) -> Result<Mode, FieldError> {
    one_of(text, &[("enforce", Mode::Enforce), ("audit", Mode::Audit)])
}

pub(super) fn parse_level(text: &str) -> Result<LevelFilter, FieldError> {
    let levels = [
        LevelFilter::OFF,
        LevelFilter::ERROR,
        LevelFilter::WARN,
        LevelFilter::INFO,
        LevelFilter::DEBUG,
        LevelFilter::TRACE,
    ];
    one_of(text, &["off", "error", "warn", "info", "debug", "trace"].into_iter().zip(levels).collect::<Vec<_>>())
}

fn one_of<T: Copy>(given: &str, known: &[(&str, T)]) -> Result<T, FieldError> {
    let found = known.iter().find(|(name, _)| *name == given).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        FieldError::Unknown { given: given.to_owned(), known: names.join("`, `") }
    })
}
