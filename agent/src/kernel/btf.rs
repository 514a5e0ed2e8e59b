//! A reader of the kernel's type information (BTF), as far as member offsets need it.
//!
//! Format: `include/uapi/linux/btf.h` and Documentation/bpf/btf.rst. Reading is total: malformed input is an error, never
//! a panic and never a wrong zero.

use std::collections::HashMap;

/// Why type information could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The bytes end before the structure does.
    #[error("the kernel's type information ends at byte {0}, inside a structure")]
    Truncated(usize),
    /// Not BTF, or of the other byte order.
    #[error("the kernel's type information begins with {0:#06x}, not with the BTF magic number 0xeb9f")]
    Magic(u16),
    /// A kind this reader does not know, whose length it therefore cannot tell.
    #[error("the kernel's type information has a type of unknown kind {0}")]
    Kind(u32),
    /// No struct of that name.
    #[error("this kernel has no `struct {0}`")]
    NoStruct(String),
    /// The struct has no such member, not even in an anonymous part.
    #[error("this kernel's `struct {0}` has no member `{1}`")]
    NoMember(String, String),
    /// The member is a bit field, or does not begin at a byte.
    #[error("this kernel's `struct {0}` has `{1}` as a bit field")]
    BitField(String, String),
}

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;
/// Anonymous parts inside anonymous parts: the kernel's deepest is 3.
const MAX_NESTING: usize = 16;

#[derive(Clone, Copy)]
struct Aggregate {
    members: usize,
    count: usize,
    bit_fields: bool,
}

/// Parsed type information: where each struct's members stand.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    aggregates: HashMap<u32, Aggregate>,
    structs: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    /// Indexes the structs of `data`, the bytes of `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// [`BtfError`] if the bytes are not whole BTF of this machine's byte order.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let magic = u16_at(data, 0)?;
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let header = size(u32_at(data, 4)?);
        let types = section(data, header, u32_at(data, 8)?, u32_at(data, 12)?)?;
        let strings = section(data, header, u32_at(data, 16)?, u32_at(data, 20)?)?;
        let mut btf = Self { types, strings, aggregates: HashMap::new(), structs: HashMap::new() };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let (mut at, mut id) = (0, 1);
        while at < self.types.len() {
            let info = u32_at(self.types, at + 4)?;
            let (kind, count) = ((info >> 24) & 0x1f, size(info & 0xffff));
            if kind == KIND_STRUCT || kind == KIND_UNION {
                self.aggregates.insert(id, Aggregate { members: at + 12, count, bit_fields: info >> 31 == 1 });
                if kind == KIND_STRUCT {
                    let name = name_at(self.strings, u32_at(self.types, at)?)?;
                    self.structs.entry(name).or_insert(id);
                }
            }
            at += 12 + trailer(kind, count)?;
            id += 1;
        }
        if at == self.types.len() { Ok(()) } else { Err(BtfError::Truncated(self.types.len())) }
    }

    /// Offset in bytes of `member` in `struct name`, anonymous parts searched too.
    ///
    /// # Errors
    /// [`BtfError`] if there is no such struct or member, or it does not begin at a byte.
    pub fn offset_of(&self, name: &str, member: &str) -> Result<u64, BtfError> {
        let id = self.structs.get(name.as_bytes()).ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        let missing = || BtfError::NoMember(name.to_owned(), member.to_owned());
        let bits = self.find(*id, member.as_bytes(), 0)?.ok_or_else(missing)?;
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(BtfError::BitField(name.to_owned(), member.to_owned())) }
    }

    fn find(&self, id: u32, member: &[u8], depth: usize) -> Result<Option<u64>, BtfError> {
        let Some(aggregate) = self.aggregates.get(&id).filter(|_| depth < MAX_NESTING) else { return Ok(None) };
        for index in 0..aggregate.count {
            let at = aggregate.members + index * 12;
            let name = name_at(self.strings, u32_at(self.types, at)?)?;
            let offset = u32_at(self.types, at + 8)?;
            let offset = u64::from(if aggregate.bit_fields { offset & 0x00ff_ffff } else { offset });
            if name == member {
                return Ok(Some(offset));
            }
            if name.is_empty()
                && let Some(inner) = self.find(u32_at(self.types, at + 4)?, member, depth + 1)?
            {
                return Ok(Some(offset + inner));
            }
        }
        Ok(None)
    }
}

