//! The paths on which somebody listens, as `/proc/net/unix` tells them.

use std::fs::File;
use std::io::Read;

/// More of the table than this is not read: tasks can make it as long as they like.
const MAX_TABLE: u64 = 1 << 20;
/// More paths than this are not told.
const MAX_PATHS: usize = 4096;
/// `__SO_ACCEPTCON` (include/uapi/linux/net.h): it listens.
const LISTENS: u32 = 0x1_0000;
const DGRAM: u32 = 2;

/// The paths of sockets that can be connected or sent to, each as its listener bound it, of the daemon's own network namespace.
/// Abstract names are left out: the table does not tell where a NUL is, and nobody reaches them by another name.
pub fn listening_paths() -> Vec<Vec<u8>> {
    let mut table = Vec::new();
    let read = File::open("/proc/net/unix").and_then(|file| file.take(MAX_TABLE).read_to_end(&mut table));
    if read.is_err() {
        return Vec::new();
    }
    table.split(|&byte| byte == b'\n').filter_map(path_of_line).map(<[u8]>::to_vec).take(MAX_PATHS).collect()
}

/// `Num RefCount Protocol Flags Type St Inode Path`: numbers are padded with spaces, and the path may have some of its own.
fn path_of_line(line: &[u8]) -> Option<&[u8]> {
    let mut rest = line;
    let mut fields = [&b""[..]; 7];
    for field in &mut fields {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|&byte| byte == b' ')?;
        (*field, rest) = rest.split_at_checked(end)?;
    }
    let [_, _, _, flags, kind, _, _] = fields;
    let reachable = hex(flags)? & LISTENS != 0 || hex(kind)? == DGRAM;
    let path = rest.get(1..)?;
    (reachable && !path.is_empty() && !path.starts_with(b"@")).then_some(path)
}

fn hex(field: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(field).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        for (line, path) in [
            (&b"Num       RefCount Protocol Flags    Type St Inode Path"[..], None),
            (b"00000000f6a89980: 00000003 00000000 00000000 0001 03  1606", None),
            (b"0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/a b.sock", Some(&b"/run/a b.sock"[..])),
            (b"0000000000000000: 00000002 00000000 00000000 0002 01    45 relative", Some(b"relative")),
            (b"0000000000000000: 00000002 00000000 00000000 0001 03 12345 /run/accepted", None),
            (b"0000000000000000: 00000002 00000000 00010000 0001 01 12345 @abstract", None),
            (b"", None),
        ] {
            assert_eq!(path_of_line(line), path, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn own_listeners_are_found() {
        let place = tempfile::tempdir().unwrap();
        let (stream, datagram) = (place.path().join("s"), place.path().join("d"));
        let _listener = UnixListener::bind(&stream).unwrap();
        let _receiver = UnixDatagram::bind(&datagram).unwrap();
        let _connected = UnixStream::connect(&stream).unwrap();
        let found = listening_paths();
        for path in [&stream, &datagram] {
            assert!(found.iter().any(|name| name == path.as_os_str().as_bytes()), "{}", path.display());
        }
    }
}
