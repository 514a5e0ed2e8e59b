//! Which of many overlapping ranges contain a number, by one binary search.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The line of numbers, cut wherever a range begins or ends; each piece knows its value.
#[derive(Clone, Debug)]
pub(super) struct Pieces<V> {
    /// First number of each piece, ascending, and its value. The first piece begins at 0.
    starts: Vec<(u128, V)>,
}

impl<V> Pieces<V> {
    /// Cuts the line; `value` tells a piece's value from the indices, ascending, of the ranges that contain it.
    pub(super) fn new(ranges: &[RangeInclusive<u128>], mut value: impl FnMut(&[usize]) -> V) -> Self {
        // At each number, the ranges that begin there and those that ended just before.
        let mut cuts: BTreeMap<u128, (Vec<usize>, Vec<usize>)> = BTreeMap::from([(0, Default::default())]);
        for (index, range) in ranges.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            cuts.entry(*range.start()).or_default().0.push(index);
            if let Some(after) = range.end().checked_add(1) {
                cuts.entry(after).or_default().1.push(index);
            }
        }
        let mut inside: Vec<usize> = Vec::new();
        let mut piece = |(start, (begin, end)): (u128, (Vec<usize>, Vec<usize>))| {
            inside.retain(|index| !end.contains(index));
            inside.extend(begin);
            inside.sort_unstable();
            (start, value(&inside))
        };
        Self { starts: cuts.into_iter().map(&mut piece).collect() }
    }

    /// The value of the piece that `number` is in.
    pub(super) fn at(&self, number: u128) -> Option<&V> {
        let after = self.starts.partition_point(|(start, _)| *start <= number);
        self.starts.get(after.checked_sub(1)?).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers near each other and at both ends, so that ranges often touch.
    fn number() -> impl Strategy<Value = u128> {
        prop_oneof![0_u128..12, (u128::MAX - 6)..=u128::MAX, any::<u128>()]
    }

    proptest! {
        #[test]
        fn pieces_agree_with_looking_at_every_range(
            bounds in prop::collection::vec((number(), number()), 0..8),
            numbers in prop::collection::vec(number(), 1..40),
        ) {
            let ranges: Vec<_> = bounds.into_iter().map(|(a, b)| a..=b).collect();
            let pieces = Pieces::new(&ranges, <[usize]>::to_vec);
            for number in numbers {
                let naive: Vec<usize> = (0..ranges.len()).filter(|&index| ranges[index].contains(&number)).collect();
                prop_assert_eq!(pieces.at(number), Some(&naive));
            }
        }
    }
}
