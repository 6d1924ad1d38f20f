//! A 1 KiB row from a sampler thread to a reader thread: sealed in place in the ring, against the
//! queues one would otherwise take. All have 512 places; every row is sealed for real (CRC and
//! all), opened by the reader (CRC and structure, so every byte is read where it lies) and freed.
//! Time is per row, from the first claim to the last free.
//!
//! | rival | how it carries a row |
//! |---|---|
//! | `crossbeam` `ArrayQueue` | sealed in a buffer that is used again, copied in, copied out |
//! | `rtrb` (one producer only) | sealed in a buffer that is used again, copied in, opened in place |
//! | `thingbuf` | sealed and opened in place |
//!
//! An agent's frames have any length up to 4 KiB, and which one is known when it is sealed. There
//! are two groups of comparisons, and the ring is the same in both: its places hold any frame.
//!
//! | group | the rivals' places | what it says |
//! |---|---|---|
//! | `ring/any-frame/…` | `FRAME_BYTES_MAX`, 4 KiB: whatever the agent seals fits | the agent's choice: equal capacity, what the bar is held to |
//! | `ring/only-1k/…` | 1 KiB, just this row | the most favourable to who copies; no agent could use it |
//! | `ring/floor` | – | one thread seals a row and opens it, without any queue: no queue is faster for that |

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use crossbeam_queue::ArrayQueue;
use hugepage_config::{Region, Want};
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use strobe_agent::ring::{Reader, Ring, Writer};
use strobe_bench::{ROW_BYTES, SEALED_BYTES, look, seal};
use strobe_wire::limits::FRAME_BYTES_MAX;

fn ring(criterion: &mut Criterion) {
    let mut row = [0; ROW_BYTES];
    let mut group = criterion.benchmark_group("ring/floor");
    group.bench_function("seal", |bencher| bencher.iter(|| seal(black_box(&mut row), 1)));
    group.bench_function("open", |bencher| bencher.iter(|| look(black_box(&row[..SEALED_BYTES]))));
    group.finish();
    against::<FRAME_BYTES_MAX>(criterion, "any-frame");
    against::<ROW_BYTES>(criterion, "only-1k");
}

/// The ring, and rivals with places of `PLACE` bytes.
fn against<const PLACE: usize>(criterion: &mut Criterion, places: &str) {
    for producers in [1, 2] {
        let mut group = criterion.benchmark_group(format!("ring/{places}/{producers}-producer"));
        for (name, want) in [("strobe", Want::Plain), ("strobe-huge", Want::Hugetlb)] {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter_custom(|rows| strobe(rows, producers, want));
            });
        }
        group.bench_function(BenchmarkId::from_parameter("arrayqueue"), |bencher| {
            bencher.iter_custom(|rows| array_queue::<PLACE>(rows, producers));
        });
        if producers == 1 {
            group.bench_function(BenchmarkId::from_parameter("rtrb"), |bencher| {
                bencher.iter_custom(rtrb::<PLACE>);
            });
        }
        group.bench_function(BenchmarkId::from_parameter("thingbuf"), |bencher| {
            bencher.iter_custom(|rows| thing_buf::<PLACE>(rows, producers));
        });
        group.finish();
    }
}

fn strobe(rows: u64, producers: u64, want: Want) -> Duration {
    let mut region = Region::map(SLOTS * FRAME_BYTES_MAX, want).expect("memory for the ring");
    region.prefault();
    let Ring { writer, mut reader } = Ring::new(SLOTS, region).expect("a ring");
    let produce = |seq, writer: &mut Writer| {
        let Some(mut claim) = writer.claim() else { return false };
        let length = seal(&mut claim, seq);
        claim.publish(length);
        true
    };
    // A batch is released at once, as a cumulative acknowledgement does.
    let consume = |reader: &mut Reader| {
        let mut taken = 0;
        let mut last = None;
        while taken < BATCH {
            let Some(slot) = reader.next() else { break };
            assert!(look(&slot) != 0);
            last = Some(slot.ticket());
            taken += 1;
        }
        if let Some(last) = last {
            reader.release(last);
        }
        taken
    };
    let writers = (0..producers).map(|_| writer.clone()).collect();
    race(rows, writers, produce, || consume(&mut reader))
}

