//! The daemon's records, as the file has them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Record(pub(crate) Value);

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
        let mut value = self.0.clone();
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

/// All whole lines of the file.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    };
    let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
    let lines = whole.lines().map(|line| {
        let value = serde_json::from_str(line).with_context(|| format!("a record is no JSON: {line:?}"))?;
        Ok(Record(value))
    });
    lines.collect()
}
