//! What test programs print, as numbers and names.

use std::time::Duration;

/// What one test program, or several together, counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// The tests that failed, by name.
    pub(crate) failures: Vec<String>,
    /// The tests that were skipped, by name, with the reason where one was given.
    pub(crate) skips: Vec<String>,
}

impl Counts {
    /// Reads what cargo's test programs print, adding up the result line of each.
    pub(crate) fn from_cargo(output: &str) -> Self {
        let mut counts = Self::with_names(output);
        for line in output.lines().filter(|line| line.starts_with("test result:")) {
            counts.passed += before(line, "passed").unwrap_or(0);
            counts.failed += before(line, "failed").unwrap_or(0);
            counts.skipped += before(line, "ignored").unwrap_or(0);
        }
        counts
    }

    /// Reads what the privileged suite prints; `None` without the closing line that has the numbers.
    fn from_suite(output: &str) -> Option<Self> {
        let [passed, failed, skipped] = output.lines().rev().find_map(closing)?;
        Some(Self { passed, failed, skipped, ..Self::with_names(output) })
    }

    pub(crate) fn total(&self) -> u64 {
        self.passed + self.failed + self.skipped
    }

    fn with_names(output: &str) -> Self {
        let mut counts = Self::default();
        for (name, result) in output.lines().filter_map(result) {
            if result.starts_with("FAILED") {
                counts.failures.push(name.to_owned());
            } else if let Some(reason) = result.strip_prefix("ignored").or_else(|| result.strip_prefix("skipped")) {
                counts.skips.push(format!("{name}{reason}"));
            }
        }
        counts
    }
}

/// The name and the result of a line like `test a::b ... ok`.
fn result(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name.trim(), result.trim()))
}

/// The numbers of a line like `3 passed, 0 failed, 1 skipped`.
fn closing(line: &str) -> Option<[u64; 3]> {
    line.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    Some([before(line, "passed")?, before(line, "failed")?, before(line, "skipped")?])
}

/// The number right before a word.
fn before(line: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = line.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let pair = words.windows(2).find(|pair| pair.last() == Some(&word))?;
    pair.first()?.parse().ok()
}

/// One layer of tests and how it went.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) counts: Counts,
    pub(crate) duration: Duration,
    /// What went wrong with the layer as a whole.
    pub(crate) problem: Option<String>,
}

impl Layer {
    pub(crate) fn new(name: &str, counts: Counts, duration: Duration) -> Self {
        Self { name: name.to_owned(), counts, duration, problem: None }
    }

    /// A run of the privileged suite. Without its closing line it did not end by itself, and nothing that it said
    /// before counts as passed.
    pub(crate) fn of_suite(name: &str, output: &str, duration: Duration) -> Self {
        let counts = Counts::from_suite(output);
        let complete = counts.is_some();
        let mut layer = Self::new(name, counts.unwrap_or_else(|| Counts::with_names(output)), duration);
        if !complete {
            layer.fail("the suite ended without its closing line");
        }
        layer
    }

    /// A layer that could not be run and may be missing; it counts as one skip.
    pub(crate) fn skipped(name: &str, reason: String) -> Self {
        let counts = Counts { skipped: 1, skips: vec![format!("kernel {name}: {reason}")], ..Counts::default() };
        Self::new(name, counts, Duration::ZERO)
    }

    /// Notes what went wrong. A layer that fails without naming a test counts as one failure.
    pub(crate) fn fail(&mut self, problem: &str) {
        self.counts.failed = self.counts.failed.max(1);
        let earlier = self.problem.take().map(|earlier| format!("{earlier}; ")).unwrap_or_default();
        self.problem = Some(earlier + problem);
    }

    pub(crate) fn is_good(&self) -> bool {
        self.counts.failed == 0 && self.problem.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_of_cargo_add_up() {
        let output = "running 2 tests\ntest a::b ... ok\ntest a::c ... ignored, needs a thing\n\n\
                      test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                      test d ... FAILED\n\
                      test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        let expected = Counts {
            passed: 5,
            failed: 1,
            skipped: 1,
            failures: vec!["d".to_owned()],
            skips: vec!["a::c, needs a thing".to_owned()],
        };
        assert_eq!(Counts::from_cargo(output), expected);
    }

    #[test]
    fn the_suite_counts_itself() {
        let output =
            "test fork::keeps_mark ... ok\ntest lsm::open ... skipped: tier reduced\n1 passed, 0 failed, 1 skipped\n";
        let layer = Layer::of_suite("x", output, Duration::ZERO);
        assert!(layer.is_good());
        assert_eq!((layer.counts.passed, layer.counts.failed, layer.counts.skipped), (1, 0, 1));
        assert_eq!(layer.counts.skips, ["lsm::open: tier reduced"]);
    }

    #[test]
    fn a_suite_that_was_cut_off_passed_nothing() {
        for output in ["", "test a ... ok\ntest b ... ok\n", "3 passed, 0 fai"] {
            let layer = Layer::of_suite("x", output, Duration::ZERO);
            assert_eq!((layer.counts.passed, layer.counts.failed), (0, 1), "{output}");
        }
    }

    #[test]
    fn a_problem_is_at_least_one_failure() {
        let mut layer = Layer::new("x", Counts { passed: 3, ..Counts::default() }, Duration::ZERO);
        assert!(layer.is_good());
        layer.fail("first");
        layer.fail("second");
        assert_eq!((layer.counts.failed, layer.problem.as_deref()), (1, Some("first; second")));
        assert!(!layer.is_good());
    }
}
