//! What is read otherwise than from one file: by a system call, or by a walk of its own.

use super::cgroups::{self, Groups};
use super::exits::{self, Exits};
use super::latency::{self, Latency};
use super::mountstats::{self, Mountstats};
use super::processes::{self, Processes};
use super::sheet::{Entry, Outcome, Repair, Sheet, Vanish};
use super::sockets::{self, Sockets};
use super::tasks::{self, Tasks};
use super::textfile::{self, Textfiles};
use super::units::{self, Units};
use super::{COUNTER, GAUGE, column};
use crate::adjust::adjustment;
use crate::config::SMALL;
use strobe_wire::schema::{Column, Kind};

/// A source with a state of its own.
#[derive(Debug)]
pub(crate) struct Engine {
    call: Call,
    pub(crate) sheet: Sheet,
}

/// What an engine asks.
#[derive(Debug)]
pub(crate) enum Call {
    /// adjtimex(2).
    Timex,
    /// sock_diag(7).
    Sockets(Sockets),
    /// The files of a directory.
    Textfiles(Textfiles),
    /// Every /proc/PID/stat.
    Processes(Processes),
    /// The kernel's records of processes that ended.
    Exits(Box<Exits>),
    /// /proc/diskstats, as histograms.
    Latency(Box<Latency>),
    /// The busiest and largest processes.
    Tasks(Box<Tasks>),
    /// The tree of control groups.
    Groups(Box<Groups>),
    /// NFS mounts.
    Mountstats(Box<Mountstats>),
    /// systemd's units.
    Units(Box<Units>),
}

impl Engine {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, sheet: Sheet::new(Vanish::Go) }
    }

    /// Asks; whether its columns are others.
    pub(crate) fn read(&mut self, now_ns: u64) -> bool {
        let Self { call, sheet } = self;
        match call {
            Call::Timex => {
                let values = timex();
                fill(sheet, |sheet| {
                    if let Some(values) = &values {
                        sheet.put(0, b"", values, Repair::None);
                    }
                })
            }
            Call::Sockets(sockets) => {
                sockets.ask();
                fill(sheet, |sheet| sockets.put(sheet))
            }
            Call::Textfiles(files) => {
                files.load();
                fill(sheet, |sheet| files.put(sheet))
            }
            Call::Processes(processes) => {
                processes.walk();
                fill(sheet, |sheet| processes.put(sheet))
            }
            // The small build has no such collectors, nor their code.
            Call::Exits(_)
            | Call::Latency(_)
            | Call::Tasks(_)
            | Call::Groups(_)
            | Call::Mountstats(_)
            | Call::Units(_)
                if SMALL =>
            {
                false
            }
            Call::Exits(exits) => {
                exits.read();
                fill(sheet, |sheet| exits.put(sheet))
            }
            Call::Latency(latency) => {
                latency.read();
                fill(sheet, |sheet| latency.put(sheet))
            }
            Call::Tasks(tasks) => {
                tasks.read(now_ns);
                fill(sheet, |sheet| tasks.put(sheet))
            }
            Call::Groups(groups) => {
                groups.read(now_ns);
                fill(sheet, |sheet| groups.put(sheet))
            }
            Call::Mountstats(mounts) => {
                mounts.read();
                fill(sheet, |sheet| mounts.put(sheet))
            }
            Call::Units(units) => {
                units.read();
                fill(sheet, |sheet| units.put(sheet))
            }
        }
    }

    pub(crate) fn columns(&self, entry: &Entry) -> Vec<Column> {
        match self.call {
            Call::Timex => timex_columns(),
            Call::Sockets(_) => sockets::columns(entry.shape, &entry.key),
            Call::Textfiles(_) => textfile::columns(entry.shape, &entry.key),
            Call::Processes(_) => {
                processes::columns(entry.shape, &String::from_utf8_lossy(&entry.key))
            }
            Call::Exits(_)
            | Call::Latency(_)
            | Call::Tasks(_)
            | Call::Groups(_)
            | Call::Mountstats(_)
            | Call::Units(_)
                if SMALL =>
            {
                Vec::new()
            }
            Call::Exits(_) => exits::columns(),
            Call::Latency(_) => latency::columns(entry.shape, &entry.key),
            Call::Tasks(_) => tasks::columns(entry.shape, &entry.key),
            Call::Groups(_) => cgroups::columns(entry.shape, &entry.key),
            Call::Mountstats(_) => mountstats::columns(entry.shape, &entry.key),
            Call::Units(_) => units::columns(entry.shape, &entry.key),
        }
    }
}

