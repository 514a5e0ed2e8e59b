//! Short texts in words of 64 bits, to be compared without a loop.

/// `text`, padded with zeroes; its bytes lie in memory as they are.
pub const fn padded<const WORDS: usize>(text: &str) -> [u64; WORDS] {
    let (text, mut words, mut at) = (text.as_bytes(), [0; WORDS], 0);
    while at < text.len() {
        let place = if cfg!(target_endian = "big") { 7 - at % 8 } else { at % 8 };
        words[at / 8] |= (text[at] as u64) << (8 * place);
        at += 1;
    }
    words
}
