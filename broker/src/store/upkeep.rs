//! The writer's housekeeping, a bounded piece a tick: sealing, rollups, retention, WAL release.

use super::StoreError;
use super::cover;
use super::head::SourceState;
use super::horizon::Horizon;
use super::local::{SEGMENTS, Writer};
use super::replay::sweep;
use super::rollup::{HOURS, Level, MINUTES, RollupJob, step_end};
use super::seal::SealJob;
use super::segment::{Segment, io};
use super::shared::Shared;
use std::sync::Arc;
use strobe_journal::disk;

/// What is under way, and when what is next.
#[derive(Debug)]
pub(super) struct Upkeep {
    seal: Option<SealJob>,
    rollup: Option<RollupJob>,
    /// Everything before this was sealed when its time came.
    sealed_ms: i64,
    /// Start of the next window of each level; `None` until there is a segment to start from.
    minutes_ms: Option<i64>,
    hours_ms: Option<i64>,
    /// WAL files whose rows are all in synced segments.
    sealed: Vec<u64>,
    /// The windows that the WAL files up to this one tell are kept elsewhere too.
    pub(super) kept: Option<u64>,
    /// Next look at retention and memory.
    look_ms: i64,
    /// Not before this after a failure.
    retry_ms: i64,
}

impl Upkeep {
    pub(super) fn new(shared: &Shared, now_ms: i64) -> Self {
        let next = |level: Level| {
            let segments = shared.segments();
            let last = segments.iter().filter(|s| s.step_ms == level.step_ms).map(|s| s.last_ms);
            // A rollup's last row stands at the end of its step.
            let next = last.max().map(|last| level.window(last) + level.window_ms);
            shared.set_rolled(level, next.unwrap_or(i64::MIN));
            next
        };
        Self {
            seal: None,
            rollup: None,
            sealed_ms: i64::MIN,
            minutes_ms: next(MINUTES),
            hours_ms: next(HOURS),
            sealed: Vec::new(),
            kept: None,
            look_ms: now_ms,
            retry_ms: i64::MIN,
        }
    }

    /// What changes as long as there is something left to do.
    pub(super) fn progress(&self) -> (bool, i64, Option<i64>, Option<i64>) {
        let busy = self.seal.is_some() || self.rollup.is_some();
        (busy, self.sealed_ms, self.minutes_ms, self.hours_ms)
    }
}

pub(super) fn tick(writer: &mut Writer, now_ms: i64) -> Result<(), StoreError> {
    if now_ms < writer.upkeep.retry_ms {
        return Ok(());
    }
    let sealed_ms = writer.upkeep.sealed_ms;
    let result = act(writer, now_ms);
    if result.is_err() {
        // Whatever was under way is begun again: its rows are in memory and in the WAL.
        writer.upkeep.seal = None;
        writer.upkeep.rollup = None;
        writer.upkeep.sealed_ms = sealed_ms.min(now_ms - SEAL_MS);
        writer.upkeep.retry_ms = now_ms + RETRY_MS;
        // Each try leaves a file of its own: a full disk would be filled with them to its last byte.
        if let Err(error) = sweep(&writer.shared.config().dir.join(SEGMENTS)) {
            log::warn!("an unfinished file stays until the next start: {error}");
        }
    }
    result
}

fn act(writer: &mut Writer, now_ms: i64) -> Result<(), StoreError> {
    if writer.upkeep.look_ms <= now_ms {
        writer.upkeep.look_ms = now_ms + LOOK_MS;
        retain(writer, now_ms)?;
        release(writer)?;
    }
    if writer.upkeep.seal.is_some() {
        return step_seal(writer);
    }
    let window = (now_ms - SEAL_DELAY_MS).div_euclid(SEAL_MS) * SEAL_MS;
    let head = writer.shared.count(|_| ()).head_bytes;
    let config = writer.shared.config();
    // A WAL that eats up the store's share is sealed away, rather than history for it.
    let wal_max = (config.bytes_max / WAL_SHARE).max(config.wal_file_bytes.saturating_mul(2));
    if config.head_bytes_max < usize::try_from(head).unwrap_or(usize::MAX)
        || wal_max < wal_unsealed(writer)
    {
        return start_seal(writer, i64::MAX);
    }
    if writer.upkeep.sealed_ms < window {
        writer.upkeep.sealed_ms = window;
        return start_seal(writer, window);
    }
    if writer.upkeep.rollup.is_some() {
        return step_rollup(writer);
    }
    start_rollup(writer, now_ms)
}

fn start_seal(writer: &mut Writer, cut_ms: i64) -> Result<(), StoreError> {
    // What is appended must be in memory before its WAL file is closed.
    writer.commit_now()?;
    let through = writer.rotate()?;
    let path = writer.shared.segment_path("raw")?;
    let job = SealJob::new(path, cut_ms, through, &writer.shared)?;
    writer.shared.spill.turn();
    writer.upkeep.seal = Some(job);
    step_seal(writer)
}

