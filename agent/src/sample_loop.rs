//! The sampler's thread: wait for the timer, read, seal into the ring, wake the network loop.
//!
//! ```text
//! timerfd ──▶ Sampler::tick ──▶ claim a slot ──▶ seal_row ──▶ publish      (a frame a section)
//!                                    │ full
//!                                    ▼
//!                               the sequence number is spent; a Loss frame names it later
//! ```
//!
//! It never waits for the network, the disk or another thread. Sequence numbers are consecutive
//! over all frames of a boot: a refused frame keeps its number, and as soon as a slot is free one
//! Loss frame (with a number of its own) covers the whole run that was refused.
//!
//! Ticks fall on multiples of the interval of wall time, so that hosts are sampled together. A wall
//! clock that steps by more than [`STEP_NS`] is an Event frame, never a hole. Ticks that
//! the machine was too busy for are not made up for.

use crate::clock::{boottime_ns, monotonic_ns, wall_ns};
use crate::ring::Writer;
use crate::sampler::{Sampler, SectionRow, Tick, Trees};
use crate::schemas::Table;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use strobe_wire::frame::{
    Event, FrameError, FrameKind, Header, Loss, Row, seal_event, seal_loss, seal_row,
};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// Seals rows into the ring and numbers them.
#[derive(Debug)]
pub struct Sealer {
    host: HostId,
    boot: BootId,
    next: Seq,
    ring: Writer,
    loss: Option<Loss>,
    lost: u64,
}

/// What the thread needs.
#[derive(Debug)]
pub struct Job {
    /// What to read.
    pub trees: Trees,
    /// Time between two samples.
    pub interval_ms: u64,
    /// Where the frames go.
    pub sealer: Sealer,
    /// Where their schemas go.
    pub table: Arc<Table>,
}

/// A running sampler thread; dropping it ends the thread within an interval.
#[derive(Debug)]
pub struct SampleLoop {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sealer {
    /// The first frame gets number 1.
    #[must_use]
    pub fn new(host: HostId, boot: BootId, ring: Writer) -> Self {
        Self { host, boot, next: Seq(1), ring, loss: None, lost: 0 }
    }

    /// Seals one section's row; what cannot be sealed is owed to the loss ledger.
    pub fn row(&mut self, now: Tick, row: SectionRow<'_>) {
        self.settle_loss(now);
        let header = self.header(FrameKind::Row, now, row.id);
        let row = Row { values: row.values, valid: row.valid, scores: &[] };
        let reason = match self.ring.claim() {
            None => "ring_full",
            Some(mut slot) => match seal_row(&mut slot, &header, &row) {
                Ok(length) => {
                    slot.publish(length);
                    return;
                }
                Err(_) => "oversize",
            },
        };
        self.owe(header.seq, now, reason);
    }

    /// Says that something happened. Allocates: events are rare.
    pub fn event(&mut self, now: Tick, event: &Event) {
        self.settle_loss(now);
        let header = self.header(FrameKind::Event, now, SchemaId(0));
        if !self.copy(&seal_event(&header, event)) {
            self.owe(header.seq, now, "ring_full");
        }
    }

    /// Tells the network loop that there is something to send. Once a tick.
    pub fn wake(&self) {
        self.ring.wake();
    }

    /// Frames that were refused since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn header(&mut self, kind: FrameKind, now: Tick, schema: SchemaId) -> Header {
        let seq = self.next;
        self.next = seq.next();
        Header {
            kind,
            host: self.host,
            boot: self.boot,
            seq,
            wall_ns: now.wall_ns,
            boottime_ns: now.boottime_ns,
            schema,
        }
    }

    fn owe(&mut self, seq: Seq, now: Tick, reason: &str) {
        self.lost += 1;
        match &mut self.loss {
            Some(loss) => {
                loss.last = seq.0;
                loss.to_ns = now.wall_ns;
            }
            None => {
                self.loss = Some(Loss {
                    reason: reason.to_owned(),
                    first: seq.0,
                    last: seq.0,
                    from_ns: now.wall_ns,
                    to_ns: now.wall_ns,
                });
            }
        }
    }

