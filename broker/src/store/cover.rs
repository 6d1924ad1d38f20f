//! Of which times a store has all frames of a host: then its rollup of such a time stands alone, and what
//! another store has of it is part of the same.
//!
//! ```text
//! seq   1 2 3 4 5 6 7 8          A: runs 1..=5          both have 4 and 5: on their way to A when it died,
//! A     x x x x x                B: runs 4..=8          and sent again to B
//! B           x x x x x
//! ```
//!
//! A host's (boot, seq) has no holes, so a run of sequence numbers without one is everything that the host
//! told between its first frame and its last. Frames say a little of the time before them (bursts, late
//! readers), so a run vouches only for what lies [`SLACK_MS`] within it. What is lost is no part of a run:
//! another broker may have it. Knowing less than is so costs bytes and never an answer: samples of what
//! nobody vouches for are kept one by one ([`super::sums`]).
//!
//! Runs are written beside the segments before the WAL that told them is let go of.

use super::StoreError;
use super::segment::io;
use super::shared::Shared;
use std::io::Write;
use std::path::Path;
use strobe_journal::disk::{self, Output};
use strobe_wire::frame::Header;

/// What is known of one host's frames, the run that was added to last at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cover(Vec<Run>);

/// Frames of one boot, all of them from the first to the last; and the times of these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    boot: u128,
    seqs: (u64, u64),
    times: (i64, i64),
}

impl Cover {
    /// Takes in that a frame is stored.
    pub(super) fn note(&mut self, header: &Header) {
        let (seq, time) = (header.seq.0, header.wall_ns.div_euclid(1_000_000));
        self.add(Run { boot: header.boot.0, seqs: (seq, seq), times: (time, time) });
    }

    fn add(&mut self, mut new: Run) {
        if let Some(last) = self.0.last_mut()
            && last.boot == new.boot
            && last.seqs.1.checked_add(1) == Some(new.seqs.0)
        {
            // The usual case. The clock may have been set: what counts is the last frame's time.
            (last.seqs.1, last.times.1) = (new.seqs.1, new.times.1);
            return;
        }
        self.0.retain(|old| {
            let (first, last) = old.seqs;
            let apart = last.saturating_add(1) < new.seqs.0 || new.seqs.1.saturating_add(1) < first;
            if old.boot != new.boot || apart {
                return true;
            }
            if first <= new.seqs.0 {
                (new.seqs.0, new.times.0) = (first, old.times.0);
            }
            if new.seqs.1 <= last {
                (new.seqs.1, new.times.1) = (last, old.times.1);
            }
            false
        });
        if RUNS_MAX <= self.0.len() {
            let oldest = self.0.iter().enumerate().min_by_key(|(_, run)| run.times.1);
            if let Some((at, _)) = oldest {
                self.0.remove(at);
            }
        }
        self.0.push(new);
    }

    /// Whether everything of `(end_ms - step_ms, end_ms]` is here.
    pub(super) fn is_whole(&self, end_ms: i64, step_ms: i64) -> bool {
        self.0.iter().any(|run| {
            let (first, last) = run.times;
            first.saturating_add(SLACK_MS) <= end_ms - step_ms
                && end_ms <= last.saturating_sub(SLACK_MS)
        })
    }
}

/// Writes the runs of all hosts that end at `from_ms` or later, whole or not at all.
pub(super) fn write(shared: &Shared, dir: &Path, from_ms: i64) -> Result<(), StoreError> {
    let mut text = String::new();
    for source in shared.sources() {
        for Run { boot, seqs, times } in &source.read().cover.0 {
            if from_ms <= times.1 {
                let (first, last) = (seqs.0, seqs.1);
                let host = source.id;
                text +=
                    &format!("{host:032x} {boot:032x} {first} {last} {} {}\n", times.0, times.1);
            }
        }
    }
    let (part, path) = (dir.join("cover.part"), dir.join(NAME));
    let mut file = Output::create(&part).map_err(io("make", &part))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(io("write", &part))?;
    disk::rename(&part, &path).map_err(io("rename", &part))?;
    disk::sync_dir(dir).map_err(io("sync", dir))
}

/// Takes in what is written in `dir`; what cannot be read is not known.
pub(super) fn read(shared: &Shared, dir: &Path) {
    let text = std::fs::read_to_string(dir.join(NAME)).unwrap_or_default();
    for (host, run) in text.lines().filter_map(parse) {
        shared.source(host).write().cover.add(run);
    }
}

fn parse(line: &str) -> Option<(u128, Run)> {
    let mut words = line.split(' ');
    let host = u128::from_str_radix(words.next()?, 16).ok()?;
    let boot = u128::from_str_radix(words.next()?, 16).ok()?;
    let seqs = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let times = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (words.next().is_none() && seqs.0 <= seqs.1).then_some((host, Run { boot, seqs, times }))
}

const NAME: &str = "cover";
/// A frame tells of at most so much before it: a burst of the last minute is sent in the next one.
const SLACK_MS: i64 = 180_000;
/// Of one host: a boot or a move each.
const RUNS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seqs: (u64, u64), times: (i64, i64)) -> Run {
        Run { boot: 1, seqs, times: (times.0 * 60_000, times.1 * 60_000) }
    }

    #[test]
    fn a_run_vouches_for_what_lies_well_within_it() {
        let mut cover = Cover::default();
        cover.add(run((1, 60), (0, 10)));
        let whole = |cover: &Cover| {
            let whole = (1..40).filter(|end| cover.is_whole(end * 60_000, 60_000));
            whole.collect::<Vec<_>>()
        };
        assert_eq!(whole(&cover), [4, 5, 6, 7]);
        // Behind a hole begins another run, until the hole is filled.
        cover.add(run((70, 160), (12, 22)));
        assert_eq!(whole(&cover), [4, 5, 6, 7, 16, 17, 18, 19]);
        cover.add(run((61, 69), (11, 11)));
        assert_eq!(cover.0, [run((1, 160), (0, 22))]);
        // What is known already adds nothing, and another boot's numbers are others.
        cover.add(run((5, 9), (1, 2)));
        assert_eq!(cover.0, [run((1, 160), (0, 22))]);
        cover.add(Run { boot: 2, ..run((161, 161), (23, 23)) });
        assert_eq!(cover.0.len(), 2);
        // A clock that was set back: nobody vouches for what lies before and was told by a run before.
        let mut back = Cover::default();
        back.add(run((1, 60), (20, 30)));
        back.add(run((61, 61), (5, 5)));
        assert_eq!(whole(&back), Vec::<i64>::new());
        // A bound: the oldest is forgotten.
        for n in 0..1000 {
            cover.add(run((1000 + n * 10, 1001 + n * 10), (30, 31)));
        }
        assert_eq!(cover.0.len(), RUNS_MAX);
    }

    #[test]
    fn what_is_no_line_is_not_known() {
        let of = |line: &str| parse(line).map(|(host, run)| (host, run.seqs, run.times));
        assert_eq!(of("0a 01 3 9 -5 70"), Some((10, (3, 9), (-5, 70))));
        for line in ["", "0a", "0a 01 3 9 5", "0a 01 9 3 5 7", "0a 01 3 9 5 7 8", "x 01 3 9 5 7"] {
            assert_eq!(of(line), None, "{line}");
        }
    }
}
