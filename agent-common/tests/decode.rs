//! Decoding is total: no bytes make it panic, and what it returns is what was written.

use agent_common::event::{self, Ask, Decided, Executed, Exited, Forked};
use agent_common::{DecodeError, Event};
use bytemuck::{Pod, Zeroable};
use proptest::prelude::*;

fn bytes_of<T: Pod>(value: &T) -> Vec<u8> {
    bytemuck::bytes_of(value).to_vec()
}

fn samples() -> Vec<Vec<u8>> {
    let ask = Ask { kind: event::KIND_ASK, action: 1, ..Zeroable::zeroed() };
    let decided =
        Decided { kind: event::KIND_DECIDED, action: 2, effect: 2, reason: 1, source: 1, ..Zeroable::zeroed() };
    let forked = Forked { kind: event::KIND_FORKED, child: 7, ..Zeroable::zeroed() };
    let executed = Executed { kind: event::KIND_EXECUTED, path_len: 3, ..Zeroable::zeroed() };
    let exited = Exited { kind: event::KIND_EXITED, ..Zeroable::zeroed() };
    vec![bytes_of(&ask), bytes_of(&decided), bytes_of(&forked), bytes_of(&executed), bytes_of(&exited)]
}

#[test]
fn whole_events_decode_and_every_prefix_is_short() {
    for sample in samples() {
        assert!(Event::decode(&sample).is_ok(), "whole event of {} bytes", sample.len());
        for len in 0..sample.len() {
            let prefix = Event::decode(&sample[..len]);
            assert!(
                matches!(prefix, Err(DecodeError::Short { have, .. }) if have == len),
                "prefix of {len}: {prefix:?}"
            );
        }
    }
}

#[test]
fn padding_behind_an_event_is_ignored() {
    for mut sample in samples() {
        let whole = Event::decode(&sample);
        sample.extend([0xff; 24]);
        assert_eq!(Event::decode(&sample), whole);
    }
}

#[test]
fn unknown_codes_are_named() {
    let decided = Decided { kind: event::KIND_DECIDED, action: 2, effect: 9, ..Zeroable::zeroed() };
    let error = Event::decode(&bytes_of(&decided));
    assert_eq!(error, Err(DecodeError::Code { field: "effect", value: 9 }));
    assert_eq!(Event::decode(&[9, 0, 0, 0]), Err(DecodeError::Kind(9)));
    let executed = Executed { kind: event::KIND_EXECUTED, path_len: 257, ..Zeroable::zeroed() };
    assert_eq!(Event::decode(&bytes_of(&executed)), Err(DecodeError::Code { field: "path_len", value: 257 }));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(kind in 0u32..8, rest in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(rest);
        for len in 0..=bytes.len() {
            let _ = Event::decode(&bytes[..len]);
        }
    }
}
