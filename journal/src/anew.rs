//! A closed file written anew: what its records become stands in another file, which takes its name.

use crate::JournalError;
use crate::disk::Output;
use crate::file::{io, put_record};
use crate::scan::{Bounds, HEADER, MAGIC, scan};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The file to be.
#[derive(Debug)]
pub struct Anew {
    output: Output,
    buffer: Vec<u8>,
    buffer_bytes: usize,
    bytes: u64,
    written: std::io::Result<()>,
}

impl Anew {
    /// Appends a record, which is not empty and not larger than those that are read.
    pub fn put(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        put_record(&mut self.buffer, u32::try_from(length).unwrap_or(u32::MAX), parts);
        self.bytes += (HEADER + length) as u64;
        if self.buffer_bytes <= self.buffer.len() {
            self.write();
        }
    }

    /// The first failure stays, and is what all of it comes to.
    fn write(&mut self) {
        if self.written.is_ok() {
            self.written = self.output.write_all(&self.buffer);
        }
        self.buffer.clear();
    }
}

/// The records of a file as `visit` wants them, in another file; its bytes.
pub(crate) fn write_anew(
    path: &Path,
    new: &Path,
    bounds: Bounds,
    visit: &mut dyn FnMut(Option<&[u8]>, &mut Anew),
) -> Result<u64, JournalError> {
    let file = File::open(path).map_err(io("open", path))?;
    let output = Output::create(new).map_err(io("make", new))?;
    let (buffer, bytes) = (MAGIC.to_vec(), MAGIC.len() as u64);
    let mut anew = Anew { output, buffer, buffer_bytes: bounds.read_bytes, bytes, written: Ok(()) };
    scan(&file, path, bounds, &mut Vec::new(), &mut |record| visit(Some(record), &mut anew))?;
    visit(None, &mut anew);
    anew.write();
    anew.written.and_then(|()| anew.output.sync_data()).map_err(io("write", new))?;
    Ok(anew.bytes)
}
