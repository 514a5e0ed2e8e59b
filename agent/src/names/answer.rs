//! Answers: only what was asked for, followed along its own chain of aliases, without addresses that the name may not have.

use std::net::IpAddr;

use agent_common::Reason;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, HTTPS, SVCB};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::question::{Header, Question};

/// Aliases that are followed at most.
const MAX_CHAIN: usize = 16;
/// Records of one answer at most.
const MAX_RECORDS: usize = 64;
/// The longest time to live that is passed on, seconds: no longer than what was learnt holds.
pub const MAX_TTL: u32 = 3600;
/// The most that is announced to be taken over UDP (DNS flag day 2020).
pub(super) const PAYLOAD: u16 = 1232;

/// What is passed on.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For the asker.
    pub message: Message,
    /// The addresses in it.
    pub addresses: Vec<IpAddr>,
    /// The shortest time to live among its records, seconds.
    pub ttl: u32,
    /// Addresses that were taken out.
    pub private: Vec<IpAddr>,
    /// Whether nothing is left of what was there.
    pub emptied: bool,
    /// Whether the name, or anything of that type under it, is there at all.
    pub found: bool,
}

/// The message that `bytes` are, if they answer `query` as it was sent under `id`.
pub fn accept(bytes: &[u8], id: u16, query: &Query) -> Option<Message> {
    let header = Header::read(bytes)?;
    if !header.is_response() || header.id != id || header.questions != 1 {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let asked = message.queries.first()?;
    let same = asked.name == query.name && asked.query_type == query.query_type && asked.query_class == DNSClass::IN;
    (same && message.metadata.message_type == MessageType::Response && message.metadata.op_code == OpCode::Query)
        .then_some(message)
}

/// What of an accepted message is passed on.
///
/// # Errors
/// [`Reason::Malformed`] if its aliases go round in circles or beyond [`MAX_CHAIN`]; [`Reason::Error`] if it is no answer
/// but a server's failure.
pub fn filter(question: &Question, answer: &Message, is_private: &dyn Fn(IpAddr) -> bool) -> Result<Answer, Reason> {
    let code = answer.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(Reason::Error);
    }
    let mut chosen = Chosen { is_private, kept: Vec::new(), addresses: Vec::new(), private: Vec::new(), finals: 0 };
    chosen.follow(question, &answer.answers)?;
    let Chosen { kept, addresses, private, finals, .. } = chosen;
    let ttl = kept.iter().map(|record| record.ttl).min().unwrap_or(0);
    let mut message = reply(question, code);
    let emptied = finals > 0 && !kept.iter().any(|record| record.record_type() == question.query.query_type);
    if finals == 0 {
        let soa = answer.authorities.iter().find(|record| record.record_type() == RecordType::SOA);
        message.authorities.extend(soa.cloned().map(capped));
    }
    message.answers = kept;
    Ok(Answer { found: finals > 0, message, addresses, ttl, private, emptied })
}

/// An answer without records.
pub fn reply(question: &Question, code: ResponseCode) -> Message {
    let mut message = Message::error_msg(question.id, OpCode::Query, code);
    message.metadata.recursion_desired = question.recursion;
    message.metadata.recursion_available = true;
    message.add_query(question.query.clone());
    if question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        message.set_edns(edns);
    }
    message
}

/// The bytes of an answer, cut to `size` with the flag that says so.
pub fn encode(message: &Message, size: usize) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= size {
        return Some(bytes);
    }
    let mut cut = message.clone();
    (cut.answers, cut.authorities) = (Vec::new(), Vec::new());
    cut.metadata.truncation = true;
    cut.to_vec().ok().filter(|bytes| bytes.len() <= size)
}

struct Chosen<'a> {
    is_private: &'a dyn Fn(IpAddr) -> bool,
    kept: Vec<Record>,
    addresses: Vec<IpAddr>,
    private: Vec<IpAddr>,
    /// Records of the type asked for that were there.
    finals: usize,
}

