//! Recovery of a journal: records are written, files are cut, flipped and overwritten, and it always
//! opens again. While nothing was broken every committed record is there; whatever happened, nothing
//! is there that was not written.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use strobe_journal::Journal;

#[derive(Arbitrary, Debug)]
enum Op {
    Append(Vec<u8>),
    Commit,
    Rotate,
    Remove,
    Reopen,
    /// The newest file with records ends here.
    Cut(u16),
    /// A byte of it changes.
    Set {
        at: u16,
        to: u8,
    },
    /// A file of anything.
    Foreign(Vec<u8>),
}

fuzz_target!(|data: &[u8]| {
    let dir = scratch();
    let mut ops = Unstructured::new(data);
    let (mut whole, mut broken) = (Vec::<Vec<u8>>::new(), false);
    let mut written = HashSet::<Vec<u8>>::new();
    let mut pending = Vec::new();
    let (mut journal, _) = Journal::open(&dir, &mut |_, _| ()).expect("a new directory opens");
    for _ in 0..64 {
        let Ok(op) = Op::arbitrary(&mut ops) else { break };
        match op {
            Op::Append(bytes) => {
                if journal.append(&[&bytes]).is_ok() {
                    pending.push(bytes);
                }
            }
            Op::Commit => {
                journal.commit().expect("there is room");
                written.extend(pending.iter().cloned());
                whole.append(&mut pending);
            }
            Op::Rotate => {
                journal.rotate().expect("there is room");
                written.extend(pending.iter().cloned());
                whole.append(&mut pending);
            }
            Op::Remove => {
                let oldest = journal.closed().first().map(|(number, _)| *number);
                if let Some(number) = oldest {
                    journal.remove(number).expect("it is there");
                    broken = true;
                }
            }
            Op::Reopen => {
                pending.clear();
                drop(journal);
                journal = reopen(&dir, &whole, &written, broken);
            }
            Op::Cut(to) => {
                pending.clear();
                drop(journal);
                change(&dir, |bytes| bytes.truncate(usize::from(to)));
                broken = true;
                journal = reopen(&dir, &whole, &written, broken);
            }
            Op::Set { at, to } => {
                pending.clear();
                drop(journal);
                change(&dir, |bytes| {
                    if let Some(byte) = bytes.get_mut(usize::from(at)) {
                        *byte = to;
                    }
                });
                broken = true;
                journal = reopen(&dir, &whole, &written, broken);
            }
            Op::Foreign(bytes) => {
                pending.clear();
                drop(journal);
                let mut records = Vec::new();
                fs::write(dir.join("0000000000000000.log"), &bytes).expect("there is room");
                (journal, _) = Journal::open(&dir, &mut |_, record| records.push(record.to_vec()))
                    .expect("it always opens");
                // Who writes a right checksum may write a record.
                written.extend(records);
                broken = true;
            }
        }
        if ops.is_empty() {
            break;
        }
    }
    drop(journal);
    drop(reopen(&dir, &whole, &written, broken));
});

fn reopen(dir: &Path, whole: &[Vec<u8>], written: &HashSet<Vec<u8>>, broken: bool) -> Journal {
    let mut found = Vec::new();
    let (journal, damage) =
        Journal::open(dir, &mut |_, record| found.push(record.to_vec())).expect("it always opens");
    assert!(found.iter().all(|record| written.contains(record)), "a record nobody wrote");
    if !broken {
        assert_eq!((found.as_slice(), damage.len()), (whole, 0));
    }
    journal
}

/// Changes the newest file that has records.
fn change(dir: &Path, act: impl FnOnce(&mut Vec<u8>)) {
    let files = fs::read_dir(dir).expect("it is there").flatten().map(|entry| entry.path());
    let logs = files.filter(|path| path.extension().is_some_and(|e| e == "log"));
    let filled = logs.filter(|path| fs::metadata(path).is_ok_and(|m| 8 < m.len()));
    if let Some(path) = filled.max() {
        let mut bytes = fs::read(&path).expect("it is there");
        act(&mut bytes);
        fs::write(&path, bytes).expect("there is room");
    }
}

/// An empty directory; `scripts/fuzz` has it in memory.
fn scratch() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-fuzz-journal-{}", std::process::id()));
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).expect("the temporary directory can be written");
    dir
}
