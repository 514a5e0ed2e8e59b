//! Questions for names: read strictly, since whoever asks is an adversary.

use std::sync::Arc;

use agent_common::Reason;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::domain::host::is_name;

/// Bytes of a header.
const HEADER: usize = 12;
/// What an asker takes over UDP who says nothing.
const PLAIN_SIZE: u16 = 512;
/// The most that is sent over UDP to one who takes more: what passes every link whole.
const MOST_SIZE: u16 = 4096;
/// Parts that HTTPS and SVCB names put before the host's: `_8443._https.api.example.com`.
const MAX_PREFIX: usize = 2;

/// A question that can be decided about.
#[derive(Clone, Debug)]
pub struct Question {
    /// The asker's number for it.
    pub id: u16,
    /// As it was asked, in the asker's own case.
    pub query: Query,
    /// The host that it is about: lower case, without the final dot.
    pub name: Arc<str>,
    /// Bytes that the asker takes over UDP.
    pub size: u16,
    /// Whether it spoke EDNS, and is to be answered so.
    pub edns: bool,
    /// Whether it wants recursion: echoed.
    pub recursion: bool,
}

/// Why something is no question that can be decided about.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What is answered; `None`: nothing at all, since it is no question.
    pub answer: Option<Box<Message>>,
    /// For the record.
    pub reason: Reason,
    /// What was asked for, as far as it can be told.
    pub name: Arc<str>,
    /// Such as `TXT`, as far as it can be told.
    pub record_type: Arc<str>,
}

impl Question {
    /// Reads one message of an asker.
    ///
    /// # Errors
    /// [`Fault`]: anything but one question of class IN, for a name that a host can have.
    pub fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let counts = Header::read(bytes).ok_or_else(|| Fault::silent(""))?;
        if counts.is_response() {
            return Err(Fault::silent(""));
        }
        let fault = |code| Fault::bare(counts.id, counts.op_code(), code);
        if counts.op_code() != OpCode::Query {
            return Err(fault(ResponseCode::NotImp));
        }
        // Counted before anything is read: numbers are cheap to write and costly to believe.
        if (counts.questions, counts.answers, counts.authorities) != (1, 0, 0) || counts.additionals > 1 {
            return Err(fault(ResponseCode::FormErr));
        }
        let mut decoder = BinDecoder::new(bytes);
        let message = Message::read(&mut decoder).map_err(|_| fault(ResponseCode::FormErr))?;
        let only_edns = message.additionals.is_empty() && message.signature.is_none();
        let [query] = message.queries.as_slice() else { return Err(fault(ResponseCode::FormErr)) };
        if !decoder.is_empty() || !only_edns || message.metadata.truncation {
            return Err(fault(ResponseCode::FormErr));
        }
        Self::check(&message, query)
    }

    fn check(message: &Message, query: &Query) -> Result<Self, Fault> {
        let id = message.metadata.id;
        let refuse = |code, reason| {
            let mut answer = Message::error_msg(id, OpCode::Query, code);
            answer.add_query(query.clone());
            Fault {
                answer: Some(Box::new(answer)),
                reason,
                name: text(&query.name),
                record_type: word(query.query_type),
            }
        };
        if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return Err(refuse(ResponseCode::BADVERS, Reason::Malformed));
        }
        if query.query_class != DNSClass::IN {
            return Err(refuse(ResponseCode::Refused, Reason::Malformed));
        }
        let name = host(query);
        if !is_name(&name) {
            // The root and its kin have no addresses; what no host can be called is nobody's name.
            let root = query.name.is_root();
            return Err(refuse(ResponseCode::Refused, if root { Reason::UnsupportedPath } else { Reason::Malformed }));
        }
        let size = message.edns.as_ref().map_or(PLAIN_SIZE, |edns| edns.max_payload().clamp(PLAIN_SIZE, MOST_SIZE));
        Ok(Self {
            id,
            query: query.clone(),
            name,
            size,
            edns: message.edns.is_some(),
            recursion: message.metadata.recursion_desired,
        })
    }

    /// Whether it asks for something that says where a host is. Other types carry what anybody likes.
    pub fn is_for_addresses(&self) -> bool {
        matches!(
            self.query.query_type,
            RecordType::A | RecordType::AAAA | RecordType::CNAME | RecordType::HTTPS | RecordType::SVCB
        )
    }

    /// Such as `AAAA`.
    pub fn record_type(&self) -> Arc<str> {
        word(self.query.query_type)
    }
}

impl Fault {
    fn silent(name: &str) -> Self {
        Self { answer: None, reason: Reason::Malformed, name: name.into(), record_type: "".into() }
    }

    fn bare(id: u16, op_code: OpCode, code: ResponseCode) -> Self {
        Self { answer: Some(Box::new(Message::error_msg(id, op_code, code))), ..Self::silent("") }
    }
}

/// The first bytes of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) id: u16,
    flags: u16,
    pub(super) questions: u16,
    answers: u16,
    authorities: u16,
    additionals: u16,
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.get(..HEADER)?.chunks_exact(2).map(|pair| match pair {
            [high, low] => u16::from_be_bytes([*high, *low]),
            _ => 0,
        });
        let mut next = || words.next();
        Some(Self {
            id: next()?,
            flags: next()?,
            questions: next()?,
            answers: next()?,
            authorities: next()?,
            additionals: next()?,
        })
    }

    pub(super) fn is_response(self) -> bool {
        self.flags & 0x8000 != 0
    }

    fn op_code(self) -> OpCode {
        OpCode::from_u8(u8::try_from((self.flags >> 11) & 0xf).unwrap_or(0))
    }

    /// What is answered to somebody of whom nothing is known.
    pub(super) fn refused(self) -> Option<Message> {
        (!self.is_response()).then(|| Message::error_msg(self.id, self.op_code(), ResponseCode::Refused))
    }
}

/// A name as text, in lower case.
pub(super) fn text(name: &Name) -> Arc<str> {
    let parts: Vec<String> = name.iter().map(|part| String::from_utf8_lossy(part).to_ascii_lowercase()).collect();
    parts.join(".").into()
}

/// The host that a question is about. One part with a dot in it is not two.
fn host(query: &Query) -> Arc<str> {
    let parts: Vec<&[u8]> = query.name.iter().collect();
    let service = matches!(query.query_type, RecordType::HTTPS | RecordType::SVCB);
    let prefix = parts.iter().take(MAX_PREFIX).take_while(|part| service && part.first() == Some(&b'_')).count();
    if parts.iter().any(|part| part.contains(&b'.')) {
        return "".into();
    }
    let text: Vec<String> =
        parts.iter().skip(prefix).map(|part| String::from_utf8_lossy(part).to_ascii_lowercase()).collect();
    text.join(".").into()
}

fn word(record_type: RecordType) -> Arc<str> {
    match record_type {
        // RFC 3597.
        RecordType::Unknown(number) => format!("TYPE{number}").into(),
        known => known.to_string().into(),
    }
}
