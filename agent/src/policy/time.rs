//! Time: what the context says of it, and when a comparison with it changes next.

use cedar_policy::pst::Expr;
use cedar_policy::{Context, Entities, EvalResult, Expression, Request, RestrictedExpression, eval_expression};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::entity;
use super::reads::{Reads, is_constant};
use crate::domain::{Lifetime, UnixMillis};

const DAY: i64 = 86_400_000;

/// 9999-01-01: the last instants that Cedar's `datetime` can write are only months later.
const LATEST: UnixMillis = 253_370_764_800_000;

/// A reading that moves by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// `context.env.now`.
    Now,
    /// `context.env.localTime`.
    LocalTime,
}

#[derive(Clone, Debug)]
enum Bound {
    /// Milliseconds: since 1970 for `Now`, since midnight for `LocalTime`.
    Fixed(i64),
    /// Depends on the task or the resource; evaluates to such milliseconds.
    Asked(Box<Expression>),
}

/// A comparison of a clock with a bound: its outcome changes only when the clock passes the bound.
#[derive(Clone, Debug)]
pub(super) struct TimeAtom {
    clock: Clock,
    bound: Bound,
    at: bool,
    after: bool,
}

impl TimeAtom {
    /// Nothing if the bound is no expression that can be evaluated by itself.
    pub(super) fn new(clock: Clock, bound: &Expr, at: bool, after: bool) -> Option<Self> {
        let millis = match clock {
            Clock::Now => format!("({bound}).durationSince(datetime(\"1970-01-01\")).toMilliseconds()"),
            Clock::LocalTime => format!("({bound}).toMilliseconds()"),
        };
        let millis: Expression = millis.parse().ok()?;
        let bound = if is_constant(bound) {
            Bound::Fixed(evaluate(&entity::nobodys_request()?, &Entities::empty(), &millis)?)
        } else {
            Bound::Asked(Box::new(millis))
        };
        Some(Self { clock, bound, at, after })
    }

    /// The clock's readings at which the outcome may differ from the reading one millisecond before.
    fn flips(&self, request: &Request, store: &Entities) -> Option<impl Iterator<Item = i64>> {
        let bound = match &self.bound {
            Bound::Fixed(bound) => *bound,
            Bound::Asked(expression) => evaluate(request, store, expression)?,
        };
        let after = self.after.then(|| bound.saturating_add(1));
        Some(self.at.then_some(bound).into_iter().chain(after))
    }
}

fn evaluate(request: &Request, store: &Entities, expression: &Expression) -> Option<i64> {
    match eval_expression(request, store, expression) {
        Ok(EvalResult::Long(millis)) => Some(millis),
        _ => None,
    }
}

/// An instant as policies see it on this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    at: UnixMillis,
    local_time: i64,
    weekday: i64,
    /// Until one millisecond before it, the local clock runs evenly and the calendar stays: the next midnight or the next
    /// change of the zone's offset.
    horizon: UnixMillis,
}

impl Moment {
    /// Instants before 1970 or after 9998 count as the nearest that policies can name.
    pub(super) fn new(at: UnixMillis, zone: &TimeZone) -> Self {
        let at = at.clamp(0, LATEST);
        let instant = timestamp(at);
        let local = instant.to_zoned(zone.clone());
        let since_midnight = local.time().duration_since(jiff::civil::Time::midnight());
        let local_time = i64::try_from(since_midnight.as_millis()).unwrap_or_default();
        let midnight = at.saturating_add(DAY - local_time);
        let change = zone.following(instant).next().map_or(i64::MAX, |change| change.timestamp().as_millisecond());
        Self {
            at,
            local_time,
            weekday: i64::from(local.weekday().to_monday_one_offset()),
            horizon: midnight.min(change),
        }
    }

    /// The context of a request at this instant.
    pub(super) fn context(&self) -> Option<Context> {
        let environment = RestrictedExpression::new_record([
            ("now".to_owned(), datetime(self.at)),
            ("localTime".to_owned(), RestrictedExpression::new_duration(format!("{}ms", self.local_time))),
            ("weekday".to_owned(), RestrictedExpression::new_long(self.weekday)),
        ])
        .ok()?;
        Context::from_pairs([("env".to_owned(), environment)]).ok()
    }

    /// How long, from this instant on, what a policy reads of time stays as it is.
    pub(super) fn lifetime(&self, reads: &Reads, request: &Request, store: &Entities) -> Lifetime {
        if reads.event {
            return Lifetime::Ask;
        }
        let calendar = if reads.calendar { self.until(self.horizon) } else { Lifetime::Forever };
        reads.atoms.iter().map(|atom| self.atom_lifetime(atom, request, store)).fold(calendar, Lifetime::min)
    }

    fn atom_lifetime(&self, atom: &TimeAtom, request: &Request, store: &Entities) -> Lifetime {
        let Some(flips) = atom.flips(request, store) else { return Lifetime::Ask };
        match atom.clock {
            Clock::Now => flips.map(|flip| self.until(flip)).fold(Lifetime::Forever, Lifetime::min),
            Clock::LocalTime => flips
                .map(|flip| self.until(flip.saturating_sub(self.local_time).saturating_add(self.at)))
                .fold(self.until(self.horizon), Lifetime::min),
        }
    }

    pub(super) fn has_reached(&self, instant: UnixMillis) -> bool {
        self.at >= instant
    }

    /// Up to the millisecond before `change`, if that is still to come.
    pub(super) fn until(&self, change: UnixMillis) -> Lifetime {
        if change > self.at { Lifetime::Until(change - 1) } else { Lifetime::Forever }
    }
}

/// Cedar's `datetime` of an instant.
pub(super) fn datetime(at: UnixMillis) -> RestrictedExpression {
    RestrictedExpression::new_datetime(timestamp(at).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

fn timestamp(at: UnixMillis) -> Timestamp {
    Timestamp::from_millisecond(at.clamp(0, LATEST)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str) -> UnixMillis {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    #[test]
    fn the_local_clock_stops_being_even_at_midnight_and_where_the_offset_changes() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let plain = Moment::new(millis("2026-11-23T09:30:00Z"), &berlin);
        assert_eq!((plain.local_time, plain.weekday), (10 * 3_600_000 + 1_800_000, 1));
        assert_eq!(plain.horizon, millis("2026-11-23T23:00:00Z"));
        let before_the_change = Moment::new(millis("2026-10-24T22:30:00Z"), &berlin);
        assert_eq!(before_the_change.horizon, millis("2026-10-25T01:00:00Z"));
    }

    #[test]
    fn instants_that_policies_cannot_name_are_taken_as_the_nearest() {
        for at in [i64::MIN, -1, 0, 1, LATEST, i64::MAX] {
            assert!(Moment::new(at, &TimeZone::UTC).context().is_some(), "{at}");
        }
    }
}
