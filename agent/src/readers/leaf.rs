//! Files of one value each, as sysfs has them: found by a walk, kept open, read by `pread`.
//!
//! ```text
//! walk ──▶ Found { leaves: value = Σ of its files    infos: labels are the files' texts }
//!           read: one pread a file, nothing allocated while the texts stay as they are
//! ```
//!
//! A file that cannot be read (a link that is down has no carrier, a sensor fails) gives a column
//! without a value. A file that is gone asks for another walk. At most [`FILES_OPEN_MAX`] files are
//! kept open by all families together, because each holds a page of the kernel's memory; what is
//! over is opened for each reading. Files of many values are [`Table`]s, parsed as those of /proc.

use super::engine::{Call, Engine};
use super::kept::{Buffer, Shape};
use super::table::Table;
use super::text::{hexadecimal, human, leading, number, signed};
use super::{Format, GAUGE, bounded, column};
use crate::config::SMALL;
use nix::errno::Errno;
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use strobe_wire::limits::LABEL_VALUE_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Labels};

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) infos: Vec<Info>,
    pub(crate) tables: Vec<Table>,
    engine: Option<Engine>,
    /// The engine of the walk before, which goes on from where it is.
    former: Option<Engine>,
    /// A file that there has to be beside the others is not.
    pub(crate) lacks: bool,
    /// Columns beyond the budget of the family, left out.
    pub(crate) refused: u64,
    /// Readings so far, for what is read seldom.
    readings: u32,
}

/// One column, the sum of what its files say.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) column: Column,
    read: Read,
    files: Vec<Attribute>,
    pub(crate) value: Option<u64>,
    /// Whether one reading in [`SELDOM`] reads it.
    seldom: bool,
}

