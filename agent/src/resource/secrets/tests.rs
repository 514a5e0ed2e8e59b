use super::*;

#[test]
fn the_shipped_catalogue_loads() {
    let secrets = Secrets::load(SHIPPED, None, &[PathBuf::from("/root")]).unwrap();
    assert!(secrets.entries.len() > 30);
}
