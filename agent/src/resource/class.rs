//! Numbers for what policy can tell apart about secrets: their sets of labels.

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::LabelSet;

/// The number of no class: the file is no secret.
pub const NO_CLASS: u32 = 0;

/// Numbers each set of labels, from 1 on. It only grows: the kernel's rows speak of classes by number, so a number keeps
/// its meaning through rescans and reloads of the catalogue.
#[derive(Clone, Debug, Default)]
pub struct ClassTable {
    /// The numbers up to here are another table's.
    before: u32,
    classes: Vec<Arc<LabelSet>>,
    numbers: HashMap<Arc<LabelSet>, u32>,
}

impl ClassTable {
    /// A table whose numbers are all higher than `last`, so that they mean nothing that another daemon's meant.
    pub fn after(last: u32) -> Self {
        Self { before: last, ..Self::default() }
    }

    /// The class of a set of labels, numbered now if it has not been met before; [`NO_CLASS`] for the empty set.
    pub fn intern(&mut self, labels: &LabelSet) -> u32 {
        if labels.is_empty() {
            return NO_CLASS;
        }
        if let Some(&number) = self.numbers.get(labels) {
            return number;
        }
        let labels = Arc::new(labels.clone());
        self.classes.push(Arc::clone(&labels));
        let number = u32::try_from(self.classes.len()).unwrap_or(u32::MAX).saturating_add(self.before);
        self.numbers.insert(labels, number);
        number
    }

    /// The labels of a class.
    pub fn labels(&self, class: u32) -> Option<&Arc<LabelSet>> {
        let index = usize::try_from(class.checked_sub(self.before)?).ok()?.checked_sub(1)?;
        self.classes.get(index)
    }

    /// All classes and their numbers, in order.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &Arc<LabelSet>)> {
        (self.before.saturating_add(1)..).zip(&self.classes)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(labels: &[&str]) -> LabelSet {
        labels.iter().map(|label| label.parse().unwrap()).collect()
    }

    #[test]
    fn a_number_keeps_its_meaning() {
        let mut table = ClassTable::default();
        let ssh = table.intern(&set(&["secret/ssh"]));
        let both = table.intern(&set(&["secret/ssh", "secret/x"]));
        assert_eq!((ssh, both), (1, 2));
        assert_eq!(table.intern(&set(&["secret/x", "secret/ssh"])), both);
        assert_eq!(table.labels(ssh).unwrap().as_ref(), &set(&["secret/ssh"]));
        assert_eq!(table.numbered().map(|(number, _)| number).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn numbers_of_a_daemon_before_mean_nothing() {
        let mut table = ClassTable::after(7);
        let ssh = table.intern(&set(&["secret/ssh"]));
        assert_eq!((ssh, table.numbered().next().unwrap().0), (8, 8));
        assert_eq!(table.labels(ssh).unwrap().as_ref(), &set(&["secret/ssh"]));
        assert!((0..8).chain([9]).all(|class| table.labels(class).is_none()));
    }

    #[test]
    fn nothing_has_no_class() {
        let mut table = ClassTable::default();
        assert_eq!(table.intern(&LabelSet::new()), NO_CLASS);
        assert!(table.labels(NO_CLASS).is_none() && table.labels(1).is_none() && table.labels(u32::MAX).is_none());
    }
}
