//! Reading a configuration file in a way that nobody can make wait: a named pipe or a device in its place is an error.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest file that is read, bytes.
pub const MAX_TEXT: u64 = 4 << 20;

/// The text of a regular file.
///
/// # Errors
/// Those of open(2) and read(2); `InvalidInput` for anything but a regular file of at most [`MAX_TEXT`] bytes, and
/// `InvalidData` for bytes that are no UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut text = String::new();
    file.by_ref().take(MAX_TEXT + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_TEXT {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is larger than 4 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_a_pipe_keeps_nobody_waiting() {
        let place = tempfile::tempdir().unwrap();
        let (file, pipe) = (place.path().join("file"), place.path().join("pipe"));
        std::fs::write(&file, "text").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read_text(&file).unwrap(), "text");
        assert_eq!(read_text(&pipe).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(read_text(place.path()).is_err());
        assert_eq!(read_text(&place.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
