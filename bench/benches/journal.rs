//! The journal's commit: a group of records written and synced, by a `write` and an `fdatasync` and
//! by one call of io_uring, beside each other. What is shown is the wait, from the first append to
//! the return of the commit; a broker commits every 50 ms at the most, with the rows of its fleet.
//!
//! The file lies in the temporary directory: that has to be on the disk in question
//! (`TMPDIR=/var/tmp`), for in memory a sync costs nothing. Which of the two a journal takes by
//! itself is found out by a few commits when it is opened.

#![expect(clippy::print_stderr, reason = "a benchmark's output")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::{Duration, Instant};
use strobe_journal::{Commit, Journal};

fn commits(criterion: &mut Criterion) {
    let dir = std::env::temp_dir().join(format!("strobe-bench-journal-{}", std::process::id()));
    let (mut journal, _) = Journal::open(&dir, &mut |_, _| ()).expect("a new journal");
    let row = [7; ROW_BYTES];
    let mut group = criterion.benchmark_group("journal");
    for rows in [1, 50, 1_000] {
        group.throughput(Throughput::Bytes(rows * ROW_BYTES as u64));
        for (name, how) in [("write, fdatasync", Commit::Plain), ("io_uring", Commit::Uring)] {
            if let Err(why) = journal.commit_by(how) {
                // Nothing to compare with: the other one's number stands alone.
                eprintln!("journal: {why}");
                continue;
            }
            group.bench_function(BenchmarkId::new(name, rows), |bencher| {
                bencher.iter_custom(|commits| {
                    let mut waited = Duration::ZERO;
                    for _ in 0..commits {
                        let start = now();
                        for _ in 0..rows {
                            journal.append(&[&row]).expect("a record");
                        }
                        journal.commit().expect("room");
                        waited += start.elapsed();
                        release(&mut journal);
                    }
                    waited
                });
            });
        }
    }
    group.finish();
    drop(journal);
    // What stays in the temporary directory harms nobody.
    let _ = std::fs::remove_dir_all(&dir);
}

/// A file does not grow for ever.
fn release(journal: &mut Journal) {
    if FILE_BYTES < journal.active_bytes() {
        let full = journal.rotate().expect("room");
        journal.remove(full).expect("it is there");
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
fn now() -> Instant {
    Instant::now()
}

/// As a row of a host with its header.
const ROW_BYTES: usize = 1_024;
const FILE_BYTES: u64 = 64 << 20;

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = commits
}
criterion_main!(benches);
