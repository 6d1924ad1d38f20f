//! How evenly the shard ring spreads 256 shards over 1 to 100 brokers, and how many move when one
//! joins, leaves or dies: `cargo bench --bench shards`.
//!
//! Three ways to make a ring's points: CRC32 as it is, CRC32 mixed (ours), XXH3. For each, with the ring
//! alone: the longest stretch of the circle that one broker has, and the most shards, both over the
//! mean; 256 shards are so few that the second is mostly chance. Then, with the bounded load: what
//! share of shards sits where the ring alone would have put it. Movement is counted for what
//! [`Owners::assign`] does, and for a ring that is computed anew with the same bound each time.

use criterion::{Criterion, criterion_group};
use std::collections::BTreeMap;
use std::hint::black_box;
use strobe_wire::limits::VIRTUAL_NODES;
use strobe_wire::shard::{BrokerId, Owners, Ring, Shard, capacity};

fn main() {
    report();
    times();
    Criterion::default().configure_from_args().final_summary();
}

criterion_group!(times, assign);

fn assign(criterion: &mut Criterion) {
    for count in [3, 100] {
        let (before, after) = (brokers(count), brokers(count + 1));
        let owners = Owners::none().assign(&before);
        let name = format!("shards/join of {count}");
        criterion.bench_function(&name, |b| b.iter(|| black_box(&owners).assign(&after)));
    }
}

/// How a virtual node's point on the ring is made, and what that is called.
type Making = (&'static str, fn(BrokerId, u32) -> u32);

#[expect(clippy::print_stdout, reason = "a report")]
fn report() {
    let makings: [Making; 3] = [("CRC32", plain), ("CRC32, mixed", mixed), ("XXH3", xxh3)];
    println!("each column of three: {}\n", makings.map(|(name, _)| name).join(" | "));
    println!(
        "{:>7} {:>5} {:>6} | {:^22} | {:^22} | {:^22}",
        "brokers", "bound", "most", "longest stretch", "most, ring alone", "where the ring wants"
    );
    for count in SHOWN {
        line(count, &makings);
    }
    let mean = |of: &dyn Fn(u64) -> f64| (2..=100).map(of).sum::<f64>() / 99.0;
    let [a, b, c] = makings.map(|(_, making)| mean(&|count| stretch(count, making)));
    println!("\nlongest stretch, mean of 2..=100 brokers: {a:.3} | {b:.3} | {c:.3}");
    let worst = (1..=100).map(|count| {
        let all = brokers(count);
        let best = 256_u64.div_ceil(count) as f64 * count as f64 / 256.0;
        over_mean(&Owners::none().assign(&all), &all) / best.max(1.05)
    });
    let worst = worst.fold(0.0, f64::max);
    println!("most shards over max(1.05, the best an integer can do), worst: {worst:.3}");
    movement(&makings);
}

#[expect(clippy::print_stdout, reason = "a report")]
fn line(count: u64, makings: &[Making; 3]) {
    let all = brokers(count);
    let bounded = over_mean(&Owners::none().assign(&all), &all);
    let rings = makings.map(|(_, making)| Ring::of(&all, making));
    let [a, b, c] = makings.map(|(_, making)| stretch(count, making));
    let [d, e, f] = rings.each_ref().map(|ring| over_mean(&alone(ring), &all));
    let [g, h, i] = rings.each_ref().map(|ring| {
        let strayed = Owners::none().assign_on(ring, &all).moved(&alone(ring)).count();
        100.0 - strayed as f64 / 2.56
    });
    println!(
        "{count:>7} {:>5} {bounded:>6.3} | {a:>6.3}  {b:>6.3}  {c:>6.3} | \
         {d:>6.3}  {e:>6.3}  {f:>6.3} | {g:>4.0} %  {h:>4.0} %  {i:>4.0} %",
        capacity(all.len()),
    );
}

#[expect(clippy::print_stdout, reason = "a report")]
fn movement(makings: &[Making]) {
    println!("\nmoved over 1..=100 brokers, joins then leaves of the oldest (minimum = 1)");
    let (mut kept, mut fewest) = (0, 0);
    walk(|after, owners| {
        let next = owners.assign(after);
        kept += next.moved(owners).count();
        fewest += owners.moves_min(after);
        next
    });
    println!("  kept where they are (ours)  {:.3}", kept as f64 / fewest as f64);
    for (name, making) in makings {
        let (mut moved, mut fewest) = (0, 0);
        walk(|after, owners| {
            let next = Owners::none().assign_on(&Ring::of(after, making), after);
            moved += next.moved(owners).count();
            fewest += owners.moves_min(after);
            next
        });
        println!("  computed anew, {name:<12} {:.3}", moved as f64 / fewest as f64);
    }
}

/// Joins up to 100 brokers, then leaves of the oldest down to one.
fn walk(mut step: impl FnMut(&[BrokerId], &Owners) -> Owners) {
    let mut owners = Owners::none().assign(&brokers(1));
    let joins = (2..=100).map(brokers);
    let leaves = (2..=100).map(|first| (first..=100).map(BrokerId).collect());
    for after in joins.chain(leaves) {
        owners = step(&after, &owners);
    }
}

/// Each shard at the first broker clockwise, however many it has.
fn alone(ring: &Ring) -> Owners {
    let mut owners = Owners::none();
    Shard::all().for_each(|shard| owners.set(shard, ring.from(shard.point()).next()));
    owners
}

/// The longest part of the circle that one of so many brokers has, over the mean.
fn stretch(count: u64, making: fn(BrokerId, u32) -> u32) -> f64 {
    let of = |broker| (0..VIRTUAL_NODES).map(move |n| (making(BrokerId(broker), n), broker));
    let mut points: Vec<(u32, u64)> = (1..=count).flat_map(of).collect();
    points.sort_unstable();
    let mut lengths = BTreeMap::new();
    let mut before = points.last().map_or(0, |last| last.0);
    for (point, broker) in points {
        *lengths.entry(broker).or_insert(0.0) += f64::from(point.wrapping_sub(before));
        before = point;
    }
    lengths.into_values().fold(0.0, f64::max) * count as f64 / 2_f64.powi(32)
}

fn over_mean(owners: &Owners, brokers: &[BrokerId]) -> f64 {
    let most = owners.loads(brokers).into_values().max().unwrap_or(0);
    most as f64 * brokers.len() as f64 / 256.0
}

fn brokers(count: u64) -> Vec<BrokerId> {
    (1..=count).map(BrokerId).collect()
}

fn bytes(broker: BrokerId, number: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&broker.0.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn plain(broker: BrokerId, number: u32) -> u32 {
    crc32fast::hash(&bytes(broker, number))
}

fn mixed(broker: BrokerId, number: u32) -> u32 {
    let mut x = plain(broker, number);
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

fn xxh3(broker: BrokerId, number: u32) -> u32 {
    u32::try_from(xxhash_rust::xxh3::xxh3_64(&bytes(broker, number)) >> 32).expect("32 bits")
}

const SHOWN: [u64; 12] = [1, 2, 3, 4, 5, 8, 10, 16, 20, 32, 50, 100];
