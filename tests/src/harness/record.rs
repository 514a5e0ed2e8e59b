//! The daemon's records, as the file has them.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Record(pub(crate) Arc<Value>);

impl Record {
    /// The text at a JSON pointer, or nothing.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
    }

    pub(crate) fn flag(&self, pointer: &str) -> bool {
        self.0.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
    }

    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    /// The line without its long parts, for messages.
    pub(crate) fn short(&self) -> String {
        let mut value = Value::clone(&self.0);
        if let Some(object) = value.as_object_mut() {
            for name in ["process", "chain", "agent", "intent", "expires_at"] {
                object.remove(name);
            }
        }
        value.to_string()
    }

    pub(crate) fn task(&self) -> &str {
        self.text("/task")
    }

    pub(crate) fn is_decision(&self, action: &str, effect: &str, reason: &str) -> bool {
        self.kind() == "decision"
            && self.text("/action") == action
            && self.text("/effect") == effect
            && self.text("/reason") == reason
    }

    /// Ids of the policies that are named.
    pub(crate) fn policies(&self) -> Vec<&str> {
        self.array("/policies").iter().filter_map(|policy| policy.get("id")?.as_str()).collect()
    }

    pub(crate) fn array(&self, pointer: &str) -> &[Value] {
        self.0.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn expect(&self, pointer: &str, expected: &str) -> Result<()> {
        ensure!(self.text(pointer) == expected, "`{pointer}` is not `{expected}` in {}", self.0);
        Ok(())
    }

    pub(crate) fn expect_policy(&self, id: &str) -> Result<()> {
        ensure!(self.policies() == [id], "`{id}` is not the policy of {}", self.0);
        Ok(())
    }
}

/// All whole lines of the file. Tests ask for them again and again while they wait, so what has been read before is
/// kept: only what the daemon has written since is parsed.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>> {
    static LAST: Mutex<Option<Tail>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = |error| anyhow::Error::new(error).context(format!("cannot read `{}`", path.display()));
    let mut tail = match last.take().filter(|tail| tail.is_still(path)) {
        Some(tail) => tail,
        None => match File::open(path) {
            Ok(file) => Tail { path: path.to_owned(), file, read: 0, records: Vec::new() },
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        },
    };
    let text = tail.rest().map_err(failed)?;
    tail.take(&text)?;
    let records = tail.records.clone();
    *last = Some(tail);
    Ok(records)
}

/// The file that was read last, open, so that its inode is nobody else's.
struct Tail {
    path: PathBuf,
    file: File,
    /// How many bytes have been parsed.
    read: u64,
    records: Vec<Record>,
}

impl Tail {
    /// Whether `path` is this very file, and has what was read of it.
    fn is_still(&self, path: &Path) -> bool {
        let (Ok(now), Ok(own)) = (std::fs::metadata(path), self.file.metadata()) else { return false };
        self.path == path && (now.dev(), now.ino()) == (own.dev(), own.ino()) && now.len() >= self.read
    }

    fn rest(&mut self) -> std::io::Result<String> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(self.read))?;
        self.file.read_to_string(&mut text).map(|_| text)
    }

    fn take(&mut self, text: &str) -> Result<()> {
        let whole = text.rfind('\n').map_or("", |end| text.get(..=end).unwrap_or_default());
        // What a killed daemon was writing is blank.
        for line in whole.lines().filter(|line| !line.trim().is_empty()) {
            let value: Value = serde_json::from_str(line).with_context(|| format!("a record is no JSON: {line:?}"))?;
            self.records.push(Record(Arc::new(value)));
        }
        self.read += whole.len() as u64;
        Ok(())
    }
}