/// Puts what was found, twice if there is something to learn; whether there was.
fn fill(sheet: &mut Sheet, mut put: impl FnMut(&mut Sheet)) -> bool {
    sheet.begin();
    put(sheet);
    let changed = sheet.end() == Outcome::Changed;
    if changed {
        sheet.learn();
        put(sheet);
        sheet.learned();
    }
    changed
}

/// The values of [`timex_columns`].
fn timex() -> Option<[Option<u64>; TIMEX.len()]> {
    let (state, time) = adjustment()?;
    let nanoseconds = time.status & libc::STA_NANO != 0;
    let fine = |value: i64| if nanoseconds { Some(value) } else { value.checked_mul(1000) };
    // 2^-16 ppm are 15.26 · 10^-12, below what a decimal of nine digits holds: an f64.
    let ratio = |value: i64| exact(value) / (1_000_000.0 * 65_536.0);
    let level = |value: i64| Some(value.cast_unsigned());
    Some([
        level(i64::from(state != libc::TIME_ERROR)),
        fine(time.offset).map(i64::cast_unsigned),
        Some((1.0 + ratio(time.freq)).to_bits()),
        level(time.maxerror),
        level(time.esterror),
        level(i64::from(time.status)),
        level(time.constant),
        level(time.tick),
        Some(ratio(time.ppsfreq).to_bits()),
        fine(time.jitter).map(i64::cast_unsigned),
        level(i64::from(time.shift)),
        Some(ratio(time.stabil).to_bits()),
        level(time.jitcnt),
        level(time.calcnt),
        level(time.errcnt),
        level(time.stbcnt),
        level(i64::from(time.tai)),
    ])
}

fn timex_columns() -> Vec<Column> {
    TIMEX.map(|(name, kind)| column(name, &[], kind)).into()
}

#[expect(clippy::cast_precision_loss, reason = "the kernel bounds frequencies to 500 ppm")]
fn exact(value: i64) -> f64 {
    value as f64
}

const NANOSECONDS: Kind = Kind::Gauge { scale: 9 };
const MICROSECONDS: Kind = Kind::Gauge { scale: 6 };
const TIMEX: [(&str, Kind); 17] = [
    ("node_timex_sync_status", GAUGE),
    ("node_timex_offset_seconds", NANOSECONDS),
    ("node_timex_frequency_adjustment_ratio", Kind::Float),
    ("node_timex_maxerror_seconds", MICROSECONDS),
    ("node_timex_estimated_error_seconds", MICROSECONDS),
    ("node_timex_status", GAUGE),
    ("node_timex_loop_time_constant", GAUGE),
    ("node_timex_tick_seconds", MICROSECONDS),
    ("node_timex_pps_frequency_hertz", Kind::Float),
    ("node_timex_pps_jitter_seconds", NANOSECONDS),
    ("node_timex_pps_shift_seconds", GAUGE),
    ("node_timex_pps_stability_hertz", Kind::Float),
    ("node_timex_pps_jitter_total", COUNTER),
    ("node_timex_pps_calibration_total", COUNTER),
    ("node_timex_pps_error_total", COUNTER),
    ("node_timex_pps_stability_exceeded_total", COUNTER),
    ("node_timex_tai_offset_seconds", GAUGE),
];
