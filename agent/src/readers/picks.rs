//! Where the wanted numbers stand in a file of pairs of lines (`Tcp: RtoAlgorithm …`, `Tcp: 1 …`).
//!
//! Of 400 names in /proc/net/netstat and snmp some 30 are wanted, and the names stay as they are
//! while the kernel runs: they are compared as a whole, and of the values only those wanted are
//! looked at. That is a fifteenth of the instructions of looking at each name (measured: 110,000
//! of a tick's 270,000).

use super::text::fields;
use std::ops::Range;

/// What is remembered; nothing at first.
#[derive(Debug, Default)]
pub(crate) struct Picks {
    /// All lines of names, one behind the other.
    names: Vec<u8>,
    pairs: Vec<Pair>,
    picks: Vec<Pick>,
    keys: Vec<u8>,
    /// A line of values had another protocol than its names: the next may be right.
    torn: bool,
}

#[derive(Debug)]
struct Pair {
    /// The line of names, in `names`, with its newline.
    names: Range<usize>,
    /// Bytes of `Tcp:`, with which the line of values begins too.
    protocol: usize,
    picks: Range<usize>,
}

#[derive(Debug)]
struct Pick {
    /// Which word behind `Tcp:`.
    index: usize,
    key: Range<usize>,
}

impl Picks {
    /// Forgets all, to be told anew.
    pub(crate) fn clear(&mut self) {
        self.names.clear();
        self.pairs.clear();
        self.picks.clear();
        self.keys.clear();
        self.torn = false;
    }

    /// The next pair: its line of names, which begins with a protocol of so many bytes. Without
    /// one nothing of it is wanted.
    pub(crate) fn pair(&mut self, names: &[u8], protocol: Option<usize>) {
        self.torn |= protocol.is_none();
        let protocol = protocol.unwrap_or(0);
        let first = self.names.len();
        self.names.extend_from_slice(names);
        self.names.push(b'\n');
        let (names, picks) = (first..self.names.len(), self.picks.len()..self.picks.len());
        self.pairs.push(Pair { names, protocol, picks });
    }

    /// A wanted word of the last pair.
    pub(crate) fn pick(&mut self, index: usize, key: &[u8]) {
        let first = self.keys.len();
        self.keys.extend_from_slice(key);
        self.picks.push(Pick { index, key: first..self.keys.len() });
        if let Some(pair) = self.pairs.last_mut() {
            pair.picks.end = self.picks.len();
        }
    }

    /// Whether `bytes` have the names that were told, and nothing else.
    pub(crate) fn fit(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        for pair in &self.pairs {
            let names = self.names.get(pair.names.clone()).unwrap_or(&[]);
            let protocol = names.get(..pair.protocol).unwrap_or(&[]);
            let Some(values) = rest.strip_prefix(names) else { return false };
            let behind = values.strip_prefix(protocol).map(<[u8]>::first);
            if !matches!(behind, Some(None | Some(b' ' | b'\n'))) && !protocol.is_empty() {
                return false;
            }
            rest = after_line(values).1;
        }
        rest.is_empty() && !self.pairs.is_empty() && !self.torn
    }

    /// The wanted words of `bytes`, which [fit](Self::fit), with their keys.
    pub(crate) fn each(&self, bytes: &[u8], mut put: impl FnMut(&[u8], &[u8])) {
        let mut rest = bytes;
        for pair in &self.pairs {
            let (values, after) = after_line(rest.get(pair.names.len()..).unwrap_or(&[]));
            rest = after;
            let picks = self.picks.get(pair.picks.clone()).unwrap_or(&[]);
            let mut words = Walk { line: values.get(pair.protocol..).unwrap_or(&[]), next: 0 };
            for pick in picks {
                let Some(word) = words.to(pick.index) else { break };
                put(self.keys.get(pick.key.clone()).unwrap_or(&[]), word);
            }
        }
    }
}

/// Goes over a line's words, and looks only at those asked for.
struct Walk<'a> {
    line: &'a [u8],
    /// The number of the first word in `line`.
    next: usize,
}

impl<'a> Walk<'a> {
    fn to(&mut self, index: usize) -> Option<&'a [u8]> {
        // A word begins where a space has something else behind it.
        let mut ahead = index.checked_sub(self.next)?;
        let mut blank = true;
        let begins = |byte: &u8| {
            let begins = blank && *byte != b' ';
            blank = *byte == b' ';
            if begins && ahead == 0 {
                return true;
            }
            ahead -= usize::from(begins);
            false
        };
        let first = self.line.iter().position(begins)?;
        let word = fields(self.line.get(first..)?).next()?;
        self.line = self.line.get(first + word.len()..)?;
        self.next = index + 1;
        Some(word)
    }
}

fn after_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    (bytes.get(..end).unwrap_or(&[]), bytes.get(end + 1..).unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use crate::readers::Format;
    use crate::readers::sheet::{Sheet, Vanish};

    fn read(sheet: &mut Sheet, text: &str) -> Vec<(String, Option<u64>)> {
        sheet.learn();
        Format::Pairs.parse(text.as_bytes(), sheet);
        sheet.learned();
        let key = |(at, entry): (usize, &super::super::sheet::Entry)| {
            (String::from_utf8_lossy(&entry.key).into_owned(), sheet.value(at))
        };
        sheet.entries().iter().enumerate().map(key).collect()
    }

    /// Whatever was remembered of the file before, a file says what it says.
    #[test]
    fn names_that_change_are_looked_at_anew() {
        let files = [
            "Tcp: A InSegs OutSegs\nTcp: 1 2 3\nUdp: InDatagrams\nUdp: 4\n",
            "Tcp: A InSegs OutSegs\nTcp: 1 20 30\nUdp: InDatagrams\nUdp: 40\n",
            "Tcp: A InSegs OutSegs\nTcp:   1  20   30 \nUdp: InDatagrams\nUdp: 40",
            "Tcp: A InSegs OutSegs\nTcp: 1 2\nUdp: InDatagrams\nUdp:\n",
            "Tcp: A InSegs OutSegs\nTcp:1 2 3 4\nUdp: InDatagrams\nUdp: 4\n",
            "Tcp: InSegs A OutSegs\nTcp: 1 2 3\nUdp: InDatagrams\nUdp: 4\n",
            "Tcp: InSegs A OutSegs\nUdp: 1 2 3\nUdp: InDatagrams\nUdp: 4\n",
            "Tcp: InSegs A OutSegs\nTcp: 1 2 3\nUdp: InDatagrams",
            "Tcp: InSegs A OutSegs\nTcp: 1 2 3\nUdp: InDatagrams\nUdp: 4\nUdp: InErrors\nUdp: 5\n",
            "",
        ];
        let mut kept = Sheet::new(Vanish::Go);
        for first in files {
            for second in files {
                read(&mut kept, first);
                let mut fresh = Sheet::new(Vanish::Go);
                assert_eq!(read(&mut kept, second), read(&mut fresh, second), "{second:?}");
            }
        }
        let found = read(&mut kept, files[2]);
        let value = |key: &str| found.iter().find(|(known, _)| known == key).unwrap().1;
        assert_eq!((value("Tcp_InSegs"), value("Tcp_OutSegs")), (Some(20), Some(30)));
        assert_eq!(value("Udp_InDatagrams"), Some(40));
    }
}
