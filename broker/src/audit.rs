//! What people did with the fleet: an append-only log of lines, each with a hash over all before it.
//!
//! ```text
//! {"log":"16 hex"}                                        the first line: which log this is
//! {"n":1,"at_ms":…,"who":…,"what":…,"on":…,"outcome":…,"hash":"SHA-256 of the hash before and this line"}
//! ```
//!
//! A line is on disk before what it tells of is answered. Who changes a line breaks every hash behind it,
//! and who makes the log anew, or cuts its end off, does not reach the head that all brokers agreed on
//! (`strobe_cluster::kinds::audit`). Nothing is ever removed: a log that cannot grow refuses what it should
//! tell of. A torn last line is of an answer that nobody got, and is cut off at the next start.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The log of one broker.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    end: End,
}

/// How far a log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct End {
    /// Which log.
    pub log: u64,
    /// Entries.
    pub entries: u64,
    /// Of the last; of the first line while there is none.
    pub hash: [u8; 32],
}

/// What somebody did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its place, from 1.
    pub n: u64,
    /// When.
    pub at_ms: i64,
    /// The user of the machine who asked.
    pub who: String,
    /// What was asked.
    pub what: String,
    /// Of which host, broker or version, if any.
    pub on: String,
    /// What came of it.
    pub outcome: String,
    /// Over all before and this.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

#[derive(Serialize, Deserialize)]
struct First {
    log: String,
}

impl Audit {
    /// The log in `dir`, made if there is none.
    ///
    /// # Errors
    /// It cannot be made, read or repaired.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(&path)?;
        if file.metadata()?.len() == 0 {
            let mut random = [0; 8];
            getrandom::fill(&mut random).map_err(|why| io::Error::other(why.to_string()))?;
            let log = format!("{:016x}", u64::from_le_bytes(random));
            file.write_all(format!("{}\n", serde_json::to_string(&First { log })?).as_bytes())?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        }
        let walked = walk(&path, &mut |_, _| {})?;
        for why in &walked.broken {
            log::error!("{}: {why}", path.display());
        }
        if walked.whole_bytes < file.metadata()?.len() {
            log::warn!("{}: the torn end of a crash is cut off", path.display());
            file.set_len(walked.whole_bytes)?;
            file.sync_all()?;
        }
        Ok(Self { path, inner: Mutex::new(Inner { file, end: walked.end }) })
    }

    /// One more entry, on disk when this returns.
    ///
    /// # Errors
    /// It is not; what it tells of should not be answered.
    pub fn append(&self, mut entry: Entry) -> io::Result<End> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for text in [&mut entry.who, &mut entry.what, &mut entry.on, &mut entry.outcome] {
            *text = text.chars().take(TEXT_MAX).collect();
        }
        entry.n = inner.end.entries + 1;
        entry.hash = String::new();
        let hash = chained(&inner.end.hash, &serde_json::to_string(&entry)?);
        entry.hash = hex(&hash);
        let line = format!("{}\n", serde_json::to_string(&entry)?);
        let before = inner.file.metadata()?.len();
        let written = inner.file.write_all(line.as_bytes()).and_then(|()| inner.file.sync_data());
        if let Err(why) = written {
            // Half a line would be the beginning of the next.
            inner.file.set_len(before)?;
            return Err(why);
        }
        inner.end = End { log: inner.end.log, entries: entry.n, hash };
        Ok(inner.end)
    }

    /// How far it is.
    #[must_use]
    pub fn end(&self) -> End {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).end
    }

    /// The last `count` lines, oldest first.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn last(&self, count: usize) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(TOLD_BYTES_MAX)))?;
        let mut text = Vec::new();
        file.take(TOLD_BYTES_MAX).read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let whole = text.lines().filter(|line| line.starts_with("{\"n\""));
        let lines: Vec<&str> = whole.collect();
        let from = lines.len().saturating_sub(count);
        Ok(lines.get(from..).unwrap_or_default().join("\n"))
    }

    /// What is wrong with it. `agreed` is how many entries all brokers agreed on, and the hash of the last
    /// of them.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn verify(&self, agreed: Option<(u64, &[u8])>) -> io::Result<Vec<String>> {
        let mut reached = None;
        let walked = walk(&self.path, &mut |n, hash| {
            if agreed.is_some_and(|(entries, _)| entries == n) {
                reached = Some(*hash);
            }
        })?;
        let mut broken = walked.broken;
        if let Some((entries, hash)) = agreed {
            match reached {
                Some(found) if found == hash => {}
                Some(_) => broken.push(format!(
                    "entry {entries} is not the one that the brokers agreed on: the log was made anew"
                )),
                None => broken.push(format!(
                    "it ends at entry {}, and the brokers agreed on {entries}: its end was cut off",
                    walked.end.entries
                )),
            }
        }
        if self.end().log != walked.end.log || walked.end.entries < self.end().entries {
            broken.push("it is not the file that this broker wrote".to_owned());
        }
        Ok(broken)
    }
}

