//! The ring against a plain queue, and under threads.

use super::*;
use hugepage_config::Want;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::thread;

fn ring(slots: usize) -> Ring {
    Ring::new(slots, Region::map(slots * FRAME_BYTES_MAX, Want::Plain).unwrap()).unwrap()
}

fn put(writer: &mut Writer, text: &[u8]) -> Option<Ticket> {
    let mut claim = writer.claim()?;
    claim[..text.len()].copy_from_slice(text);
    Some(claim.publish(text.len()))
}

#[test]
fn frames_come_out_in_order_and_stay_until_released() {
    let Ring { mut writer, mut reader } = ring(2);
    let first = put(&mut writer, b"one").unwrap();
    put(&mut writer, b"two").unwrap();
    assert!(put(&mut writer, b"three").is_none());
    assert_eq!((writer.refused(), writer.occupied()), (1, 2));
    assert_eq!(reader.next().as_deref(), Some(&b"one"[..]));
    assert_eq!(reader.next().as_deref(), Some(&b"two"[..]));
    assert!(reader.next().is_none());
    assert!(put(&mut writer, b"three").is_none(), "read is not released");
    reader.release(first);
    assert_eq!(reader.unreleased(), 1);
    assert!(put(&mut writer, b"three").is_some());
    assert_eq!(reader.next().as_deref(), Some(&b"three"[..]));
}

#[test]
fn an_abandoned_slot_is_stepped_over_and_freed() {
    let Ring { mut writer, mut reader } = ring(2);
    for _ in 0..10 {
        drop(writer.claim().unwrap());
        assert!(reader.next().is_none());
    }
    let kept = put(&mut writer, b"kept").unwrap();
    drop(writer.claim().unwrap());
    assert_eq!(reader.next().unwrap().ticket(), kept);
    assert!(reader.next().is_none());
    assert_eq!(writer.occupied(), 2, "the abandoned one waits behind the unreleased one");
    reader.release(kept);
    assert_eq!(writer.occupied(), 0);
}

#[test]
fn a_slot_in_the_making_holds_back_those_behind_it() {
    let Ring { mut writer, mut reader } = ring(4);
    let mut other = writer.clone();
    let mut slow = writer.claim().unwrap();
    put(&mut other, b"fast").unwrap();
    assert!(reader.next().is_none());
    slow[0] = b's';
    slow.publish(1);
    assert_eq!(reader.next().as_deref(), Some(&b"s"[..]));
    assert_eq!(reader.next().as_deref(), Some(&b"fast"[..]));
}

#[test]
fn bytes_keep_their_slot_from_being_written_after_its_release() {
    let Ring { mut writer, mut reader } = ring(1);
    let ticket = put(&mut writer, b"sent").unwrap();
    let bytes = reader.next().unwrap().bytes();
    let tail = bytes.slice(2..);
    reader.release(ticket);
    drop(bytes);
    reader.settle();
    assert!(writer.claim().is_none(), "a part of the bytes is still there");
    assert_eq!(&tail[..], b"nt");
    drop(tail);
    reader.settle();
    assert!(put(&mut writer, b"next").is_some());
}

#[test]
fn bytes_outlive_the_ring() {
    let Ring { mut writer, mut reader } = ring(1);
    put(&mut writer, b"still here").unwrap();
    let bytes = reader.next().unwrap().bytes();
    drop((writer, reader));
    assert_eq!(&bytes[..], b"still here");
}

#[test]
fn rewinding_sends_again_what_was_not_released() {
    let Ring { mut writer, mut reader } = ring(4);
    let tickets: Vec<Ticket> =
        [b"a", b"b", b"c"].iter().map(|text| put(&mut writer, *text).unwrap()).collect();
    let held = reader.next().unwrap().bytes();
    assert!(reader.next().is_some());
    reader.release(tickets[0]);
    reader.rewind();
    assert_eq!(reader.next().as_deref(), Some(&b"b"[..]));
    assert_eq!(reader.next().as_deref(), Some(&b"c"[..]));
    // An acknowledgement of the old connection that overtakes the rewound reader moves it on.
    reader.rewind();
    reader.release(tickets[2]);
    assert!(reader.next().is_none());
    assert_eq!(writer.occupied(), 3, "`a` is held, so all three are occupied");
    drop(held);
    reader.settle();
    assert_eq!(writer.occupied(), 0);
}

