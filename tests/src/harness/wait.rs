//! Waiting for a condition, with a bound.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How much slower than a plain host this machine is: `WRIT_TEST_SLOW`.
pub(crate) fn slowness() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let text = std::env::var("WRIT_TEST_SLOW").unwrap_or_default();
        text.parse().unwrap_or(1).max(1)
    })
}

/// `seconds` of a plain host.
pub(crate) fn bound(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * slowness()
}

/// Asks until there is an answer.
pub(crate) fn until<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + bound(seconds);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {:?}", bound(seconds));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a moment that a clock brings.
pub(crate) fn until_instant(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}
