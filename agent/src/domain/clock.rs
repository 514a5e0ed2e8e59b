//! The boot clock, on which the kernel counts deadlines and event times, and its wall-clock reading.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, suspend included: the kernel's `bpf_ktime_get_boot_ns`.
pub fn boot_now_ns() -> u64 {
    read(ClockId::CLOCK_BOOTTIME)
}

/// The boot-clock instant `life` from now, in nanoseconds; `u64::MAX`, which never comes, when that is out of range.
pub fn deadline_in(life: Duration) -> u64 {
    u64::try_from(life.as_nanos()).map_or(u64::MAX, |nanos| boot_now_ns().saturating_add(nanos))
}

/// Readings of which the closest is taken.
const READINGS: usize = 3;

/// How the boot clock stood against the wall clock at one moment.
///
/// It is taken anew once in a while, since the wall clock can be set.
#[derive(Clone, Copy, Debug)]
pub struct BootClock {
    boot: u64,
    wall: Timestamp,
}

impl BootClock {
    /// Reads both clocks, several times where the reading was interrupted: the closest pair counts.
    pub fn now() -> Self {
        let readings = (0..READINGS).map(|_| Self::read());
        readings.min_by_key(|(_, took)| *took).map_or_else(|| Self::read().0, |(clock, _)| clock)
    }

    /// By how much the wall clock moved against the boot clock since an earlier reading: it was set, or slewed.
    pub fn stepped_since(&self, before: &Self) -> Duration {
        self.wall.duration_since(before.wall(self.boot)).unsigned_abs()
    }

    /// Both clocks, and how long the reading took in nanoseconds.
    fn read() -> (Self, u64) {
        let before = boot_now_ns();
        let wall = Timestamp::now();
        let took = boot_now_ns().saturating_sub(before);
        (Self { boot: before.saturating_add(took / 2), wall }, took)
    }

    /// The wall-clock time of a boot-clock instant in nanoseconds; clamped to the times that can be written.
    pub fn wall(&self, boot_ns: u64) -> Timestamp {
        let distance = i128::from(boot_ns) - i128::from(self.boot);
        let offset = SignedDuration::from_nanos(i64::try_from(distance).unwrap_or(i64::MAX));
        self.wall.saturating_add(offset).unwrap_or(Timestamp::MAX)
    }
}

fn read(clock: ClockId) -> u64 {
    // It cannot fail: the clock exists since Linux 2.6.39, and before boot there is no one to ask.
    let Ok(time) = clock_gettime(clock) else { return 0 };
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_moves_with_boot_time_both_ways() {
        let clock = BootClock { boot: 5_000_000_000, wall: "2026-01-02T03:04:05Z".parse().unwrap() };
        assert_eq!(clock.wall(5_000_000_000).to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(clock.wall(6_500_000_000).to_string(), "2026-01-02T03:04:06.5Z");
        assert_eq!(clock.wall(4_000_000_000).to_string(), "2026-01-02T03:04:04Z");
    }

    #[test]
    fn a_step_is_told_from_the_passing_of_time() {
        let before = BootClock { boot: 5_000_000_000, wall: "2026-01-02T03:04:05Z".parse().unwrap() };
        let later = BootClock { boot: 6_000_000_000, wall: "2026-01-02T03:04:06Z".parse().unwrap() };
        assert_eq!(later.stepped_since(&before), Duration::ZERO);
        let set_back = BootClock { wall: "2026-01-02T02:04:06Z".parse().unwrap(), ..later };
        assert_eq!(set_back.stepped_since(&before), Duration::from_secs(3600));
    }

    #[test]
    fn an_instant_that_never_comes_is_the_far_future() {
        assert!(BootClock::now().wall(u64::MAX) > Timestamp::now());
        assert_eq!(deadline_in(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_deadline_lies_ahead_by_its_life() {
        let before = boot_now_ns();
        let deadline = deadline_in(Duration::from_secs(60));
        assert!(before > 0 && deadline >= before + 60_000_000_000);
        assert!(deadline <= boot_now_ns() + 60_000_000_000);
    }
}
