//! A host's row of the fleet table, worked out of its sections' rows.
//!
//! A [`Plan`] says once a schema which columns matter and how; [`Plan::reduce`] turns a row and the
//! row before it into [`Parts`], which add up over a host's sections (`cpu`, `cpu.1`, …).

#![deny(clippy::indexing_slicing)]

use strobe_wire::frame::RowView;
use strobe_wire::schema::{Column, Schema};

/// The columns of one schema that the fleet table needs.
#[derive(Debug, Default)]
pub struct Plan {
    uses: Vec<(usize, Use)>,
}

/// The planned columns' values of the row before, in the plan's order.
#[derive(Debug, Default, Clone)]
pub struct Previous(Vec<Option<f64>>);

/// What one section (or, added up, one host) says.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Parts {
    /// Seconds per second, over all cores, in which the CPU was idle or waited for a disk.
    pub cpu_idle: Option<f64>,
    /// Seconds per second of all modes.
    pub cpu_all: Option<f64>,
    /// CPUs counted by their idle column.
    pub cpus: u32,
    /// Busy share of the busiest disk.
    pub disk_busy: Option<f64>,
    /// Bytes a second received, without `lo`.
    pub rx: Option<f64>,
    /// Bytes a second sent, without `lo`.
    pub tx: Option<f64>,
    /// Share of time in which something waited for a CPU.
    pub pressure_cpu: Option<f64>,
    /// … for memory.
    pub pressure_memory: Option<f64>,
    /// … for a disk.
    pub pressure_io: Option<f64>,
    /// Load of one minute.
    pub load1: Option<f64>,
    /// Bytes.
    pub memory_total: Option<f64>,
    /// Bytes.
    pub memory_available: Option<f64>,
    /// Bytes.
    pub swap_total: Option<f64>,
    /// Bytes.
    pub swap_free: Option<f64>,
    /// Share used of the fullest filesystem.
    pub filesystem: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    CpuIdle,
    /// `iowait`: idle too, but not a core's count.
    CpuWait,
    CpuBusy,
    DiskBusy,
    Rx,
    Tx,
    PressureCpu,
    PressureMemory,
    PressureIo,
    Load1,
    MemoryTotal,
    MemoryAvailable,
    SwapTotal,
    SwapFree,
    /// With the places of the same file system's free bytes and of those an ordinary user may have.
    FilesystemSize {
        free: usize,
        avail: usize,
    },
}

impl Plan {
    /// Finds the columns that matter.
    #[must_use]
    pub fn of(schema: &Schema) -> Self {
        let uses = schema
            .columns
            .iter()
            .enumerate()
            .filter_map(|(place, column)| Some((place, role(column, schema)?)))
            .collect();
        Self { uses }
    }

    /// What `row` says, given the row before it and the time between them.
    #[must_use]
    pub fn reduce(
        &self,
        row: RowView<'_>,
        schema: &Schema,
        before: Option<(&Previous, u64)>,
    ) -> (Previous, Parts) {
        let value = |place: usize| {
            let raw = row.value(place)?;
            let value = schema.columns.get(place)?.kind.value(raw);
            value.is_finite().then_some(value)
        };
        let mut parts = Parts::default();
        let mut now = Vec::with_capacity(self.uses.len());
        for (index, (place, role)) in self.uses.iter().enumerate() {
            let current = value(*place);
            now.push(current);
            let rate = before.and_then(|(previous, elapsed_ns)| {
                let last = previous.0.get(index).copied().flatten()?;
                // A counter that steps back was reset (or is idle, which may): no rate this once.
                rate(current? - last, elapsed_ns)
            });
            if let Use::FilesystemSize { free, avail } = role {
                most(&mut parts.filesystem, full(current, value(*free), value(*avail)));
            }
            parts.take(*role, current, rate);
        }
        (Previous(now), parts)
    }
}

impl Parts {
    fn take(&mut self, role: Use, value: Option<f64>, rate: Option<f64>) {
        match role {
            Use::CpuIdle => {
                self.cpus += u32::from(value.is_some());
                sum(&mut self.cpu_idle, rate);
                sum(&mut self.cpu_all, rate);
            }
            Use::CpuWait => {
                sum(&mut self.cpu_idle, rate);
                sum(&mut self.cpu_all, rate);
            }
            Use::CpuBusy => sum(&mut self.cpu_all, rate),
            Use::DiskBusy => most(&mut self.disk_busy, rate.map(share)),
            Use::Rx => sum(&mut self.rx, rate),
            Use::Tx => sum(&mut self.tx, rate),
            Use::PressureCpu => self.pressure_cpu = rate.map(share),
            Use::PressureMemory => self.pressure_memory = rate.map(share),
            Use::PressureIo => self.pressure_io = rate.map(share),
            Use::Load1 => self.load1 = value,
            Use::MemoryTotal => self.memory_total = value,
            Use::MemoryAvailable => self.memory_available = value,
            Use::SwapTotal => self.swap_total = value,
            Use::SwapFree => self.swap_free = value,
            Use::FilesystemSize { .. } => {}
        }
    }

    /// Adds another section's.
    pub fn add(&mut self, other: &Self) {
        self.cpus = self.cpus.saturating_add(other.cpus);
        sum(&mut self.cpu_idle, other.cpu_idle);
        sum(&mut self.cpu_all, other.cpu_all);
        sum(&mut self.rx, other.rx);
        sum(&mut self.tx, other.tx);
        most(&mut self.disk_busy, other.disk_busy);
        most(&mut self.filesystem, other.filesystem);
        self.fill(other);
    }

