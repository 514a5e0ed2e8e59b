//! Takes the ELF kernel out of a bzImage: an emulated processor would decompress it slowly.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::{command, run};

/// Writes the ELF kernel of the image `from` to `to`.
pub(crate) fn unpack(from: &Path, to: &Path) -> Result<()> {
    let image = std::fs::read(from).with_context(|| format!("cannot read `{}`", from.display()))?;
    let payload = payload(&image).with_context(|| format!("`{}` is no bzImage", from.display()))?;
    let program = decompressor(payload)?;
    let mut compressed = tempfile::tempfile()?;
    compressed.write_all(payload)?;
    compressed.rewind()?;
    let out = File::create(to).with_context(|| format!("cannot write `{}`", to.display()))?;
    run(command(program, ["-dqc"]).stdin(compressed).stdout(out))
}

/// The compressed kernel, by the boot protocol's header (Documentation/arch/x86/boot.rst). Its last four bytes are
/// the size of what is in it, which no decompressor expects.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let offset = word(image, 0x248)?;
    let length = word(image, 0x24c)?;
    let start = (setup_sectors + 1) * 512 + offset;
    image.get(start..start + length.checked_sub(4)?)
}

fn word(image: &[u8], at: usize) -> Option<usize> {
    let bytes = image.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

fn decompressor(payload: &[u8]) -> Result<&'static str> {
    Ok(match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0xfd, b'7', b'z', b'X', ..] => "xz",
        _ => bail!("cannot tell how the kernel image is compressed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_by_the_header() {
        let mut image = vec![0; 2048];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&8_u32.to_le_bytes());
        image[1040..1048].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4]);
        assert_eq!(payload(&image), Some([0x28, 0xb5, 0x2f, 0xfd].as_slice()));
        assert_eq!(decompressor(payload(&image).unwrap()).unwrap(), "zstd");
    }

    #[test]
    fn a_short_or_strange_image_is_refused() {
        assert_eq!(payload(&[0; 100]), None);
        assert_eq!(payload(&vec![0xff; 2048]), None);
        assert!(decompressor(b"\x1f\x8b").is_err());
    }
}
