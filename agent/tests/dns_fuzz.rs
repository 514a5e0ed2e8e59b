//! The resolver's readers on arbitrary bytes: they never panic, and what they let through keeps its promises.
//!
//! `WRIT_FUZZ_SECONDS` says for how long (2 without it). The corpus in `tests/corpus/dns` is where mutations begin; with
//! `WRIT_FUZZ_KEEP=1` inputs that come to a new outcome are added to it. A failure prints the input.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a test they are how it fails"
)]

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::names::Question;
use agent::names::answer::{MAX_TTL, accept, encode, filter, reply};
use agent::names::question::Fault;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn corpus() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "corpus", "dns"].iter().collect()
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
        IpAddr::V6(v6) => v6.is_loopback(),
    }
}

/// What became of some bytes, coarsely: two inputs of one outcome are much alike.
type Outcome = String;

/// As a question, and as an answer to each of the questions that it could answer.
fn try_all(bytes: &[u8]) -> Outcome {
    let as_question = match Question::read(bytes) {
        Ok(question) => {
            assert!(agent::domain::host::is_name(&question.name), "{question:?}");
            for code in [ResponseCode::Refused, ResponseCode::ServFail] {
                let sent = encode(&reply(&question, code), question.size.into()).expect("a reply can be written");
                let read = Message::from_vec(&sent).expect("a reply can be read");
                assert_eq!((read.metadata.id, &read.queries), (question.id, &vec![question.query.clone()]));
            }
            let kind = if question.is_for_addresses() { question.record_type() } else { "other".into() };
            format!("question {kind} {}", question.edns)
        }
        Err(Fault { answer, reason, .. }) => {
            let code = answer.as_ref().map(|answer| answer.metadata.response_code);
            if let Some(answer) = answer {
                answer.to_vec().expect("a refusal can be written");
            }
            format!("fault {code:?} {reason:?}")
        }
    };
    format!("{as_question}; {}", as_answer(bytes))
}

fn as_answer(bytes: &[u8]) -> Outcome {
    let Ok(message) = Message::from_vec(bytes) else { return "nothing".to_owned() };
    let [query] = message.queries.as_slice() else { return "no query".to_owned() };
    let Some(accepted) = accept(bytes, message.metadata.id, query) else { return "not accepted".to_owned() };
    let question =
        Question { id: 7, query: query.clone(), name: "a.example".into(), size: 512, edns: true, recursion: true };
    match filter(&question, &accepted, &is_private) {
        Err(reason) => format!("refused {reason:?}"),
        Ok(answer) => {
            assert!(answer.addresses.iter().all(|address| !is_private(*address)), "{answer:?}");
            assert!(answer.private.iter().all(|address| is_private(*address)), "{answer:?}");
            assert!(answer.message.answers.iter().all(|record| record.ttl <= MAX_TTL), "{answer:?}");
            assert!(addresses_in(&answer.message).iter().all(|address| !is_private(*address)), "{answer:?}");
            // What cannot be written is not sent.
            if let Some(sent) = encode(&answer.message, question.size.into()) {
                assert!(sent.len() <= usize::from(question.size));
                Message::from_vec(&sent).expect("an answer can be read");
            }
            let kinds: HashSet<RecordType> = answer.message.answers.iter().map(Record::record_type).collect();
            format!("given {} {} {}", kinds.len(), answer.emptied, answer.found)
        }
    }
}

