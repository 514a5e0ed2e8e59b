//! `writ labels`.

use super::table::{plain, table};
use crate::api::types::LabelsView;

pub(super) fn text(labels: &LabelsView) -> String {
    let rows = |option: &str, labels: &[String]| -> Vec<Vec<String>> {
        labels.iter().map(|label| vec![plain(label), option.to_owned()]).collect()
    };
    let rows = [rows("--grant-read", &labels.read), rows("--grant-connect", &labels.connect)].concat();
    table(&["LABEL", "GRANT WITH"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_label_stands_beside_the_option_that_grants_it() {
        let labels = LabelsView { read: vec!["secret/npm".into()], connect: vec!["net/dns".into()] };
        let expected = "LABEL       GRANT WITH\nsecret/npm  --grant-read\nnet/dns     --grant-connect\n";
        assert_eq!(text(&labels), expected);
    }
}
