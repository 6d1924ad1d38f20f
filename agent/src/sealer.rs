//! Numbers a boot's frames and puts them into the ring, in order and without holes.
//!
//! A frame that finds the ring full keeps its number and becomes part of the open [`Loss`], which is
//! sealed as a frame of its own as soon as there is room, before anything else: a reader meets a
//! hole's reason directly behind the hole, and is never kept waiting for it by a ring that is full
//! of what came later. So (boot, seq) has no hole without a reason. The first frame of a boot is
//! the event `start`; a step of the wall clock is an event too.

use crate::ring::Writer;
use crate::sampler::{SectionRow, Tick};
use strobe_wire::frame::{self, Burst, Event, FrameError, FrameKind, Header, Loss, Row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// One boot's numbering.
#[derive(Debug)]
pub struct Sealer {
    host: HostId,
    boot: BootId,
    writer: Writer,
    seq: Seq,
    /// What is lost and not told yet.
    loss: Option<Loss>,
    lost: u64,
    /// Wall time minus boot time at the last tick.
    offset_ns: Option<i64>,
}

impl Sealer {
    /// Nothing sealed yet.
    #[must_use]
    pub fn new(host: HostId, boot: BootId, writer: Writer) -> Self {
        Self { host, boot, writer, seq: Seq(0), loss: None, lost: 0, offset_ns: None }
    }

    /// Begins a tick: owns up to a loss, and to steps of the wall clock.
    pub fn begin(&mut self, now: Tick) {
        self.settle(now);
        let boottime_ns = i64::try_from(now.boottime_ns).unwrap_or(i64::MAX);
        let offset_ns = now.wall_ns.saturating_sub(boottime_ns);
        let step_ns = self.offset_ns.replace(offset_ns).map_or(0, |b| offset_ns.saturating_sub(b));
        if STEP_NS < step_ns.saturating_abs() {
            let text = format!("the wall clock was set by {} ms", step_ns / 1_000_000);
            self.event(now, "clock_step", &text);
        }
    }

    /// Seals a section's row.
    pub fn row(&mut self, now: Tick, row: &SectionRow<'_>) {
        self.settle(now);
        let header = self.header(now, FrameKind::Row, row.id);
        let content = Row { values: row.values, valid: row.valid, scores: row.scores };
        let sealed = match self.loss.is_none().then(|| self.writer.claim()).flatten() {
            None => Err("ring_full"),
            Some(mut claim) => match frame::seal_row(&mut claim, &header, &content) {
                Ok(length) => {
                    claim.publish(length);
                    Ok(())
                }
                // The claim is dropped, and with it the slot abandoned.
                Err(FrameError::Room { .. }) => Err("oversize"),
                Err(_) => Err("malformed"),
            },
        };
        if let Err(reason) = sealed {
            self.lose(now, reason, header.seq);
        }
    }

    /// Seals a block of a burst, of which the first sample is of `first`.
    pub fn burst(&mut self, now: Tick, first: Tick, schema: SchemaId, burst: &Burst<'_>) {
        self.settle(now);
        let header = self.header(first, FrameKind::Burst, schema);
        let claim = self.loss.is_none().then(|| self.writer.claim()).flatten();
        let sealed = claim.map(|mut claim| {
            frame::seal_burst(&mut claim, &header, burst).map(|length| claim.publish(length))
        });
        match sealed {
            None => self.lose(now, "ring_full", header.seq),
            Some(Err(_)) => self.lose(now, "oversize", header.seq),
            Some(Ok(_)) => {}
        }
    }

    /// Seals an event.
    pub fn event(&mut self, now: Tick, name: &str, text: &str) {
        self.settle(now);
        let header = self.header(now, FrameKind::Event, SchemaId(0));
        let event = Event { name: name.to_owned(), text: text.chars().take(512).collect() };
        let put = match frame::seal_event(&header, &event) {
            Ok(bytes) => self.put(&bytes),
            Err(_) => Err("oversize"),
        };
        if let Err(reason) = put {
            self.lose(now, reason, header.seq);
        }
    }

    /// The last number given.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Frames lost in this boot.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Seals the open loss, if there is room for it.
    fn settle(&mut self, now: Tick) {
        let Some(loss) = self.loss.take() else { return };
        let header = self.header(now, FrameKind::Loss, SchemaId(0));
        let sealed = frame::seal_loss(&header, &loss).map_err(|_| "oversize");
        if sealed.and_then(|bytes| self.claim_and_copy(&bytes)).is_err() {
            // Its number was not used by anybody: it is given again, and the loss stays.
            self.seq = Seq(self.seq.0 - 1);
            self.loss = Some(loss);
        }
    }

    /// With a loss untold, all that follows belongs to it.
    fn put(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.loss.is_none() { self.claim_and_copy(bytes) } else { Err("ring_full") }
    }

    fn claim_and_copy(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut claim = self.writer.claim().ok_or("ring_full")?;
        claim.get_mut(..bytes.len()).ok_or("oversize")?.copy_from_slice(bytes);
        claim.publish(bytes.len());
        Ok(())
    }

    /// The loss keeps the reason of its first frame; what joins it found the ring full.
    fn lose(&mut self, now: Tick, reason: &str, seq: Seq) {
        self.lost += 1;
        let loss = self.loss.get_or_insert_with(|| {
            let (reason, from_ns) = (reason.to_owned(), now.wall_ns);
            Loss { reason, first: seq.0, last: seq.0, from_ns, to_ns: from_ns }
        });
        loss.last = seq.0;
        loss.to_ns = now.wall_ns;
    }

    fn header(&mut self, now: Tick, kind: FrameKind, schema: SchemaId) -> Header {
        self.seq = self.seq.next();
        Header {
            kind,
            host: self.host,
            boot: self.boot,
            seq: self.seq,
            wall_ns: now.wall_ns,
            boottime_ns: now.boottime_ns,
            schema,
        }
    }
}

/// NTP slews at most 0.5 ms a second; half a second at once is somebody setting the clock.
const STEP_NS: i64 = 500_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Reader, Ring};
    use hugepage_config::{Region, Want};
    use strobe_wire::frame::Payload;
    use strobe_wire::limits::FRAME_BYTES_MAX;

    const NOW: Tick = Tick { wall_ns: 1_000_000_000_000, boottime_ns: 5_000_000_000 };

    fn sealer(slots: usize) -> (Sealer, Reader) {
        let ring =
            Ring::new(slots, Region::map(slots * FRAME_BYTES_MAX, Want::Plain).unwrap()).unwrap();
        (Sealer::new(HostId(1), BootId(2), ring.writer), ring.reader)
    }

    fn read(ring: &mut Reader) -> Vec<(u64, String)> {
        read_some(ring, usize::MAX)
    }

    fn read_some(ring: &mut Reader, most: usize) -> Vec<(u64, String)> {
        let mut seen = Vec::new();
        while seen.len() < most
            && let Some(slot) = ring.next()
        {
            let frame = frame::open(&slot).unwrap();
            let what = match frame.payload {
                Payload::Event(event) => event.name.to_string(),
                Payload::Loss(loss) => format!("{}..={} {}", loss.first, loss.last, loss.reason),
                Payload::Row(_) => "row".to_owned(),
                Payload::Burst(_) => "burst".to_owned(),
            };
            seen.push((frame.header.seq.0, what));
            let ticket = slot.ticket();
            ring.release(ticket);
        }
        seen
    }

    #[test]
    fn every_number_is_a_frame_or_part_of_a_loss() {
        let (mut sealer, mut ring) = sealer(4);
        for _ in 0..9 {
            sealer.event(NOW, "e", "");
        }
        assert_eq!((sealer.seq(), sealer.lost()), (Seq(9), 5));
        // Still full: the loss waits, and takes no number.
        sealer.begin(NOW);
        sealer.event(NOW, "e", "");
        let named = |list: &[(u64, &str)]| -> Vec<(u64, String)> {
            list.iter().map(|(seq, what)| (*seq, (*what).to_owned())).collect()
        };
        assert_eq!(read(&mut ring), named(&[(1, "e"), (2, "e"), (3, "e"), (4, "e")]));
        sealer.begin(NOW);
        sealer.event(NOW, "e", "");
        assert_eq!(read(&mut ring), named(&[(11, "5..=10 ring_full"), (12, "e")]));
        sealer.begin(NOW);
        assert_eq!(read(&mut ring), []);
    }

    /// The reader lets go only of what it can account for: with a reason that stood behind later
    /// rows in a full ring, it would wait for the reason and the reason for room.
    #[test]
    fn a_ring_that_flutters_tells_each_hole_directly_behind_it() {
        let (mut sealer, mut ring) = sealer(2);
        let mut through = 0;
        let mut account = |seen: Vec<(u64, String)>| {
            for (seq, what) in seen {
                if through + 1 < seq {
                    let (first, rest) = what.split_once("..=").expect("the hole's reason");
                    assert_eq!(first.parse(), Ok(through + 1));
                    assert_eq!(rest.split(' ').next().unwrap().parse(), Ok(seq - 1));
                }
                through = seq;
            }
            through
        };
        // One slot is freed after every fourth frame, in the middle of a tick.
        for turn in 0..1000 {
            sealer.event(NOW, "e", "");
            if turn % 4 == 3 {
                account(read_some(&mut ring, 1));
            }
        }
        account(read(&mut ring));
        sealer.begin(NOW);
        assert_eq!(account(read(&mut ring)), sealer.seq().0);
    }

    /// An hour and a day, forth and back: each step is one event that says by how much, and every tick
    /// before, at and behind it has its number.
    #[test]
    fn each_step_of_the_clock_is_one_event_and_no_hole() {
        let (mut sealer, mut ring) = sealer(64);
        let (mut wall_ns, mut told) = (NOW.wall_ns, Vec::new());
        for second in 0..20_u64 {
            let step_s = match second {
                4 => 3_600,
                8 => -3_600,
                12 => 86_400,
                16 => -86_400,
                _ => 0,
            };
            wall_ns += (step_s + 1) * 1_000_000_000;
            let now = Tick { wall_ns, boottime_ns: NOW.boottime_ns + second * 1_000_000_000 };
            sealer.begin(now);
            sealer.event(now, "tick", "");
            while let Some(slot) = ring.next() {
                let frame = frame::open(&slot).unwrap();
                let Payload::Event(event) = frame.payload else { panic!("{frame:?}") };
                told.push((frame.header.seq.0, event.name.to_string(), event.text.to_string()));
                let ticket = slot.ticket();
                ring.release(ticket);
            }
        }
        assert!((1..).zip(&told).all(|(wanted, (seq, ..))| wanted == *seq), "{told:?}");
        assert_eq!(told.iter().filter(|(_, name, _)| name == "tick").count(), 20);
        let steps: Vec<_> = told.iter().filter(|(_, name, _)| name == "clock_step").collect();
        let texts: Vec<_> =
            steps.iter().map(|(.., text)| text.rsplit(' ').nth(1).unwrap()).collect();
        assert_eq!(texts, ["3600000", "-3600000", "86400000", "-86400000"]);
    }

    #[test]
    fn a_set_clock_is_an_event_and_a_suspend_is_none() {
        let (mut sealer, mut ring) = sealer(4);
        sealer.begin(NOW);
        let later = |wall_s: i64, boot_s: u64| Tick {
            wall_ns: NOW.wall_ns + wall_s * 1_000_000_000,
            boottime_ns: NOW.boottime_ns + boot_s * 1_000_000_000,
        };
        sealer.begin(later(3600, 3600));
        assert_eq!(read(&mut ring), []);
        sealer.begin(later(1, 3601));
        assert_eq!(read(&mut ring), [(1, "clock_step".to_owned())]);
    }
}