fn addresses_in(message: &Message) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for record in &message.answers {
        match &record.data {
            RData::A(a) => found.push(a.0.into()),
            RData::AAAA(a) => found.push(a.0.into()),
            RData::HTTPS(HTTPS(service)) | RData::SVCB(service) => {
                for (_, value) in &service.svc_params {
                    match value {
                        SvcParamValue::Ipv4Hint(hints) => found.extend(hints.0.iter().map(|hint| IpAddr::from(hint.0))),
                        SvcParamValue::Ipv6Hint(hints) => found.extend(hints.0.iter().map(|hint| IpAddr::from(hint.0))),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// Questions and answers as they should be.
fn seeds() -> Vec<Vec<u8>> {
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let hints = SVCB::new(
        1,
        Name::root(),
        vec![
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(192, 0, 2, 1), A::new(10, 0, 0, 1)]))),
            (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(vec![AAAA::new(0, 0, 0, 0, 0, 0, 0, 1)]))),
        ],
    );
    let sets = [
        (RecordType::A, vec![RData::A(A::new(192, 0, 2, 1)), RData::A(A::new(127, 0, 0, 1))]),
        (RecordType::AAAA, vec![RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))]),
        (RecordType::A, vec![RData::CNAME(CNAME(name("b.example.")))]),
        (RecordType::A, vec![RData::CNAME(CNAME(name("a.example.")))]),
        (RecordType::HTTPS, vec![RData::HTTPS(HTTPS(hints.clone()))]),
        (RecordType::SVCB, vec![RData::SVCB(hints)]),
    ];
    let mut seeds = Vec::new();
    for (kind, data) in sets {
        let query = Query::query(name("a.example."), kind);
        for answers in [false, true] {
            let mut message =
                Message::new(7, if answers { MessageType::Response } else { MessageType::Query }, OpCode::Query);
            message.add_query(query.clone());
            if answers {
                message
                    .add_answers(data.iter().map(|data| Record::from_rdata(name("a.example."), 100_000, data.clone())));
                message.add_answer(Record::from_rdata(name("b.example."), 5, RData::A(A::new(10, 0, 0, 1))));
            }
            seeds.push(message.to_vec().unwrap());
        }
    }
    seeds
}

fn kept() -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutate(input: &mut Vec<u8>, random: &mut StdRng, other: &[u8]) {
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..input.len().max(1));
        match random.random_range(0..7) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff][random.random_range(0..8)],
            2 => input.truncate(at),
            3 => input.insert(at.min(input.len()), random.random()),
            4 if at < input.len() => drop(input.remove(at)),
            5 => {
                let from = random.random_range(0..other.len().max(1));
                let piece: Vec<u8> = other.iter().skip(from).take(random.random_range(1..32)).copied().collect();
                let at = at.min(input.len());
                input.splice(at..at, piece);
            }
            // A pointer to somewhere in the message.
            _ if at + 1 < input.len() => {
                input[at] = 0xc0;
                input[at + 1] = random.random_range(0..input.len().min(255)) as u8;
            }
            _ => {}
        }
    }
    input.truncate(4096);
}

#[test]
fn mutated_messages_do_no_harm() {
    let seconds = std::env::var("WRIT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let keep = std::env::var_os("WRIT_FUZZ_KEEP").is_some();
    let mut inputs = seeds();
    inputs.extend(kept());
    let mut outcomes: HashSet<Outcome> = inputs.iter().map(|input| try_all(input)).collect();
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let (end, mut runs, mut new) = (Instant::now() + Duration::from_secs(seconds), 0_u64, 0);
    while Instant::now() < end {
        let other = inputs[random.random_range(0..inputs.len())].clone();
        let mut input = inputs[random.random_range(0..inputs.len())].clone();
        mutate(&mut input, &mut random, &other);
        runs += 1;
        let outcome = std::panic::catch_unwind(|| try_all(&input));
        let Ok(outcome) = outcome else {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("seed {seed}, after {runs} runs: {hex}");
        };
        if outcomes.insert(outcome) {
            new += 1;
            if keep {
                fs::write(corpus().join(format!("{new:04}-{seed:016x}")), &input).unwrap();
            }
            inputs.push(input);
        }
    }
    println!("{runs} inputs in {seconds} s, {} outcomes, {new} of them new", outcomes.len());
}

#[test]
fn every_beginning_of_a_message_is_read() {
    for message in seeds().into_iter().chain(kept()) {
        for length in 0..message.len() {
            try_all(&message[..length]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        try_all(&bytes);
    }
}
