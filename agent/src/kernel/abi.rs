//! The layout of the maps as a short text: programs may share pinned maps only with programs of the same layout.

use std::fmt::Write;

use agent_common::{ABI_VERSION, Action, Counter, DaemonLoss, Effect, Facility, Mode, Reason, Source, TaskStatus};
use aya_obj::{Object, ParseError};

/// What an object's programs share with others.
pub struct Abi {
    /// `v1-` and sixteen digits: the version that people count up, and a hash of every map's definition and every code.
    pub layout: String,
    /// The maps' names.
    pub maps: Vec<String>,
}

impl Abi {
    /// That of an object.
    ///
    /// # Errors
    /// If the object cannot be parsed.
    pub fn of(object: &[u8]) -> Result<Self, ParseError> {
        let object = Object::parse(object)?;
        let mut maps: Vec<String> = object.maps.keys().filter(|name| is_shared(name)).cloned().collect();
        maps.sort();
        Ok(Self { layout: name(&describe(&object, &maps)), maps })
    }
}

/// Not the programs' own constants, nor the ring of their debug lines.
fn is_shared(map: &str) -> bool {
    !map.starts_with('.') && map != "AYA_LOGS"
}

fn name(description: &str) -> String {
    format!("v{ABI_VERSION}-{:016x}", hash(description.as_bytes()))
}

fn describe(object: &Object, maps: &[String]) -> String {
    let mut text = String::new();
    for (name, map) in maps.iter().filter_map(|name| Some((name, object.maps.get(name)?))) {
        let sizes = (map.map_type(), map.key_size(), map.value_size(), map.max_entries(), map.map_flags());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name} {sizes:?}");
    }
    codes(&mut text);
    text
}

fn codes(text: &mut String) {
    let mut list = |name: &str, codes: Vec<(u32, &str)>| {
        let _ = writeln!(text, "{name} {codes:?}");
    };
    list("action", Action::ALL.iter().map(|code| (code.code().into(), code.as_str())).collect());
    list("effect", Effect::ALL.iter().map(|code| (code.code().into(), code.as_str())).collect());
    list("reason", Reason::ALL.iter().map(|code| (code.code().into(), code.as_str())).collect());
    list("source", Source::ALL.iter().map(|code| (code.code().into(), code.as_str())).collect());
    list("status", TaskStatus::ALL.iter().map(|code| (code.code(), code.as_str())).collect());
    list("mode", Mode::ALL.iter().map(|code| (code.code(), code.as_str())).collect());
    list("loss", DaemonLoss::ALL.iter().map(|code| (code.code(), code.as_str())).collect());
    list("facility", Facility::ALL.iter().map(|code| (code.code(), code.as_str())).collect());
    list("counter", Counter::ALL.iter().map(|code| (code.code(), code.as_str())).collect());
}

/// FNV-1a: it tells layouts apart that differ by accident, and stays the same whatever Rust's own hasher becomes.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_difference_gives_another_name() {
        let mut text = String::new();
        codes(&mut text);
        assert!(text.contains("daemon_lost") && text.contains("io_uring"));
        assert_ne!(name(&text), name(&text.replace("daemon_lost", "lost")));
        assert_eq!(name("x").len(), "v1-0123456789abcdef".len());
    }
}
