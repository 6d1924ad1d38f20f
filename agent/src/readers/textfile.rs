//! Metrics that others leave as files: every `*.prom` of a directory, in the Prometheus text format.
//!
//! A file is read anew each time, because it is replaced by renaming. One line that is wrong (a name
//! that is none, a time of its own, torn) refuses the whole file, as in node_exporter, and
//! `node_textfile_scrape_error` says so.

use super::sheet::{Repair, Sheet};
use super::text::lines;
use super::{GAUGE, column};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use strobe_wire::schema::{Column, Kind, Labels};

/// The directory and what its files say now.
#[derive(Debug)]
pub(crate) struct Textfiles {
    dir: PathBuf,
    files: Vec<Text>,
    error: bool,
}

#[derive(Debug)]
struct Text {
    path: String,
    modified_ns: Option<u64>,
    bytes: Vec<u8>,
}

/// One sample of a line.
struct Sample<'l> {
    /// Name and labels as they stand there.
    series: &'l [u8],
    value: f64,
}

impl Textfiles {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), files: Vec::new(), error: false }
    }

    /// Reads every file.
    pub(super) fn load(&mut self) {
        self.files.clear();
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            self.error = true;
            return;
        };
        self.error = false;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "prom"));
        paths.sort();
        for path in paths.into_iter().take(FILES_MAX) {
            match read(&path) {
                Some(text) if is_valid(&text.bytes) => self.files.push(text),
                _ => self.error = true,
            }
        }
    }

    pub(super) fn put(&self, sheet: &mut Sheet) {
        for file in &self.files {
            for sample in samples(&file.bytes).flatten() {
                sheet.put(SERIES, sample.series, &[Some(sample.value.to_bits())], Repair::None);
            }
            sheet.put(FILE, file.path.as_bytes(), &[file.modified_ns], Repair::None);
        }
        sheet.put(ERROR, b"", &[Some(u64::from(self.error))], Repair::None);
    }
}

pub(super) fn columns(shape: u8, key: &[u8]) -> Vec<Column> {
    let text = String::from_utf8_lossy(key);
    match shape {
        SERIES => {
            let (name, labels) = parse(&text).unwrap_or_default();
            vec![Column { name, labels, kind: Kind::Float }]
        }
        FILE => {
            let kind = Kind::Gauge { scale: 9 };
            vec![column("node_textfile_mtime_seconds", &[("file", &text)], kind)]
        }
        _ => vec![column("node_textfile_scrape_error", &[], GAUGE)],
    }
}

fn read(path: &Path) -> Option<Text> {
    let file = File::open(path).ok()?;
    let modified = file.metadata().ok()?.modified().ok()?;
    let since = modified.duration_since(UNIX_EPOCH).ok();
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    let fits = u64::try_from(bytes.len()).is_ok_and(|length| length <= FILE_BYTES_MAX);
    fits.then(|| Text {
        path: path.to_string_lossy().into_owned(),
        modified_ns: since.and_then(|since| u64::try_from(since.as_nanos()).ok()),
        bytes,
    })
}

/// Whether every line is a comment or a sample.
fn is_valid(bytes: &[u8]) -> bool {
    samples(bytes).all(|sample| {
        let text = sample.as_ref().and_then(|sample| std::str::from_utf8(sample.series).ok());
        text.and_then(parse).is_some()
    })
}

/// The samples; `None` for a line that is none.
fn samples(bytes: &[u8]) -> impl Iterator<Item = Option<Sample<'_>>> {
    let lines = lines(bytes).map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")).map(|line| {
        // Behind the closing brace, which labels may hold too, or behind the first blank.
        let end = match line.iter().position(|byte| *byte == b'{') {
            Some(_) => line.iter().rposition(|byte| *byte == b'}')? + 1,
            None => line.iter().position(|byte| matches!(byte, b' ' | b'\t'))?,
        };
        let (series, rest) = line.split_at_checked(end)?;
        // A time of its own is refused: it would not be that of the row.
        let value = std::str::from_utf8(rest.trim_ascii()).ok()?.parse().ok()?;
        Some(Sample { series, value })
    })
}

/// `name{label="value",…}`, without the labels that are the host's.
fn parse(text: &str) -> Option<(String, Labels)> {
    let (name, labels) = crate::input::text::series(text)?;
    let free = labels.value("job").is_none() && labels.value("instance").is_none();
    free.then_some((name, labels))
}

const SERIES: u8 = 0;
const FILE: u8 = 1;
const ERROR: u8 = 2;
const FILES_MAX: usize = 256;
const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_samples_or_refuse_their_file() {
        for (text, valid) in [
            ("# HELP a b\n# TYPE a counter\na 1\n\na{b=\"c\"} 2.5e3\n", true),
            ("a{b=\"x } \\\" \\\\ \\n\", c=\"\",} NaN", true),
            ("a:b_total\t+Inf", true),
            ("a 1 1395066363000", false),
            ("a", false),
            ("a{b=\"c} 1", false),
            ("a{b=c} 1", false),
            ("a{b=\"c\",b=\"d\"} 1", false),
            ("a{job=\"x\"} 1", false),
            ("1a 1", false),
            ("a{b=\"\\x\"} 1", false),
            ("\u{e9} 1", false),
        ] {
            assert_eq!(is_valid(text.as_bytes()), valid, "{text}");
        }
        let (name, labels) = parse("a{b=\"x } \\\" \\\\ \\n\", c=\"\",}").unwrap();
        assert_eq!((&*name, labels), ("a", Labels::of(&[("b", "x } \" \\ \n")])));
    }
}
