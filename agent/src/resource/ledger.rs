//! What every protected file was called first.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{Protected, Scan};

/// Remembers files by identity, so that moving one to a place with other labels does not change what it is called: an
/// agent may rename what it cannot read.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    known: HashMap<(u64, u64), Known>,
}

#[derive(Clone, Debug)]
struct Known {
    path: PathBuf,
    class: u32,
}

impl Ledger {
    /// Gives every file and directory of a scan the class that it was first found with. If the catalogue was `reloaded`
    /// since the last scan, those that are still where they were get their new class.
    pub fn settle(&mut self, scan: &mut Scan, reloaded: bool) {
        let all = scan.files.iter_mut().chain(&mut scan.inside).chain(&mut scan.directories);
        all.for_each(|found| self.settle_one(found, reloaded));
    }

    /// Forgets a file that is gone for good, before its inode number is used again.
    pub fn forget(&mut self, device: u64, inode: u64) {
        self.known.remove(&(device, inode));
    }

    fn settle_one(&mut self, found: &mut Protected, reloaded: bool) {
        let first = || Known { path: found.path.clone(), class: found.class };
        let known = self.known.entry((found.device, found.inode)).or_insert_with(first);
        if reloaded && known.path == found.path {
            known.class = found.class;
        }
        found.class = known.class;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(path: &str, class: u32) -> Scan {
        let file = Protected { path: path.into(), class, device: 1, inode: 7 };
        Scan { files: vec![file], ..Scan::default() }
    }

    fn settled(ledger: &mut Ledger, mut scan: Scan, reloaded: bool) -> u32 {
        ledger.settle(&mut scan, reloaded);
        scan.files[0].class
    }

    #[test]
    fn a_moved_file_keeps_its_class_even_after_it_was_out_of_sight() {
        let mut ledger = Ledger::default();
        assert_eq!(settled(&mut ledger, scan("/aws", 1), false), 1);
        ledger.settle(&mut Scan::default(), false);
        assert_eq!(settled(&mut ledger, scan("/env", 2), false), 1);
        assert_eq!(settled(&mut ledger, scan("/env", 2), true), 1);
    }

    #[test]
    fn a_reload_gives_new_classes_to_what_has_not_moved() {
        let mut ledger = Ledger::default();
        assert_eq!(settled(&mut ledger, scan("/aws", 1), false), 1);
        assert_eq!(settled(&mut ledger, scan("/aws", 3), false), 1);
        assert_eq!(settled(&mut ledger, scan("/aws", 3), true), 3);
    }

    #[test]
    fn another_file_under_a_forgotten_number_starts_anew() {
        let mut ledger = Ledger::default();
        assert_eq!(settled(&mut ledger, scan("/aws", 1), false), 1);
        ledger.forget(1, 7);
        assert_eq!(settled(&mut ledger, scan("/env", 2), false), 2);
    }
}
