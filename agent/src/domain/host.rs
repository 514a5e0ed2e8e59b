//! Names of hosts, as catalogues, questions and policies write them: lower case, without the final dot.

/// Longest name.
pub const MAX_NAME: usize = 253;
const MAX_PART: usize = 63;

/// Whether `name` is one that can be asked for: lower case, no final dot, no part or whole too long.
pub fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        (1..=MAX_PART).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    name.len() <= MAX_NAME && name.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_not_too_long() {
        let long = [["a"; 126].join("."), "b.c".to_owned()].join(".");
        for good in ["a", "a.b", "_8443._https.a.example", "xn--bcher-kva.example", "1.2.3.4", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "A", "a b", "ä", "a/b", "*", &"x".repeat(64), &long] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