struct Walked {
    end: End,
    broken: Vec<String>,
    /// Up to the last line that has its end.
    whole_bytes: u64,
}

fn walk(path: &Path, visit: &mut dyn FnMut(u64, &[u8; 32])) -> io::Result<Walked> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut end, mut broken, mut whole_bytes) = (End::default(), Vec::new(), 0);
    let mut first = true;
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 || (read as u64) < LINE_BYTES_MAX && line.last() != Some(&b'\n') {
            return Ok(Walked { end, broken, whole_bytes });
        }
        whole_bytes += read as u64;
        line.pop();
        if std::mem::take(&mut first) {
            let of = serde_json::from_slice::<First>(&line).ok();
            match of.and_then(|first| u64::from_str_radix(&first.log, 16).ok()) {
                Some(log) => end.log = log,
                None => broken.push("its first line does not say which log it is".to_owned()),
            }
            end.hash = Sha256::digest(&line).into();
            continue;
        }
        let wanted = end.entries + 1;
        let entry = serde_json::from_slice::<Entry>(&line).ok();
        let Some(mut entry) = entry else {
            say(&mut broken, format!("entry {wanted} cannot be read"));
            end.entries = wanted;
            continue;
        };
        let told = std::mem::take(&mut entry.hash);
        let hash = chained(&end.hash, &serde_json::to_string(&entry)?);
        if entry.n != wanted || told != hex(&hash) {
            say(&mut broken, format!("entry {wanted} was changed, or one before it"));
        }
        // What stands there is gone on from: the next lines are judged by themselves.
        end.hash = unhex(&told).unwrap_or(hash);
        end.entries = wanted;
        visit(wanted, &end.hash);
    }
}

fn say(broken: &mut Vec<String>, what: String) {
    if broken.len() < BROKEN_MAX {
        broken.push(what);
    }
}

fn chained(before: &[u8; 32], line: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(line.as_bytes());
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(out)
}

/// In the state directory.
const FILE: &str = "audit.log";
const TEXT_MAX: usize = 500;
/// Four texts of four bytes a character, escaped, and the rest.
const LINE_BYTES_MAX: u64 = 64 << 10;
const TOLD_BYTES_MAX: u64 = 512 << 10;
const BROKEN_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(what: &str) -> Entry {
        let (who, what) = ("ann".to_owned(), what.to_owned());
        let (on, outcome) = ("web-1".to_owned(), "answered".to_owned());
        Entry { n: 0, at_ms: 5, who, what, on, outcome, hash: String::new() }
    }

    fn log(name: &str, entries: usize) -> (PathBuf, Audit) {
        let dir = std::env::temp_dir().join(format!("strobe-audit-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let audit = Audit::open(&dir).unwrap();
        for number in 0..entries {
            audit.append(entry(&format!("top {number}"))).unwrap();
        }
        (dir, audit)
    }

    #[test]
    fn a_log_goes_on_after_a_restart_and_a_torn_line() {
        let (dir, audit) = log("on", 3);
        let end = audit.end();
        drop(audit);
        let mut file = OpenOptions::new().append(true).open(dir.join(FILE)).unwrap();
        file.write_all(b"{\"n\":4,\"at_ms\":").unwrap();
        let audit = Audit::open(&dir).unwrap();
        assert_eq!(audit.end(), end);
        let end = audit.append(entry("doctor")).unwrap();
        assert_eq!(end.entries, 4);
        assert_eq!(audit.verify(Some((4, &end.hash))).unwrap(), Vec::<String>::new());
        assert_eq!(audit.verify(None).unwrap(), Vec::<String>::new());
        let last = audit.last(2).unwrap();
        assert!(last.lines().count() == 2 && last.contains("doctor"), "{last}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn whatever_is_changed_is_found() {
        let (dir, audit) = log("changed", 5);
        let (end, path) = (audit.end(), dir.join(FILE));
        let whole = std::fs::read_to_string(&path).unwrap();
        let agreed = Some((end.entries, end.hash.as_slice()));
        let check = |text: &str, wanted: &str| {
            std::fs::write(&path, text).unwrap();
            let found = audit.verify(agreed).unwrap();
            assert!(found.iter().any(|why| why.contains(wanted)), "{wanted}: {found:?}");
        };
        let lines: Vec<&str> = whole.lines().collect();
        let without = |at: usize| {
            let kept = lines.iter().enumerate().filter(|(index, _)| *index != at);
            kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
        };
        check(&whole.replacen("top 2", "top 9", 1), "entry 3 was changed");
        check(&without(2), "entry 2 was changed");
        check(&without(5), "its end was cut off");
        check(&whole.replacen("web-1", "web-2", 1), "entry 1 was changed");
        let (other, again) = log("anew", 5);
        let anew = std::fs::read_to_string(other.join(FILE)).unwrap();
        check(&anew, "the log was made anew");
        drop(again);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(audit.verify(agreed).unwrap(), Vec::<String>::new());
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::remove_dir_all(other).unwrap();
    }
}