impl Chosen<'_> {
    fn follow(&mut self, question: &Question, records: &[Record]) -> Result<(), Reason> {
        let mut owner = question.query.name.clone();
        let mut seen: Vec<Name> = Vec::new();
        loop {
            if seen.len() > MAX_CHAIN || seen.contains(&owner) {
                return Err(Reason::Malformed);
            }
            // Case is the asker's own to choose.
            let of_owner = |record: &&Record| record.name == owner && record.dns_class == DNSClass::IN;
            let wanted = records.iter().filter(of_owner).filter(|r| r.record_type() == question.query.query_type);
            let wanted: Vec<&Record> = wanted.take(MAX_RECORDS).collect();
            if !wanted.is_empty() {
                wanted.into_iter().for_each(|record| self.keep(&owner, record));
                return Ok(());
            }
            let alias = records.iter().filter(of_owner).find_map(|record| match &record.data {
                RData::CNAME(target) => Some((record, target.0.clone())),
                _ => None,
            });
            let Some((record, target)) = alias else { return Ok(()) };
            let mut kept = capped(record.clone());
            kept.name = owner.clone();
            self.kept.push(kept);
            seen.push(std::mem::replace(&mut owner, target));
        }
    }

    fn keep(&mut self, owner: &Name, record: &Record) {
        self.finals += 1;
        let data = match &record.data {
            RData::A(A(address)) => self.is_given((*address).into()).then(|| record.data.clone()),
            RData::AAAA(AAAA(address)) => self.is_given((*address).into()).then(|| record.data.clone()),
            RData::HTTPS(HTTPS(service)) => self.without_private_hints(service).map(|s| RData::HTTPS(HTTPS(s))),
            RData::SVCB(service) => self.without_private_hints(service).map(RData::SVCB),
            other => Some(other.clone()),
        };
        if let Some(data) = data {
            let mut kept = capped(record.clone());
            (kept.name, kept.data) = (owner.clone(), data);
            self.kept.push(kept);
        }
    }

    fn is_given(&mut self, address: IpAddr) -> bool {
        let private = (self.is_private)(address);
        if private {
            self.private.push(address)
        } else {
            self.addresses.push(address)
        }
        !private
    }

    /// Hints are addresses too. A record that cannot do without those that are taken out goes as a whole.
    fn without_private_hints(&mut self, service: &SVCB) -> Option<SVCB> {
        let mut params: Vec<(SvcParamKey, SvcParamValue)> = Vec::new();
        for (key, value) in &service.svc_params {
            let left = match value {
                SvcParamValue::Ipv4Hint(IpHint(hints)) => {
                    let left: Vec<A> = hints.iter().copied().filter(|hint| self.is_given(hint.0.into())).collect();
                    (!left.is_empty()).then_some(SvcParamValue::Ipv4Hint(IpHint(left)))
                }
                SvcParamValue::Ipv6Hint(IpHint(hints)) => {
                    let left: Vec<AAAA> = hints.iter().copied().filter(|hint| self.is_given(hint.0.into())).collect();
                    (!left.is_empty()).then_some(SvcParamValue::Ipv6Hint(IpHint(left)))
                }
                other => Some(other.clone()),
            };
            params.extend(left.map(|left| (*key, left)));
        }
        let needed = params.iter().find_map(|(_, value)| match value {
            SvcParamValue::Mandatory(keys) => Some(keys.0.clone()),
            _ => None,
        });
        let there = |key: &SvcParamKey| params.iter().any(|(own, _)| own == key);
        let whole = needed.is_none_or(|needed| needed.iter().all(there));
        whole.then(|| SVCB::new(service.svc_priority, service.target_name.clone(), params))
    }
}

fn capped(mut record: Record) -> Record {
    record.ttl = record.ttl.min(MAX_TTL);
    record
}
