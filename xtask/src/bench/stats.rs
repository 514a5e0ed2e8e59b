//! Statistics: what many runs say together.

use serde::Serialize;

/// Median, least and greatest of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// `None` of nothing.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

/// Where half, most and nearly all of some values end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Distribution {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Distribution {
    /// `None` of nothing.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        let at = |percent| nearest_rank(&sorted, percent);
        Some(Self { count: sorted.len(), p50: at(50)?, p90: at(90)?, p99: at(99)?, max: at(100)? })
    }
}

/// The least value that this percentage of all values does not exceed.
fn nearest_rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// What one operation takes in the best of some batches of `count`: whatever else happens on a machine only adds.
pub(super) fn best(batches: &[u64], count: u32) -> Option<f64> {
    batches.iter().min().map(|least| as_f64(*least) / f64::from(count))
}

/// Exact up to 2^53, far beyond any time or count here.
#[expect(clippy::cast_precision_loss, reason = "no number here comes near 2^53")]
pub(super) fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_of_the_middle_and_the_ends() {
        assert_eq!(Summary::of([3.0, 1.0, 9.0]), Some(Summary { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 9.0]), Some(Summary { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred = Distribution::of((1..=100).rev().map(f64::from));
        assert_eq!(hundred, Some(Distribution { count: 100, p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 }));
        let one = Distribution::of([7.0]);
        assert_eq!(one, Some(Distribution { count: 1, p50: 7.0, p90: 7.0, p99: 7.0, max: 7.0 }));
        assert_eq!(Distribution::of([]), None);
    }

    #[test]
    fn the_best_batch_counts() {
        assert_eq!(best(&[3000, 1500, 2000], 1000), Some(1.5));
        assert_eq!(best(&[], 1000), None);
    }
}