    /// Writes the entry of the loss ledger that is owed, if there is a slot for it.
    fn settle_loss(&mut self, now: Tick) {
        let Some(loss) = self.loss.take() else { return };
        // The number is spent only if the frame gets out: the entry cannot cover itself.
        let before = self.next;
        let header = self.header(FrameKind::Loss, now, SchemaId(0));
        if !self.copy(&seal_loss(&header, &loss)) {
            self.next = before;
            self.loss = Some(loss);
        }
    }

    fn copy(&mut self, frame: &Result<Vec<u8>, FrameError>) -> bool {
        let Ok(frame) = frame else { return false };
        let Some(mut slot) = self.ring.claim() else { return false };
        match slot.get_mut(..frame.len()) {
            Some(room) => room.copy_from_slice(frame),
            None => return false,
        }
        slot.publish(frame.len());
        true
    }
}

impl SampleLoop {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel's, if it gives no timer or no thread.
    pub fn start(job: Job) -> io::Result<Self> {
        let timer = timer(job.interval_ms)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("strobe-sampler".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || run(job, &timer, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for SampleLoop {
    fn drop(&mut self) {
        // Relaxed: the flag carries no other bytes; the join orders what follows.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(mut job: Job, timer: &TimerFd, stop: &AtomicBool) {
    let mut sampler = Sampler::new(&job.trees, monotonic_ns, Arc::clone(&job.table));
    let mut before: Option<Tick> = None;
    // The first sample is made at once: the dashboard should not wait an interval for it.
    while !stop.load(Ordering::Relaxed) {
        let now = Tick { wall_ns: wall_ns(), boottime_ns: boottime_ns() };
        if let Some(step_ns) = before.and_then(|before| step(before, now)) {
            let text = format!("the wall clock stepped by {} ms", step_ns / 1_000_000);
            job.sealer.event(now, &Event { name: "clock_step".to_owned(), text });
        }
        before = Some(now);
        sampler.tick(now, |row| job.sealer.row(now, row));
        job.sealer.wake();
        if wait(timer, stop).is_err() {
            return;
        }
    }
}

/// A timer on the interval's multiples of wall time. CLOCK_MONOTONIC runs it, so a step of the wall
/// clock neither makes a burst of ticks nor a hole; it stays on its own phase.
fn timer(interval_ms: u64) -> io::Result<TimerFd> {
    let interval = Duration::from_millis(interval_ms);
    let interval_ns = interval_ms.saturating_mul(1_000_000).max(1);
    let past_ns = u64::try_from(wall_ns()).unwrap_or(0) % interval_ns;
    let first = Duration::from_nanos(interval_ns - past_ns);
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    let expiration =
        Expiration::IntervalDelayed(TimeSpec::from_duration(first), TimeSpec::from(interval));
    timer.set(expiration, TimerSetTimeFlags::empty())?;
    Ok(timer)
}

/// Until the next tick, looking at `stop` now and then if the interval is long.
fn wait(timer: &TimerFd, stop: &AtomicBool) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    while !stop.load(Ordering::Relaxed) {
        let mut polled = [PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(STOP_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(timer.wait()?),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// By how much the wall clock left the boot clock between two ticks, if by more than `STEP_NS`.
fn step(before: Tick, now: Tick) -> Option<i64> {
    let passed = i64::try_from(now.boottime_ns.saturating_sub(before.boottime_ns)).ok()?;
    let step_ns = now.wall_ns.saturating_sub(before.wall_ns).saturating_sub(passed);
    (STEP_NS < step_ns.saturating_abs()).then_some(step_ns)
}

/// What NTP's slewing (500 ppm) never reaches within an interval.
const STEP_NS: i64 = 500_000_000;
const STOP_MS: u16 = 1000;
const STACK_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Ring;
    use hugepage_config::{Region, Want};
    use strobe_wire::frame::{Payload, open};
    use strobe_wire::schema::{Column, Kind, Labels, Schema};

    fn ring(slots: usize) -> Ring {
        Ring::new(slots, Region::map(slots * 4096, Want::Plain).unwrap()).unwrap()
    }

    fn schema() -> Arc<Schema> {
        let labels = Labels::default();
        let columns = vec![Column { name: "x".to_owned(), labels, kind: Kind::Float }];
        Arc::new(Schema { section: "host".to_owned(), columns })
    }

    fn tick(second: i64) -> Tick {
        let wall_ns = second * 1_000_000_000;
        Tick { wall_ns, boottime_ns: wall_ns.cast_unsigned() }
    }

    /// Every number of a boot is a frame or covered by a Loss frame, whatever was refused.
    #[test]
    fn a_full_ring_leaves_no_hole_without_a_reason() {
        let Ring { writer, mut reader } = ring(4);
        let mut sealer = Sealer::new(HostId(1), BootId(2), writer);
        let schema = schema();
        let mut seen = Vec::new();
        let mut last = None;
        for second in 0..40 {
            let row = SectionRow { schema: &schema, id: schema.id(), values: &[7], valid: &[1] };
            sealer.row(tick(second), row);
            if second % 7 != 6 {
                continue;
            }
            while let Some(slot) = reader.next() {
                last = Some(slot.ticket());
                let bytes = slot.bytes();
                let frame = open(&bytes).unwrap();
                seen.push(frame.header.seq.0);
                if let Payload::Loss(loss) = frame.payload {
                    assert_eq!(loss.reason.as_str(), "ring_full");
                    assert!(loss.last.to_native() < frame.header.seq.0);
                    seen.extend(loss.first.to_native()..=loss.last.to_native());
                }
            }
            if let Some(last) = last {
                reader.release(last);
            }
        }
        assert!(0 < sealer.lost());
        seen.sort_unstable();
        let all: Vec<u64> = (1..=seen.iter().copied().max().unwrap()).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn a_step_of_the_wall_clock_is_seen_and_suspend_is_not_one() {
        let slept = Tick { wall_ns: tick(3600).wall_ns, boottime_ns: tick(3600).boottime_ns };
        assert_eq!(step(tick(1), slept), None);
        let stepped = Tick { wall_ns: tick(0).wall_ns, boottime_ns: tick(2).boottime_ns };
        assert_eq!(step(tick(1), stepped), Some(-2_000_000_000));
    }

    #[test]
    fn the_thread_samples_seals_and_stops() {
        let Ring { writer, mut reader } = ring(64);
        let table = Arc::new(Table::new());
        let trees =
            Trees { procfs: "/proc".into(), rootfs: "/".into(), filesystem_interval_ms: 1000 };
        let sealer = Sealer::new(HostId(1), BootId(2), writer);
        let job = Job { trees, interval_ms: 100, sealer, table: Arc::clone(&table) };
        let running = SampleLoop::start(job).unwrap();
        let mut sections = std::collections::BTreeSet::new();
        let mut seq = 0;
        while !["host", "cpu", "cost", "filesystem"].iter().all(|name| sections.contains(*name)) {
            let Some(slot) = reader.next() else {
                std::thread::yield_now();
                continue;
            };
            let ticket = slot.ticket();
            let bytes = slot.bytes();
            let frame = open(&bytes).unwrap();
            seq += 1;
            assert_eq!(frame.header.seq.0, seq);
            let schema = table.schema(frame.header.schema).unwrap();
            let Payload::Row(row) = frame.payload else { panic!("only rows are expected") };
            assert_eq!(row.len(), schema.columns.len());
            assert_eq!(schema.check(), Ok(()));
            sections.insert(schema.section.clone());
            drop(bytes);
            reader.release(ticket);
        }
        drop(running);
    }
}