/// How a text is a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Read {
    /// A whole number, times this.
    Whole(u64),
    /// A whole number with a sign, decimal or `0x…`, times this.
    Level(i64),
    /// The number it begins with (`4: ACTIVE`, `2.5 Gb/sec`), times this.
    Leading(u64),
    /// A size as bcache writes it ([`human`]), or a whole number.
    Human,
    /// A number as `0x…`; all ones are a counter that the device does not have.
    Hexadecimal,
    /// 1 if it is this text, 0 otherwise.
    Is(&'static str),
    /// The same, whether in large letters or small.
    IsAnyCase(&'static str),
    /// How many words it has.
    Words,
    /// No file is read: always this.
    Constant(u64),
}

/// A column that is always 1, with labels that are read.
#[derive(Debug)]
pub(crate) struct Info {
    name: &'static str,
    labels: Vec<(&'static str, String)>,
    texts: Vec<Text>,
    /// Whether the texts are told without the `0x` they begin with.
    bare: bool,
    /// As of a leaf.
    seldom: bool,
}

#[derive(Debug)]
struct Text {
    label: &'static str,
    file: Attribute,
    last: Vec<u8>,
}

#[derive(Debug)]
struct Attribute {
    path: PathBuf,
    file: Option<File>,
}

/// What all families read with.
#[derive(Debug)]
pub(crate) struct Reader {
    room: Vec<u8>,
    open: usize,
}

/// What a reading came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Seen {
    /// A label is another: the columns are others.
    pub(crate) relabelled: bool,
    /// A file is gone: the walk is out of date.
    pub(crate) gone: bool,
}

impl Found {
    /// Whether there is no room for another column.
    pub(crate) fn is_full(&self) -> bool {
        COLUMNS_MAX <= self.leaves.len() + self.infos.len()
    }

    /// A column read from one file, if the file is there.
    pub(crate) fn leaf(&mut self, path: PathBuf, read: Read, column: Column) {
        if path.exists() {
            self.sum(vec![path], read, column);
        }
    }

    /// A column that is the sum of several files.
    pub(crate) fn sum(&mut self, paths: Vec<PathBuf>, read: Read, column: Column) {
        if self.is_full() {
            self.refused += 1;
            return;
        }
        let files = paths.into_iter().map(Attribute::new).collect();
        self.leaves.push(Leaf { column, read, files, value: None, seldom: false });
    }

    /// The attributes of `specs` that `dir` has, all with these labels.
    pub(crate) fn object(&mut self, dir: &Path, specs: &[Spec], labels: &[(&str, &str)]) {
        for Spec(file, name, kind, read) in specs {
            self.leaf(dir.join(file), *read, column(name, labels, *kind));
        }
    }

    /// A column that is always this.
    pub(crate) fn constant(&mut self, value: u64, column: Column) {
        self.sum(Vec::new(), Read::Constant(value), column);
    }

    /// A column that is 1, with labels from files: of each text its label and its file.
    pub(crate) fn info(
        &mut self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        texts: &[(&'static str, PathBuf)],
    ) {
        if self.is_full() {
            self.refused += 1;
            return;
        }
        let labels = labels.iter().map(|(name, value)| (*name, bounded(value))).collect();
        let text = |(label, path): &(&'static str, PathBuf)| Text {
            label,
            file: Attribute::new(path.clone()),
            last: Vec::new(),
        };
        let texts = texts.iter().map(text).collect();
        self.infos.push(Info { name, labels, texts, bare: false, seldom: false });
    }

    /// The same, and texts that are numbers are told without their `0x`.
    pub(crate) fn info_bare(
        &mut self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        texts: &[(&'static str, PathBuf)],
    ) {
        let before = self.infos.len();
        self.info(name, labels, texts);
        self.infos.iter_mut().skip(before).for_each(|info| info.bare = true);
    }

    /// What is added by this is what only people change: one reading in [`SELDOM`] reads it.
    pub(crate) fn seldom(&mut self, add: impl FnOnce(&mut Self)) {
        let (leaves, infos) = (self.leaves.len(), self.infos.len());
        add(self);
        self.leaves.iter_mut().skip(leaves).for_each(|leaf| leaf.seldom = true);
        self.infos.iter_mut().skip(infos).for_each(|info| info.seldom = true);
    }

    /// A file of many values, if it is there.
    pub(crate) fn table(&mut self, path: PathBuf, shape: Shape, format: Format, about: &str) {
        if path.exists() && self.tables.len() < TABLES_MAX {
            self.tables.push(Table::new(path, shape, format, about));
        }
    }

    /// What is asked otherwise than by reading one file.
    pub(crate) fn engine(&mut self, call: impl FnOnce() -> Call) {
        self.engine = self.former.take().or_else(|| Some(Engine::new(call())));
    }

    /// For the next walk: counters that an engine keeps itself go on.
    pub(crate) fn again(self) -> Self {
        Self { former: self.engine, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let none = self.leaves.is_empty() && self.infos.is_empty() && self.tables.is_empty();
        none && self.engine.is_none()
    }

    /// Whether any column has a value.
    pub(crate) fn has_any(&self) -> bool {
        self.leaves.iter().any(|leaf| leaf.value.is_some())
            || !self.infos.is_empty()
            || self.tables.iter().any(|table| table.sheet.has_any())
            || self.engine.as_ref().is_some_and(|engine| engine.sheet.has_any())
    }

    /// All columns, in the order of [`value`](Self::value).
    pub(crate) fn columns(&self) -> Vec<Column> {
        let mut columns: Vec<_> = self.leaves.iter().map(|leaf| leaf.column.clone()).collect();
        columns.extend(self.infos.iter().map(Info::column));
        for table in &self.tables {
            columns.extend(table.columns());
        }
        if let Some(engine) = &self.engine {
            columns.extend(engine.sheet.entries().iter().flat_map(|entry| engine.columns(entry)));
        }
        columns
    }

    /// The value of column `index` now.
    pub(crate) fn value(&self, index: usize) -> Option<u64> {
        if let Some(leaf) = self.leaves.get(index) {
            return leaf.value;
        }
        let mut index = index - self.leaves.len();
        if index < self.infos.len() {
            return Some(1);
        }
        index -= self.infos.len();
        for table in &self.tables {
            if index < table.sheet.width() {
                return table.sheet.value(index);
            }
            index -= table.sheet.width();
        }
        self.engine.as_ref()?.sheet.value(index)
    }

    /// Columns left out because there are too many.
    pub(crate) fn refused(&self) -> u64 {
        self.refused + self.tables.iter().map(|table| table.sheet.refused()).sum::<u64>()
    }

    /// Reads every file once.
    pub(crate) fn read(&mut self, now_ns: u64, reader: &mut Reader, buffer: &mut Buffer) -> Seen {
        let mut seen = Seen::default();
        for table in &mut self.tables {
            seen.relabelled |= table.read(buffer);
        }
        seen.relabelled |= self.engine.as_mut().is_some_and(|engine| engine.read(now_ns));
        let all = self.readings.is_multiple_of(SELDOM);
        self.readings = self.readings.wrapping_add(1);
        for leaf in self.leaves.iter_mut().filter(|leaf| all || !leaf.seldom) {
            leaf.read(reader, &mut seen);
        }
        let infos = self.infos.iter_mut().filter(|info| all || !info.seldom);
        for text in infos.flat_map(|info| &mut info.texts) {
            text.read(reader, &mut seen);
        }
        seen
    }

    /// Gives up what is kept open.
    pub(crate) fn close(&mut self, reader: &mut Reader) {
        let leaves = self.leaves.iter_mut().flat_map(|leaf| &mut leaf.files);
        let texts = self.infos.iter_mut().flat_map(|info| &mut info.texts);
        for file in leaves.chain(texts.map(|text| &mut text.file)) {
            reader.open -= usize::from(file.file.take().is_some());
        }
    }
}

impl Leaf {
    fn read(&mut self, reader: &mut Reader, seen: &mut Seen) {
        if let Read::Constant(value) = self.read {
            self.value = Some(value);
            return;
        }
        self.value = Some(0);
        for file in &mut self.files {
            let found = file.read(reader, seen).and_then(|bytes| self.read.parse(bytes));
            // Gauges are two's complement, whose sum is that of the bits.
            self.value = self.value.zip(found).map(|(sum, value)| sum.wrapping_add(value));
        }
    }
}

impl Read {
    pub(crate) fn parse(self, bytes: &[u8]) -> Option<u64> {
        let text = bytes.trim_ascii();
        match self {
            Self::Whole(factor) => number(text)?.checked_mul(factor),
            Self::Level(factor) => {
                let value = match text.strip_prefix(b"0x") {
                    Some(digits) => i64::try_from(hexadecimal(digits)?).ok()?,
                    None => signed(text)?.cast_signed(),
                };
                value.checked_mul(factor).map(i64::cast_unsigned)
            }
            Self::Leading(factor) => leading(text, factor),
            Self::Human if SMALL => None,
            Self::Human => human(text),
            Self::Hexadecimal => {
                let value = hexadecimal(text.strip_prefix(b"0x")?)?;
                (value != u64::MAX).then_some(value)
            }
            Self::Is(wanted) => Some(u64::from(text == wanted.as_bytes())),
            Self::IsAnyCase(wanted) => {
                Some(u64::from(text.eq_ignore_ascii_case(wanted.as_bytes())))
            }
            Self::Words => u64::try_from(super::text::words(text).count()).ok(),
            Self::Constant(value) => Some(value),
        }
    }
}

impl Info {
    pub(crate) fn column(&self) -> Column {
        let fixed = self.labels.iter().map(|(name, value)| (*name, Cow::from(value.as_str())));
        let read = self.texts.iter().map(|text| (text.label, text.value(self.bare)));
        let pairs = fixed.chain(read).map(|(name, value)| (name.to_owned(), value.into_owned()));
        Column { name: self.name.to_owned(), labels: Labels::new(pairs.collect()), kind: GAUGE }
    }
}

impl Text {
    fn read(&mut self, reader: &mut Reader, seen: &mut Seen) {
        let bytes = self.file.read(reader, seen).unwrap_or(&[]);
        let bytes = bytes.get(..LABEL_VALUE_BYTES_MAX.min(bytes.len())).unwrap_or(&[]);
        if *bytes != *self.last {
            self.last.clear();
            self.last.extend_from_slice(bytes);
            seen.relabelled = true;
        }
    }

    fn value(&self, bare: bool) -> Cow<'_, str> {
        let text = self.last.trim_ascii();
        let text = text.strip_prefix(b"0x").filter(|_| bare).unwrap_or(text);
        let text = lossy(text);
        // A byte that is no UTF-8 becomes three.
        if text.len() <= LABEL_VALUE_BYTES_MAX { text } else { bounded(&text).into() }
    }
}

impl Attribute {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn read<'b>(&mut self, reader: &'b mut Reader, seen: &mut Seen) -> Option<&'b [u8]> {
        let kept = self.file.is_some();
        let mut result = self.attempt(reader);
        // A device that came back under the same name has other files: one fresh start.
        if kept && result.as_ref().is_err_and(is_stale) {
            reader.open -= usize::from(self.file.take().is_some());
            result = self.attempt(reader);
        }
        match result {
            Ok(length) => reader.room.get(..length),
            Err(error) => {
                seen.gone |= is_stale(&error);
                None
            }
        }
    }

    fn attempt(&mut self, reader: &mut Reader) -> io::Result<usize> {
        if let Some(file) = &self.file {
            return file.read_at(&mut reader.room, 0);
        }
        // Not blocking: what is a pipe in somebody's tree must not hold the sampler.
        let mut how = File::options();
        let file = how.read(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        let length = file.read_at(&mut reader.room, 0);
        if reader.open < FILES_OPEN_MAX {
            reader.open += 1;
            self.file = Some(file);
        }
        length
    }
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { room: vec![0; VALUE_BYTES_MAX], open: 0 }
    }
}

/// File, metric, kind, and how the text is a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec(
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) Kind,
    pub(crate) Read,
);

/// The text of a file, trimmed, for those who walk.
pub(crate) fn text_of(path: &Path) -> Option<String> {
    let mut room = [0; 4096];
    let length = File::open(path).and_then(|file| file.read_at(&mut room, 0)).ok()?;
    let text = lossy(room.get(..length)?.trim_ascii()).into_owned();
    Some(text).filter(|text| !text.is_empty())
}

/// The same with the blanks it begins and ends with, but without the newline.
pub(crate) fn line_of(path: &Path) -> Option<String> {
    let mut room = [0; 4096];
    let length = File::open(path).and_then(|file| file.read_at(&mut room, 0)).ok()?;
    let line = lossy(room.get(..length)?).trim_matches('\n').to_owned();
    Some(line).filter(|line| !line.is_empty())
}

/// One mark for any number of bytes in a row that are no UTF-8, as Go has it.
fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.into();
    }
    let mut text = String::with_capacity(bytes.len());
    let mut marked = false;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        marked &= chunk.valid().is_empty();
        if !chunk.invalid().is_empty() && !marked {
            text.push(char::REPLACEMENT_CHARACTER);
            marked = true;
        }
    }
    text.into()
}