#[test]
fn an_acknowledgement_of_the_future_frees_nothing_unread() {
    let Ring { mut writer, mut reader } = ring(2);
    put(&mut writer, b"unread").unwrap();
    reader.release(Ticket(u64::MAX));
    assert_eq!(reader.next().as_deref(), Some(&b"unread"[..]));
}

#[test]
fn the_reader_sees_that_somebody_wrote() {
    let Ring { mut writer, mut reader } = ring(2);
    assert_eq!(reader.claimed(), 0);
    put(&mut writer, b"a").unwrap();
    assert_eq!(reader.claimed(), 1);
    let ticket = reader.next().unwrap().ticket();
    reader.release(ticket);
    assert_eq!(reader.claimed(), 1, "reading and releasing is not writing");
    drop(writer.claim());
    assert_eq!(reader.claimed(), 2);
}

#[test]
fn rings_that_cannot_be_are_refused_with_the_reason() {
    let region = || Region::map(4 * FRAME_BYTES_MAX, Want::Plain).unwrap();
    assert!(matches!(Ring::new(3, region()), Err(RingError::Slots(3))));
    assert!(matches!(Ring::new(0, region()), Err(RingError::Slots(0))));
    assert!(matches!(Ring::new(8, region()), Err(RingError::Region { slots: 8, .. })));
}

/// What a test does to the ring; the model beside it says what must come of it.
#[derive(Clone, Debug)]
enum Op {
    Put(u8, usize),
    Abandon,
    Read,
    Hold,
    DropHold(usize),
    Release(usize),
    Rewind,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any::<u8>(), 1..=FRAME_BYTES_MAX).prop_map(|(fill, length)| Op::Put(fill, length)),
        1 => Just(Op::Abandon),
        3 => Just(Op::Read),
        2 => Just(Op::Hold),
        2 => any::<usize>().prop_map(Op::DropHold),
        2 => any::<usize>().prop_map(Op::Release),
        1 => Just(Op::Rewind),
    ]
}

/// The ring as a queue of (ticket, frame or abandoned), with what was read and released.
#[derive(Default)]
struct Model {
    queue: VecDeque<(u64, Option<(u8, usize)>)>,
    tail: u64,
    next: u64,
    seen: u64,
    acked: u64,
    held: Vec<(u64, Bytes, (u8, usize))>,
}

impl Model {
    fn settle(&mut self) {
        while let Some((ticket, frame)) = self.queue.front().copied() {
            let released = ticket < self.acked && self.held.iter().all(|held| held.0 != ticket);
            let skipped = self.acked == ticket && ticket < self.seen && frame.is_none();
            if !released && !skipped {
                break;
            }
            self.acked = self.acked.max(ticket + 1);
            self.queue.pop_front();
        }
        self.next = self.next.max(self.acked);
    }

    fn read(&mut self) -> Option<(u64, (u8, usize))> {
        loop {
            self.settle();
            let (ticket, frame) =
                self.queue.iter().find(|(ticket, _)| *ticket == self.next).copied()?;
            self.next += 1;
            self.seen = self.seen.max(self.next);
            if let Some(frame) = frame {
                return Some((ticket, frame));
            }
        }
    }
}

