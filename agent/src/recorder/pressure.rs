//! Pressure (PSI): the kernel's own watch where it lets us have one, and totals where not.
//!
//! A watch is a line written to `/proc/pressure/*`, and then an urgent event of that descriptor. One
//! that the kernel refused is a descriptor that polls ready for ever, so it is closed at once; one
//! that fails later too. Without CAP_SYS_RESOURCE windows must be multiples of 2 s.

use super::Reason;
use super::hot::{PRESSURE_AT, RESOURCES};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

/// Watches of the three resources, as far as the kernel allows.
#[derive(Debug, Default)]
pub struct Watches([Option<File>; 3]);

/// The totals of the resources, once a second.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    checked_ns: u64,
    before: [Option<u64>; 3],
    /// It was high, and was not low since.
    high: [bool; 3],
    watched: [bool; 3],
}

impl Watches {
    /// Asks the kernel for each.
    #[must_use]
    pub fn new(procfs: &Path) -> Self {
        let watch = |index: usize| {
            let path = procfs.join("pressure").join(RESOURCES[index]);
            let per_mille = PER_MILLE[index];
            let line =
                |window_us: u64| format!("some {} {window_us}", window_us * per_mille / 1000);
            watch(&path, &line(1_000_000)).or_else(|| watch(&path, &line(2_000_000)))
        };
        Self(std::array::from_fn(watch))
    }

    /// Those there are, with their resource's number.
    pub fn files(&self) -> impl Iterator<Item = (usize, &File)> {
        self.0.iter().enumerate().filter_map(|(index, file)| Some((index, file.as_ref()?)))
    }

    /// Closes one that fails.
    pub fn close(&mut self, resource: usize) {
        if let Some(file) = self.0.get_mut(resource) {
            *file = None;
        }
    }
}

/// `None` if it is refused; nothing stays open then.
fn watch(path: &Path, line: &str) -> Option<File> {
    let mut file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    file.write_all(format!("{line}\0").as_bytes()).ok()?;
    let mut poll = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
    nix::poll::poll(&mut poll, PollTimeout::ZERO).ok()?;
    let found = poll[0].revents().unwrap_or(PollFlags::POLLERR);
    let broken = PollFlags::POLLERR | PollFlags::POLLNVAL | PollFlags::POLLHUP;
    (!found.intersects(broken)).then_some(file)
}

impl Pressure {
    /// The resources whose pressure has become high, by totals, of those that nobody watches.
    pub(super) fn look(
        &mut self,
        now_ns: u64,
        values: &[Option<u64>],
    ) -> impl Iterator<Item = Reason> + use<> {
        let mut found = [None; 3];
        let passed_us = now_ns.saturating_sub(self.checked_ns) / 1000;
        if SECOND_US <= passed_us {
            self.checked_ns = now_ns;
            for index in 0..3 {
                let total = values.get(PRESSURE_AT + index).copied().flatten();
                let before = std::mem::replace(&mut self.before[index], total);
                let grown = total.and_then(|total| total.checked_sub(before?));
                let Some(grown) = grown else { continue };
                let per_mille = grown.saturating_mul(1000) / passed_us;
                let was = self.high[index];
                let bound = PER_MILLE[index];
                self.high[index] = bound <= per_mille || (was && bound / 2 <= per_mille);
                if self.high[index] && !was && !self.watched[index] {
                    found[index] = Some(REASONS[index]);
                }
            }
        }
        found.into_iter().flatten()
    }

    pub(super) fn is_watched(&mut self, resource: usize, watched: bool) {
        if let Some(place) = self.watched.get_mut(resource) {
            *place = watched;
        }
    }
}

/// Of the time, in thousandths, in which some task has to wait: CPUs are shared every day, and
/// memory should not be waited for.
const PER_MILLE: [u64; 3] = [700, 500, 200];
const REASONS: [Reason; 3] = [Reason::CpuPressure, Reason::IoPressure, Reason::MemoryPressure];
const SECOND_US: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// A refused watch once left a descriptor that polled ready for ever.
    #[test]
    fn a_refused_watch_leaves_nothing_open() {
        let open = || {
            let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let names = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            names.filter(|name| name.starts_with("/proc/pressure")).count()
        };
        let before = open();
        assert!(watch(Path::new("/proc/pressure/cpu"), "some 1 2").is_none());
        assert!(watch(Path::new("/proc/pressure/none"), "some 150000 1000000").is_none());
        assert_eq!(open(), before);
    }

    #[test]
    fn totals_tell_once_until_it_was_low() {
        let mut pressure = Pressure::default();
        let mut values = vec![None; PRESSURE_AT + 5];
        let mut look = |second: u64, total: Option<u64>| {
            values[PRESSURE_AT] = total;
            pressure.look(second * 1_000_000_000, &values).next()
        };
        assert_eq!((look(1, Some(5)), look(2, Some(100_000))), (None, None));
        assert_eq!(look(3, Some(900_000)), Some(Reason::CpuPressure));
        assert_eq!(look(4, Some(1_700_000)), None, "it is still high");
        assert_eq!((look(5, Some(1_800_000)), look(6, None)), (None, None));
        assert_eq!((look(7, Some(9_000_000)), look(8, Some(9_000_001))), (None, None));
        assert_eq!(look(9, Some(5)), None, "a total that fell says nothing");
        assert_eq!(look(10, Some(800_005)), Some(Reason::CpuPressure));
        pressure.is_watched(0, true);
        values[PRESSURE_AT] = Some(800_006);
        assert_eq!(pressure.look(11_000_000_000, &values).next(), None);
        values[PRESSURE_AT] = Some(1_900_006);
        assert_eq!(pressure.look(12_000_000_000, &values).next(), None, "the kernel tells of it");
    }
}