    /// These, with `before`'s where something is missing.
    #[must_use]
    pub fn or(mut self, before: &Self) -> Self {
        self.cpu_idle = self.cpu_idle.or(before.cpu_idle);
        self.cpu_all = self.cpu_all.or(before.cpu_all);
        self.rx = self.rx.or(before.rx);
        self.tx = self.tx.or(before.tx);
        self.disk_busy = self.disk_busy.or(before.disk_busy);
        self.filesystem = self.filesystem.or(before.filesystem);
        self.fill(before);
        self
    }

    fn fill(&mut self, other: &Self) {
        self.pressure_cpu = self.pressure_cpu.or(other.pressure_cpu);
        self.pressure_memory = self.pressure_memory.or(other.pressure_memory);
        self.pressure_io = self.pressure_io.or(other.pressure_io);
        self.load1 = self.load1.or(other.load1);
        self.memory_total = self.memory_total.or(other.memory_total);
        self.memory_available = self.memory_available.or(other.memory_available);
        self.swap_total = self.swap_total.or(other.swap_total);
        self.swap_free = self.swap_free.or(other.swap_free);
    }

    /// Busy share of all CPUs.
    #[must_use]
    pub fn cpu(&self) -> Option<f64> {
        let (idle, all) = (self.cpu_idle?, self.cpu_all?);
        (0.0 < all).then(|| share(1.0 - idle / all))
    }

    /// CPUs, if any was counted.
    #[must_use]
    pub fn cores(&self) -> Option<u32> {
        (0 < self.cpus).then_some(self.cpus)
    }

    /// The share of `total` that is not `free`; nothing of nothing is no share.
    #[must_use]
    pub fn used(total: Option<f64>, free: Option<f64>) -> Option<f64> {
        let (total, free) = (total?, free?);
        (0.0 < total).then(|| share(1.0 - free / total))
    }
}

fn role(column: &Column, schema: &Schema) -> Option<Use> {
    let device = column.labels.value("device");
    Some(match column.name.as_str() {
        "node_cpu_seconds_total" => match column.labels.value("mode")? {
            "idle" => Use::CpuIdle,
            "iowait" => Use::CpuWait,
            _ => Use::CpuBusy,
        },
        "node_disk_io_time_seconds_total" => Use::DiskBusy,
        "node_network_receive_bytes_total" if device != Some("lo") => Use::Rx,
        "node_network_transmit_bytes_total" if device != Some("lo") => Use::Tx,
        "node_pressure_cpu_waiting_seconds_total" => Use::PressureCpu,
        "node_pressure_memory_waiting_seconds_total" => Use::PressureMemory,
        "node_pressure_io_waiting_seconds_total" => Use::PressureIo,
        "node_load1" => Use::Load1,
        "node_memory_MemTotal_bytes" => Use::MemoryTotal,
        "node_memory_MemAvailable_bytes" => Use::MemoryAvailable,
        "node_memory_SwapTotal_bytes" => Use::SwapTotal,
        "node_memory_SwapFree_bytes" => Use::SwapFree,
        "node_filesystem_size_bytes" => {
            let same = |name: &str| {
                let is = |other: &Column| other.name == name && other.labels == column.labels;
                schema.columns.iter().position(is)
            };
            let avail = same("node_filesystem_avail_bytes")?;
            Use::FilesystemSize { free: same("node_filesystem_free_bytes").unwrap_or(avail), avail }
        }
        _ => return None,
    })
}

/// Per second; none where time or the counter does not go forward.
fn rate(difference: f64, elapsed_ns: u64) -> Option<f64> {
    let elapsed_s = std::time::Duration::from_nanos(elapsed_ns).as_secs_f64();
    (0.0 < elapsed_s && 0.0 <= difference).then(|| difference / elapsed_s)
}

/// How full an ordinary user finds a file system, as df tells it: of what is used and what may
/// still be used. What is kept back for root is neither.
fn full(size: Option<f64>, free: Option<f64>, avail: Option<f64>) -> Option<f64> {
    let (used, avail) = (size? - free?, avail?);
    (0.0 < used + avail).then(|| share(used / (used + avail)))
}

fn share(value: f64) -> f64 {
    value.clamp(0.0, 1.0)
}

fn sum(total: &mut Option<f64>, more: Option<f64>) {
    if let Some(more) = more {
        *total = Some(total.unwrap_or(0.0) + more);
    }
}

fn most(largest: &mut Option<f64>, other: Option<f64>) {
    if let Some(other) = other {
        *largest = Some(largest.map_or(other, |largest| largest.max(other)));
    }
}

#[cfg(test)]
mod tests {
    use super::full;

    /// Blocks as statfs told them of an ext4 of which df said 61 % (it rounds up).
    #[test]
    fn a_file_system_is_as_full_as_df_says() {
        let of = |free| full(Some(66_053_021.0), free, Some(9_501_914.0));
        let share = of(Some(51_733_463.0)).unwrap();
        assert!((share - 0.6011).abs() < 1e-4, "{share}");
        // Without free bytes: what may not be used is used.
        let share = of(Some(9_501_914.0)).unwrap();
        assert!((share - 0.8561).abs() < 1e-4, "{share}");
        assert_eq!(of(None), None);
        assert_eq!(full(Some(0.0), Some(0.0), Some(0.0)), None);
    }
}