fn apply(model: &mut Model, ring: &mut Ring, slots: usize, op: &Op) {
    match *op {
        Op::Put(fill, length) => {
            let claim = ring.writer.claim();
            assert_eq!(claim.is_some(), model.queue.len() < slots, "room");
            if let Some(mut claim) = claim {
                claim[..length].fill(fill);
                claim.publish(length);
                model.queue.push_back((model.tail, Some((fill, length))));
                model.tail += 1;
            }
        }
        Op::Abandon => {
            if let Some(mut claim) = ring.writer.claim() {
                claim[0] ^= 0xff;
                drop(claim);
                model.queue.push_back((model.tail, None));
                model.tail += 1;
            }
        }
        Op::Read | Op::Hold => {
            let wanted = model.read();
            let slot = ring.reader.next();
            let found = slot.as_ref().map(|slot| (slot.ticket, (slot[0], slot.len())));
            assert_eq!(found, wanted);
            if let (Op::Hold, Some(slot), Some((ticket, frame))) = (op, slot, wanted) {
                model.held.push((ticket, slot.bytes(), frame));
            }
        }
        Op::DropHold(which) => {
            if !model.held.is_empty() {
                model.held.swap_remove(which % model.held.len());
            }
            ring.reader.settle();
            model.settle();
        }
        Op::Release(which) => {
            let through = model.acked + u64::try_from(which % (slots + 1)).unwrap();
            ring.reader.release(Ticket(through));
            model.acked = model.acked.max((through + 1).min(model.seen));
            model.settle();
        }
        Op::Rewind => {
            ring.reader.rewind();
            model.next = model.acked;
        }
    }
    for (_, bytes, (fill, length)) in &model.held {
        assert_eq!(bytes.len(), *length);
        assert!(bytes.iter().all(|byte| byte == fill), "held bytes changed");
    }
}

proptest! {
    #[test]
    fn any_history_agrees_with_a_queue(
        slots in prop_oneof![Just(1usize), Just(2), Just(4), Just(8)],
        ops in vec(op(), 1..200),
    ) {
        let mut ring = ring(slots);
        let mut model = Model::default();
        for op in &ops {
            apply(&mut model, &mut ring, slots, op);
        }
        drop(ring);
        for (_, bytes, (fill, _)) in &model.held {
            prop_assert!(bytes.iter().all(|byte| byte == fill));
        }
    }
}

/// Two writers and a reader that hands every third frame to a holder thread: each writer's
/// frames arrive whole, once and in order, and no held frame is ever seen to change.
#[test]
fn two_writers_a_reader_and_a_holder_agree() {
    const FRAMES: u64 = 20_000;
    let Ring { writer, mut reader } = ring(16);
    let (hand, held) = std::sync::mpsc::sync_channel::<(Bytes, u8)>(4);
    let holder = thread::spawn(move || {
        for (bytes, fill) in held {
            assert!(bytes[9..].iter().all(|byte| *byte == fill));
            thread::yield_now();
            assert!(bytes[9..].iter().all(|byte| *byte == fill), "a held frame changed");
        }
    });
    let writers: Vec<_> = [0u8, 1]
        .map(|me| {
            let mut writer = writer.clone();
            thread::spawn(move || {
                for number in 0..FRAMES {
                    let mut claim = loop {
                        match writer.claim() {
                            Some(claim) => break claim,
                            None => thread::yield_now(),
                        }
                    };
                    let length = 9 + usize::try_from(number % 500).unwrap();
                    claim[..8].copy_from_slice(&number.to_le_bytes());
                    claim[8] = me;
                    claim[9..length].fill(number.to_le_bytes()[0] ^ me);
                    if number % 7 == 3 {
                        continue; // Abandoned.
                    }
                    claim.publish(length);
                }
            })
        })
        .into();
    let published = FRAMES - (FRAMES + 3) / 7;
    let mut seen = [Vec::new(), Vec::new()];
    while seen.iter().map(Vec::len).sum::<usize>() < usize::try_from(published * 2).unwrap() {
        let Some(slot) = reader.next() else {
            thread::yield_now();
            continue;
        };
        let number = u64::from_le_bytes(slot[..8].try_into().unwrap());
        let me = slot[8];
        let fill = number.to_le_bytes()[0] ^ me;
        assert!(slot[9..].iter().all(|byte| *byte == fill), "frame {number} of {me} is torn");
        if number % 3 == 0 {
            hand.send((slot.bytes(), fill)).unwrap();
        }
        let ticket = slot.ticket();
        seen[usize::from(me)].push(number);
        reader.release(ticket);
    }
    drop(hand);
    holder.join().unwrap();
    for writer in writers {
        writer.join().unwrap();
    }
    let wanted: Vec<u64> = (0..FRAMES).filter(|number| number % 7 != 3).collect();
    assert_eq!(seen, [wanted.clone(), wanted]);
}
