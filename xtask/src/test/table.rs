//! The table at the end of a test run: a line for each layer, then names, then the totals.

use std::fmt::Write;

use super::results::Layer;

/// The whole table, its last line the totals.
pub(crate) fn render(layers: &[Layer]) -> String {
    let width = layers.iter().map(|layer| layer.name.len()).max().unwrap_or(0).max("layer".len());
    let mut text =
        format!("\n{:width$}  {:>6}  {:>6}  {:>7}  {:>7}\n", "layer", "tests", "failed", "skipped", "seconds");
    for layer in layers {
        text.push_str(&row(layer, width));
    }
    for layer in layers {
        text.push_str(&names(layer));
    }
    let sum = |count: fn(&Layer) -> u64| -> u64 { layers.iter().map(count).sum() };
    let passed = sum(|layer| layer.counts.passed);
    let failed = sum(|layer| layer.counts.failed);
    let skipped = sum(|layer| layer.counts.skipped);
    text + &format!("{passed} passed, {failed} failed, {skipped} skipped\n")
}

fn row(layer: &Layer, width: usize) -> String {
    let (counts, seconds) = (&layer.counts, layer.duration.as_secs_f64());
    let (name, total) = (&layer.name, counts.total());
    format!("{name:width$}  {total:>6}  {:>6}  {:>7}  {seconds:>7.1}\n", counts.failed, counts.skipped)
}

/// What the numbers do not say: which tests, and why.
fn names(layer: &Layer) -> String {
    let mut text = String::new();
    let failures = layer.counts.failures.iter().map(|name| ("failed", name));
    let problem = layer.problem.iter().map(|problem| ("problem", problem));
    let skips = layer.counts.skips.iter().map(|name| ("skipped", name));
    for (kind, name) in problem.chain(failures).chain(skips) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{kind}: {}: {name}", layer.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::results::Counts;
    use super::*;

    #[test]
    fn layers_names_and_totals_are_shown() {
        let counts = Counts { passed: 5, skipped: 1, skips: vec!["a::b, why".to_owned()], ..Counts::default() };
        let mut second = Layer::new("6.12, full", Counts { passed: 2, ..Counts::default() }, Duration::from_secs(61));
        second.fail("it died");
        let layers = [Layer::new("units", counts, Duration::from_millis(1500)), second];
        let expected = "
layer        tests  failed  skipped  seconds
units            6       0        1      1.5
6.12, full       3       1        0     61.0
skipped: units: a::b, why
problem: 6.12, full: it died
7 passed, 1 failed, 1 skipped
";
        assert_eq!(render(&layers), expected);
    }
}