/// The names in a directory, sorted, for those who walk; none if it is not there.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let name = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut names: Vec<_> = entries.filter_map(name).take(NAMES_MAX).collect();
    names.sort_by(|a, b| natural(a).cmp(&natural(b)).then_with(|| a.cmp(b)));
    names
}

/// Whether `name` is `prefix` and a number; the number.
pub(crate) fn numbered<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    let digits = name.strip_prefix(prefix)?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
}

/// `cpu10` stands behind `cpu9`.
fn natural(name: &str) -> (&str, u64) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (stem, digits) = name.split_at(name.len() - digits);
    (stem, digits.parse().unwrap_or(0))
}

fn is_stale(error: &io::Error) -> bool {
    let stale = [Errno::ENOENT, Errno::ENODEV, Errno::ENXIO, Errno::ESTALE, Errno::ENOTDIR];
    error.raw_os_error().is_some_and(|code| stale.contains(&Errno::from_raw(code)))
}

/// sysfs gives a page at most.
const VALUE_BYTES_MAX: usize = 4096;
/// Of 1,024 that a process may have open as a rule.
const FILES_OPEN_MAX: usize = 384;
/// Columns of one family: four full sections.
const COLUMNS_MAX: usize = 1600;
/// Files of many values of one family.
const TABLES_MAX: usize = 64;
/// Of every so many readings one has what seldom changes.
const SELDOM: u32 = 4;
/// Names of one directory.
const NAMES_MAX: usize = 8192;