/// Bytes of the WAL that a seal would set free.
fn wal_unsealed(writer: &Writer) -> u64 {
    let sealed = |number: &u64| writer.upkeep.sealed.contains(number);
    let closed = writer.journal.closed().iter().filter(|(number, _)| !sealed(number));
    closed.map(|(_, bytes)| bytes).sum::<u64>() + writer.journal.active_bytes()
}

fn step_seal(writer: &mut Writer) -> Result<(), StoreError> {
    let Some(mut job) = writer.upkeep.seal.take() else { return Ok(()) };
    // A job that fails is dropped: its rows are in memory still and go into the next one.
    if !job.step(SOURCES_A_TICK, &writer.shared.spill)? {
        writer.upkeep.seal = Some(job);
        return Ok(());
    }
    let (cut_ms, through) = (job.cut_ms, job.wal_through());
    let (segment, done) = job.finish()?;
    if let Some(segment) = segment {
        writer.shared.add_segment(segment);
    }
    let blocks = u64::try_from(done.len()).unwrap_or(0);
    done.release();
    let dir = writer.shared.config().dir.join(SEGMENTS);
    // Whatever is in hours is not asked for again.
    cover::write(&writer.shared, &dir, writer.shared.rolled_ms(HOURS))?;
    writer.shared.count(|counts| counts.blocks_sealed += blocks);
    measure(&writer.shared);
    for &(number, _) in writer.journal.closed() {
        let last = writer.wal_last_ms.get(&number).copied();
        let sealed = number <= through && last.is_none_or(|last| last < cut_ms);
        if sealed && !writer.upkeep.sealed.contains(&number) {
            writer.upkeep.sealed.push(number);
        }
    }
    release(writer)
}

/// Removes the WAL files that nothing needs: their rows are sealed, and a restart would know their
/// numbers without them. With a window lost, what an agent sends again would be stored twice.
fn release(writer: &mut Writer) -> Result<(), StoreError> {
    let kept = writer.upkeep.kept;
    while let Some(at) = writer.upkeep.sealed.iter().position(|number| Some(*number) <= kept) {
        let number = writer.upkeep.sealed.swap_remove(at);
        if let Err(error) = writer.journal.remove(number) {
            writer.upkeep.sealed.push(number);
            return Err(error.into());
        }
        writer.wal_last_ms.remove(&number);
    }
    let wal_bytes = writer.journal.bytes();
    writer.shared.count(|counts| counts.wal_bytes = wal_bytes);
    Ok(())
}

fn start_rollup(writer: &mut Writer, now_ms: i64) -> Result<(), StoreError> {
    let segments = writer.shared.segments();
    let first = |step: u32, level: Level| {
        let of = segments.iter().filter(|segment| segment.step_ms == step);
        let first = of.map(|segment| segment.first_ms).min();
        first.map(|first| level.window(first))
    };
    let minutes = writer.upkeep.minutes_ms.or_else(|| first(0, MINUTES));
    let hours = writer.upkeep.hours_ms.or_else(|| first(MINUTES.step_ms, HOURS));
    // A sample at the very end of a window belongs to it, and lies behind a seal at this time.
    let sealed_ms = writer.upkeep.sealed_ms.min(now_ms).saturating_sub(1);
    let minutes_done = minutes.unwrap_or(i64::MIN);
    let horizon = writer.shared.horizon();
    for (level, start, done_ms, floor_ms) in [
        (MINUTES, minutes, sealed_ms, horizon.raw_ms),
        (HOURS, hours, minutes_done, horizon.minutes_ms),
    ] {
        let Some(start) = start else { continue };
        let end = start.saturating_add(level.window_ms);
        if done_ms < end {
            continue;
        }
        let kind = if level == MINUTES { "min" } else { "hour" };
        let path = writer.shared.segment_path(kind)?;
        let job = RollupJob::new(path, level, start, floor_ms, &writer.shared)?;
        writer.upkeep.rollup = Some(job);
        return step_rollup(writer);
    }
    Ok(())
}

fn step_rollup(writer: &mut Writer) -> Result<(), StoreError> {
    let Some(mut job) = writer.upkeep.rollup.take() else { return Ok(()) };
    if !job.step(SECTIONS_A_TICK)? {
        writer.upkeep.rollup = Some(job);
        return Ok(());
    }
    let next = job.start_ms + job.level.window_ms;
    let level = job.level;
    if let Some(segment) = job.finish()? {
        writer.shared.add_segment(segment);
    }
    if level == MINUTES {
        writer.upkeep.minutes_ms = Some(next);
    } else {
        writer.upkeep.hours_ms = Some(next);
    }
    writer.shared.set_rolled(level, next);
    Ok(())
}

