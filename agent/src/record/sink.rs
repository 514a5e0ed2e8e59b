//! Where lines go: a file that logrotate may move away, or the standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes that wait for a sink that does not take them, before lines are lost.
const MAX_PENDING: usize = 4 << 20;

/// A record file that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open record file `{path}`; check that its directory exists and that the daemon may write there")]
pub struct OpenError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// One destination of lines.
pub struct Sink {
    out: Out,
    pending: Pending,
    lost: u64,
}

enum Out {
    File { path: PathBuf, file: File },
    Stream(Box<dyn Write + Send>),
}

impl Sink {
    /// Appends to the file at `path`, which is created with mode 0640 if it is not there.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be opened for reading and appending.
    pub fn file(path: &Path) -> Result<Self, OpenError> {
        let file = open(path)?;
        Ok(Self::new(Out::File { path: path.to_owned(), file }))
    }

    /// Writes to the standard output. A reader that stops reading stops the writer.
    pub fn stdout() -> Self {
        Self::stream(Box::new(io::stdout()))
    }

    pub(super) fn stream(out: Box<dyn Write + Send>) -> Self {
        Self::new(Out::Stream(out))
    }

    fn new(out: Out) -> Self {
        Self { out, pending: Pending::default(), lost: 0 }
    }

    /// Takes a line for the next [`Sink::flush`]; counts it as lost if too much is waiting.
    pub(super) fn push(&mut self, line: &str) {
        if !self.pending.push(line, MAX_PENDING) {
            self.lost += 1;
        }
    }

    /// Writes what waits. Returns how many lines were lost before, once writing works again.
    pub(super) fn flush(&mut self) -> u64 {
        let out: &mut dyn Write = match &mut self.out {
            Out::File { file, .. } => file,
            Out::Stream(out) => out,
        };
        match self.pending.write_to(out).and_then(|()| out.flush()) {
            Ok(()) => std::mem::take(&mut self.lost),
            // The lines wait, and are counted when there is no more room for them to wait in.
            Err(_) => 0,
        }
    }

    /// Lines that wait or were lost since a flush last told of it.
    pub(super) fn unwritten(&self) -> u64 {
        let waiting = self.pending.bytes.iter().filter(|&&byte| byte == b'\n').count();
        self.lost.saturating_add(u64::try_from(waiting).unwrap_or(u64::MAX))
    }

    /// Opens the file by its name again, after it was moved away. A stream has no name and stays.
    ///
    /// # Errors
    /// [`OpenError`]; writing then goes on into the old file.
    pub(super) fn reopen(&mut self) -> Result<(), OpenError> {
        let recovered = self.flush();
        self.lost += recovered;
        if let Out::File { path, file } = &mut self.out {
            *file = open(path)?;
            self.lost += self.pending.drop_torn_line();
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o640);
    let mut file = options.open(path).map_err(failed)?;
    end_torn_line(&mut file).map_err(failed)?;
    Ok(file)
}

/// A machine that lost power may have left half a line; the next one must not be glued to it.
fn end_torn_line(file: &mut File) -> io::Result<()> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" { Ok(()) } else { file.write_all(b"\n") }
}

/// Lines that wait, and whether the first of them has been written in part.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    torn: bool,
}

impl Pending {
    fn push(&mut self, line: &str, limit: usize) -> bool {
        let fits = self.bytes.len() + line.len() < limit;
        if fits {
            self.bytes.extend_from_slice(line.as_bytes());
            self.bytes.push(b'\n');
        }
        fits
    }

    /// Writes as much as `out` takes and keeps the rest.
    fn write_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        while !self.bytes.is_empty() {
            match out.write(&self.bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, written: usize) {
        let last = self.bytes.drain(..written.min(self.bytes.len())).next_back();
        self.torn = last.is_some_and(|byte| byte != b'\n');
    }

    /// Drops the rest of a line whose head is elsewhere. Returns how many lines that were.
    fn drop_torn_line(&mut self) -> u64 {
        if !std::mem::take(&mut self.torn) {
            return 0;
        }
        let rest = self.bytes.iter().position(|&byte| byte == b'\n').map_or(self.bytes.len(), |end| end + 1);
        self.bytes.drain(..rest);
        1
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Takes `room` bytes and then fails until it is given more.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Disk {
        fn grant(&self, room: usize) {
            self.0.lock().unwrap().1 = room;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (held, room) = &mut *self.0.lock().unwrap();
            let taken = bytes.len().min(*room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            held.extend_from_slice(&bytes[..taken]);
            *room -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_delays_lines_and_tears_none() {
        let disk = Disk::default();
        let mut sink = Sink::stream(Box::new(disk.clone()));
        disk.grant(5);
        sink.push("one");
        sink.push("two");
        assert_eq!(sink.flush(), 0);
        assert_eq!(disk.text(), "one\nt");
        disk.grant(100);
        sink.push("three");
        assert_eq!(sink.flush(), 0);
        assert_eq!(disk.text(), "one\ntwo\nthree\n");
    }

    #[test]
    fn lines_that_cannot_wait_are_counted_and_told_once_writing_works() {
        let disk = Disk::default();
        let mut sink = Sink::stream(Box::new(disk.clone()));
        let line = "x".repeat(MAX_PENDING / 4);
        (0..6).for_each(|_| sink.push(&line));
        assert_eq!(sink.flush(), 0, "nothing is told while nothing can be written");
        disk.grant(usize::MAX);
        assert_eq!(sink.flush(), 3);
        assert_eq!(sink.flush(), 0);
        assert_eq!(disk.text().lines().count(), 3);
    }

    #[test]
    fn a_file_is_private_appended_to_and_opened_again_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let moved = dir.path().join("records.jsonl.1");
        let mut sink = Sink::file(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
        sink.push("one");
        sink.flush();
        std::fs::rename(&path, &moved).unwrap();
        sink.push("two");
        sink.reopen().unwrap();
        sink.push("three");
        sink.flush();
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn half_a_line_from_before_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        std::fs::write(&path, "{\"half").unwrap();
        let mut sink = Sink::file(&path).unwrap();
        sink.push("{}");
        sink.flush();
        drop(Sink::file(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\n{}\n");
    }

    #[test]
    fn a_line_whose_head_went_elsewhere_is_lost_and_counted() {
        let mut pending = Pending::default();
        pending.push("first", 100);
        pending.push("second", 100);
        pending.advance(2);
        assert_eq!(pending.drop_torn_line(), 1);
        assert_eq!(pending.bytes, b"second\n");
        assert_eq!(pending.drop_torn_line(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let Err(error) = Sink::file(Path::new("/nonexistent/writ/records.jsonl")) else { panic!("it opened") };
        assert!(error.to_string().contains("`/nonexistent/writ/records.jsonl`"));
    }
}