fn array_queue<const PLACE: usize>(rows: u64, producers: u64) -> Duration {
    let queue = ArrayQueue::<[u8; PLACE]>::new(SLOTS);
    let produce = |seq, row: &mut [u8; PLACE]| {
        // Asking first spares the rival a seal that would be thrown away.
        if queue.is_full() {
            return false;
        }
        let _ = seal(row, seq);
        while queue.push(*row).is_err() {
            thread::yield_now();
        }
        true
    };
    race(rows, (0..producers).map(|_| [0; PLACE]).collect(), produce, || {
        let mut taken = 0;
        while taken < BATCH {
            let Some(row) = queue.pop() else { break };
            assert!(look(&row[..SEALED_BYTES]) != 0);
            taken += 1;
        }
        taken
    })
}

fn rtrb<const PLACE: usize>(rows: u64) -> Duration {
    let (producer, mut consumer) = rtrb::RingBuffer::<[u8; PLACE]>::new(SLOTS);
    let produce = |seq, (producer, row): &mut (rtrb::Producer<_>, [u8; PLACE])| {
        if producer.is_full() {
            return false;
        }
        let _ = seal(row, seq);
        producer.push(*row).is_ok()
    };
    race(rows, vec![(producer, [0; PLACE])], produce, || {
        let ready = consumer.slots().min(usize::try_from(BATCH).unwrap_or(0));
        let Ok(chunk) = consumer.read_chunk(ready) else { return 0 };
        let (first, second) = chunk.as_slices();
        for row in first.iter().chain(second) {
            assert!(look(&row[..SEALED_BYTES]) != 0);
        }
        chunk.commit_all();
        u64::try_from(ready).unwrap_or(0)
    })
}

fn thing_buf<const PLACE: usize>(rows: u64, producers: u64) -> Duration {
    let queue = thingbuf::ThingBuf::<Element<PLACE>, Keep>::with_recycle(SLOTS, Keep);
    let produce = |seq, queue: &mut &thingbuf::ThingBuf<Element<PLACE>, Keep>| {
        let Ok(mut element) = queue.push_ref() else { return false };
        let _ = seal(&mut element.0, seq);
        true
    };
    race(rows, (0..producers).map(|_| &queue).collect(), produce, || {
        let mut taken = 0;
        while taken < BATCH {
            let Some(element) = queue.pop_ref() else { break };
            assert!(look(&element.0[..SEALED_BYTES]) != 0);
            taken += 1;
        }
        taken
    })
}

/// A place of thingbuf, kept as it is between uses.
struct Element<const PLACE: usize>([u8; PLACE]);

struct Keep;

impl<const PLACE: usize> thingbuf::Recycle<Element<PLACE>> for Keep {
    fn new_element(&self) -> Element<PLACE> {
        Element([0; PLACE])
    }

    fn recycle(&self, _: &mut Element<PLACE>) {}
}

/// Runs the producers against the consumer until `rows` came over; both sides yield when they
/// can do nothing, since three threads share two cores.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn race<P: Send>(
    rows: u64,
    producers: Vec<P>,
    produce: impl Fn(u64, &mut P) -> bool + Sync,
    mut consume: impl FnMut() -> u64,
) -> Duration {
    let share = rows.div_ceil(u64::try_from(producers.len()).unwrap_or(1));
    let total = share * u64::try_from(producers.len()).unwrap_or(1);
    let start = Barrier::new(producers.len() + 1);
    thread::scope(|scope| {
        for mut producer in producers {
            let (start, produce) = (&start, &produce);
            scope.spawn(move || {
                start.wait();
                for seq in 0..share {
                    while !produce(seq, &mut producer) {
                        thread::yield_now();
                    }
                }
            });
        }
        start.wait();
        let began = Instant::now();
        let mut taken = 0;
        while taken < total {
            let now = consume();
            taken += now;
            if now == 0 {
                thread::yield_now();
            }
        }
        // At most one row more than was asked for.
        began.elapsed()
    })
}

const SLOTS: usize = 512;
const BATCH: u64 = 64;

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = ring
}
criterion_main!(benches);
