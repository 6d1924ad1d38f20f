//! Numbers a boot's frames and puts them into the ring, in order and without holes.
//!
//! A frame that finds the ring full keeps its number and becomes part of the open [`Loss`]; the
//! loss is sealed as a frame of its own as soon as there is room. So (boot, seq) has no hole
//! without a reason. The first frame of a boot is the event `start`; a step of the wall clock is
//! an event too.

use crate::ring::Writer;
use crate::sampler::{SectionRow, Tick};
use strobe_wire::frame::{self, Event, FrameError, FrameKind, Header, Loss, Row};
use strobe_wire::ids::{BootId, HostId, SchemaId, Seq};

/// One boot's numbering.
#[derive(Debug)]
pub struct Sealer {
    host: HostId,
    boot: BootId,
    writer: Writer,
    seq: Seq,
    /// Frames lost since the last loss frame.
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

    /// Begins a tick: owns up to losses, and to steps of the wall clock.
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
        let header = self.header(now, FrameKind::Row, row.id);
        let content = Row { values: row.values, valid: row.valid, scores: &[] };
        let sealed = match self.writer.claim() {
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

    /// Seals an event.
    pub fn event(&mut self, now: Tick, name: &str, text: &str) {
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

    /// Ends a tick: the reader may look.
    pub fn wake(&self) {
        self.writer.wake();
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

    /// Seals the open loss, if there is one and room for it.
    fn settle(&mut self, now: Tick) {
        let Some(loss) = self.loss.take() else { return };
        let header = self.header(now, FrameKind::Loss, SchemaId(0));
        let put = match frame::seal_loss(&header, &loss) {
            Ok(bytes) => self.put(&bytes),
            Err(_) => Err("oversize"),
        };
        if put.is_err() {
            // Its number was not used by anybody: it is given again, and the loss stays open.
            self.seq = Seq(self.seq.0 - 1);
            self.loss = Some(loss);
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut claim = self.writer.claim().ok_or("ring_full")?;
        claim.get_mut(..bytes.len()).ok_or("oversize")?.copy_from_slice(bytes);
        claim.publish(bytes.len());
        Ok(())
    }

    fn lose(&mut self, now: Tick, reason: &str, seq: Seq) {
        self.lost += 1;
        match &mut self.loss {
            // Numbers are consecutive while the ring is full; a gap is another loss, and the
            // former one then stands for both, which claims no frame that was not lost: frames
            // between them went in, so the ring had room, and `begin` sealed the former.
            Some(loss) if loss.last + 1 == seq.0 && loss.reason == reason => {
                loss.last = seq.0;
                loss.to_ns = now.wall_ns;
            }
            Some(_) => {
                self.settle(now);
                if self.loss.is_none() {
                    self.open(now, reason, seq);
                }
            }
            None => self.open(now, reason, seq),
        }
    }

    fn open(&mut self, now: Tick, reason: &str, seq: Seq) {
        let reason = reason.to_owned();
        let (from_ns, to_ns) = (now.wall_ns, now.wall_ns);
        self.loss = Some(Loss { reason, first: seq.0, last: seq.0, from_ns, to_ns });
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