/// What the levels are whole from when `segment` is gone. A level is left to the next one only
/// where that has it.
fn horizon_without(shared: &Shared, segment: &Segment) -> Horizon {
    let mut horizon = shared.horizon();
    let (floor, next, step) = match segment.step_ms {
        0 => (&mut horizon.raw_ms, MINUTES, MINUTES.step_ms),
        step if step == MINUTES.step_ms => (&mut horizon.minutes_ms, HOURS, HOURS.step_ms),
        _ => return horizon,
    };
    let gone_ms = step_end(segment.last_ms, i64::from(step)).min(shared.rolled_ms(next));
    if gone_ms != i64::MIN {
        *floor = (*floor).max(gone_ms + 1);
    }
    horizon
}

/// Removes segments by age, then the oldest by size, and forgets sections without samples.
fn retain(writer: &mut Writer, now_ms: i64) -> Result<(), StoreError> {
    let config = writer.shared.config();
    let keep_ms = |step: u32| match step {
        0 => config.raw_retention_ms,
        step if step == HOURS.step_ms => config.hour_retention_ms,
        _ => config.minute_retention_ms,
    };
    let segments = writer.shared.segments();
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    // A WAL that cannot be released, whatever the reason, does not take all of history with it.
    bytes = bytes.saturating_add(writer.journal.bytes().min(config.bytes_max / 2));
    let through = |level: Level| {
        let of = segments.iter().filter(|segment| segment.step_ms == level.step_ms);
        of.map(|segment| segment.through).max().unwrap_or(0)
    };
    let mut removed = false;
    for segment in segments.iter() {
        let expired = segment.last_ms < now_ms.saturating_sub(keep_ms(segment.step_ms));
        let over = config.bytes_max < bytes;
        let next = if segment.step_ms == 0 { MINUTES } else { HOURS };
        // A segment of late rows is newer than the rollup of their time: it waits for the next.
        let kept_on = segment.step_ms == HOURS.step_ms
            || segment.last_ms <= writer.shared.rolled_ms(next) && segment.number <= through(next);
        if !(over || expired && kept_on) {
            continue;
        }
        writer.shared.raise_horizon(horizon_without(&writer.shared, segment))?;
        writer.shared.remove_segment(&segment.path);
        disk::remove(&segment.path).map_err(io("remove", &segment.path))?;
        bytes = bytes.saturating_sub(segment.bytes);
        removed = true;
        writer.shared.count(|counts| {
            if expired {
                counts.segments_expired += 1;
            } else {
                counts.segments_capped += 1;
            }
        });
    }
    if removed {
        forget(&writer.shared, now_ms);
    }
    unload(&segments, LOADED_MAX, LOADED_BYTES_MAX);
    measure(&writer.shared);
    Ok(())
}

/// Closes files, the oldest first, beyond so many and so many bytes of their indexes: 10,000 hosts
/// have megabytes of it in each.
pub(super) fn unload(segments: &[Arc<Segment>], files_max: usize, bytes_max: usize) {
    let (mut files, mut bytes) = (0, 0);
    for segment in segments.iter().rev() {
        let Some(held) = segment.held() else { continue };
        files += 1;
        bytes += held;
        if files_max < files || bytes_max < bytes {
            segment.unload();
        }
    }
}

/// Forgets sections that end before everything that is stored, here or in Redis.
fn forget(shared: &Arc<Shared>, now_ms: i64) {
    let segments = shared.segments();
    // A rollup's row stands at the end of its step, behind the samples that are in it.
    let oldest = segments.iter().map(|segment| segment.first_ms - i64::from(segment.step_ms));
    let far = shared.archive.get().map(|archive| archive.oldest_ms(&shared.config(), now_ms));
    let oldest = oldest.chain(far).min();
    for source in shared.sources() {
        let mut state = source.write();
        let SourceState { sections, remote, .. } = &mut *state;
        sections.retain(|_, section| {
            0 < section.rows.len()
                || !section.young.is_empty()
                || oldest.is_some_and(|oldest| oldest <= section.span.1)
        });
        remote.keep_homes(sections);
    }
}

/// Counts the bytes of unsealed rows.
pub(super) fn measure(shared: &Shared) {
    let mut bytes = 0;
    for source in shared.sources() {
        let state = source.read();
        for section in state.sections.values() {
            bytes += section.rows.bytes();
            bytes += section.young.iter().map(|young| young.body.held()).sum::<usize>();
        }
        bytes += state.remote.bytes();
    }
    shared.count(|counts| counts.head_bytes = u64::try_from(bytes).unwrap_or(u64::MAX));
}

/// Blocks are of ten minutes, aligned to wall time.
const SEAL_MS: i64 = 600_000;
/// Rows may come this late and still be in their block.
const SEAL_DELAY_MS: i64 = 30_000;
/// The WAL may have this part of the size cap.
const WAL_SHARE: u64 = 4;
const LOOK_MS: i64 = 2_000;
const RETRY_MS: i64 = 10_000;
/// Sources sealed or rolled up in one tick: about 10 ms of work.
const SOURCES_A_TICK: usize = 8;
const SECTIONS_A_TICK: usize = 16;
/// Segments whose files and indexes stay open.
const LOADED_MAX: usize = 128;
/// Bytes of their indexes.
const LOADED_BYTES_MAX: usize = 32 << 20;
