//! `writ reload`.

use crate::api::types::ReloadView;

pub(super) fn text(reloaded: &ReloadView) -> String {
    format!("generation {} with {} policies is in force\n", reloaded.generation, reloaded.policies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_generation_is_named() {
        let text = text(&ReloadView { generation: 3, policies: 7 });
        assert_eq!(text, "generation 3 with 7 policies is in force\n");
    }
}