/// Bytes that follow the 12 common to every type.
fn trailer(kind: u32, count: usize) -> Result<usize, BtfError> {
    Ok(match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => count * 12,
        KIND_ENUM | KIND_FUNC_PROTO => count * 8,
        2 | 7..=12 | 16 | 18 => 0,
        other => return Err(BtfError::Kind(other)),
    })
}

fn size(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn section(data: &[u8], header: usize, offset: u32, length: u32) -> Result<&[u8], BtfError> {
    let start = header.saturating_add(size(offset));
    data.get(start..start.saturating_add(size(length))).ok_or(BtfError::Truncated(data.len()))
}

fn u16_at(data: &[u8], at: usize) -> Result<u16, BtfError> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk()).ok_or(BtfError::Truncated(data.len()))?;
    Ok(u16::from_ne_bytes(*bytes))
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk()).ok_or(BtfError::Truncated(data.len()))?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn name_at(strings: &[u8], at: u32) -> Result<&[u8], BtfError> {
    let rest = strings.get(size(at)..).ok_or(BtfError::Truncated(strings.len()))?;
    rest.split(|&b| b == 0).next().ok_or(BtfError::Truncated(strings.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A hand-made extract: `struct outer { int a; struct { int b; union { int c; }; }; }` with `b` at byte 8, `c` at 12.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0";
        let mut types: Vec<u32> = vec![1, KIND_INT << 24, 4, 32];
        types.extend([0, KIND_UNION << 24 | 1, 4, 15, 1, 0]);
        types.extend([0, KIND_STRUCT << 24 | 2, 8, 13, 1, 0, 0, 2, 32]);
        types.extend([5, KIND_STRUCT << 24 | 2, 16, 11, 1, 0, 0, 3, 64]);
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let lengths = [0u32, types.len() as u32, types.len() as u32, strings.len() as u32];
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        data.extend(24u32.to_ne_bytes());
        data.extend(lengths.into_iter().flat_map(u32::to_ne_bytes));
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn members_are_found_inside_anonymous_parts() {
        let data = sample();
        let btf = Btf::parse(&data).unwrap();
        assert_eq!(btf.offset_of("outer", "a"), Ok(0));
        assert_eq!(btf.offset_of("outer", "b"), Ok(8));
        assert_eq!(btf.offset_of("outer", "c"), Ok(12));
    }

    #[test]
    fn what_is_missing_is_named() {
        let data = sample();
        let btf = Btf::parse(&data).unwrap();
        assert_eq!(btf.offset_of("inner", "a"), Err(BtfError::NoStruct("inner".into())));
        assert_eq!(btf.offset_of("outer", "z"), Err(BtfError::NoMember("outer".into(), "z".into())));
        assert_eq!(Btf::parse(b"\x7fELF").err(), Some(BtfError::Magic(u16::from_ne_bytes(*b"\x7fE"))));
    }

    #[test]
    fn every_prefix_is_an_error() {
        let data = sample();
        for len in 0..data.len() {
            assert!(Btf::parse(&data[..len]).is_err(), "prefix of {len} bytes");
        }
    }

    #[test]
    fn the_running_kernel_is_read() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(&data).unwrap();
        assert_eq!(btf.offset_of("list_head", "prev"), Ok(8));
        assert!(btf.offset_of("task_struct", "tgid").unwrap() > 0);
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(at in 0usize..200, value in any::<u8>()) {
            let mut data = sample();
            let at = at % data.len();
            data[at] = value;
            if let Ok(btf) = Btf::parse(&data) {
                let _ = btf.offset_of("outer", "c");
            }
        }
    }
}
