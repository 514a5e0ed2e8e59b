//! Where lines go: a file that logrotate may move away, or the standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// No line is longer.
const MAX_LINE: u64 = 1 << 20;
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
    /// Lines lost that no loss record tells of yet.
    lost: u64,
    /// Those among them that no [`Sink::flush`] has returned yet.
    fresh: u64,
}

/// What came of a [`Sink::flush`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flushed {
    /// Lines lost before, for a loss record: told once writing works again.
    pub(super) recovered: u64,
    /// Lines lost since the flush before this one, whether writing works or not.
    pub(super) fresh: u64,
    /// Where and why writing fails.
    pub(super) failing: Option<String>,
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
        let (file, torn) = open(path)?;
        let mut sink = Self::new(Out::File { path: path.to_owned(), file });
        sink.lose(torn);
        Ok(sink)
    }

    /// Writes to the standard output. A reader that stops reading stops the writer.
    pub fn stdout() -> Self {
        Self::stream(Box::new(io::stdout()))
    }

    pub(super) fn stream(out: Box<dyn Write + Send>) -> Self {
        Self::new(Out::Stream(out))
    }

    fn new(out: Out) -> Self {
        Self { out, pending: Pending::default(), lost: 0, fresh: 0 }
    }

    /// Takes a line for the next [`Sink::flush`]; counts it as lost if too much is waiting.
    pub(super) fn push(&mut self, line: &str) {
        if !self.pending.push(line, MAX_PENDING) {
            self.lose(1);
        }
    }

    /// Writes what waits. Where that fails the lines go on waiting, and are lost when there is no more room to wait in.
    pub(super) fn flush(&mut self) -> Flushed {
        let failing = self.write().err().map(|error| format!("{}: {error}", self.name()));
        let recovered = if failing.is_none() { std::mem::take(&mut self.lost) } else { 0 };
        Flushed { recovered, fresh: std::mem::take(&mut self.fresh), failing }
    }

    fn write(&mut self) -> io::Result<()> {
        let out: &mut dyn Write = match &mut self.out {
            Out::File { file, .. } => file,
            Out::Stream(out) => out,
        };
        self.pending.write_to(out).and_then(|()| out.flush())
    }

    fn name(&self) -> String {
        match &self.out {
            Out::File { path, .. } => format!("`{}`", path.display()),
            Out::Stream(_) => "standard output".to_owned(),
        }
    }

    fn lose(&mut self, count: u64) {
        self.lost += count;
        self.fresh += count;
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
        // What fails here fails again in the next flush, or goes into the new file.
        let _ = self.write();
        if let Out::File { path, file } = &mut self.out {
            let (named, torn) = open(path)?;
            *file = named;
            let torn = torn + self.pending.drop_torn_line();
            self.lose(torn);
        }
        Ok(())
    }
}

/// The file, and how many lines in it were torn.
fn open(path: &Path) -> Result<(File, u64), OpenError> {
    let failed = |source| OpenError { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o640);
    let mut file = options.open(path).map_err(failed)?;
    let torn = blank_torn_line(path, &mut file).map_err(failed)?;
    Ok((file, torn))
}

/// A daemon that was killed while it wrote, or a machine that lost power, may have left half a line, which no reader of JSON
/// lines gets past. It becomes a blank one, which all of them do; the file does not shrink, so that who follows it goes on.
fn blank_torn_line(path: &Path, file: &mut File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(0);
    }
    let begin = metadata.len().saturating_sub(MAX_LINE);
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(begin))?;
    file.read_to_end(&mut end)?;
    let half = end.rsplit(|&byte| byte == b'\n').next().unwrap_or_default().len();
    if half == 0 {
        return Ok(0);
    }
    let at = begin + u64::try_from(end.len() - half).unwrap_or(0);
    // By another descriptor: what is written to the first goes to the end, wherever it is meant for.
    OpenOptions::new().write(true).open(path)?.write_all_at(&vec![b' '; half], at)?;
    file.write_all(b"\n").map(|()| 1)
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
        let failing = Some("standard output: no storage space".to_owned());
        assert_eq!(sink.flush(), Flushed { failing, ..Flushed::default() });
        assert_eq!(disk.text(), "one\nt");
        disk.grant(100);
        sink.push("three");
        assert_eq!(sink.flush(), Flushed::default());
        assert_eq!(disk.text(), "one\ntwo\nthree\n");
    }

    #[test]
    fn lines_that_cannot_wait_are_counted_and_told_once_writing_works() {
        let disk = Disk::default();
        let mut sink = Sink::stream(Box::new(disk.clone()));
        let line = "x".repeat(MAX_PENDING / 4);
        (0..6).for_each(|_| sink.push(&line));
        let full = sink.flush();
        assert_eq!((full.recovered, full.fresh), (0, 3), "no record is due while nothing can be written");
        assert_eq!(sink.flush().fresh, 0);
        disk.grant(usize::MAX);
        assert_eq!(sink.flush(), Flushed { recovered: 3, ..Flushed::default() });
        assert_eq!(sink.flush(), Flushed::default());
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
    fn half_a_line_from_before_is_blanked_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        for (before, blank) in [("{\"half", "      "), ("{}\n{\"half", "{}\n      ")] {
            std::fs::write(&path, before).unwrap();
            let mut sink = Sink::file(&path).unwrap();
            sink.push("{}");
            assert_eq!(sink.flush(), Flushed { recovered: 1, fresh: 1, failing: None });
            let mut again = Sink::file(&path).unwrap();
            assert_eq!(again.flush(), Flushed::default());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{blank}\n{{}}\n"));
        }
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
