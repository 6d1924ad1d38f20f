//! Type and help of the host metrics: what `/api/v1/metadata` knows.

use super::json::Body;
use super::{ApiError, Form};

/// Metric, type, help.
const KNOWN: [(&str, &str, &str); 58] = [
    ("node_boot_time_seconds", "gauge", "Unix time at which the host started."),
    ("node_context_switches_total", "counter", "Context switches of all CPUs."),
    ("node_cpu_guest_seconds_total", "counter", "Seconds the CPUs ran guests, by mode."),
    ("node_cpu_seconds_total", "counter", "Seconds the CPUs spent in each mode."),
    ("node_disk_io_now", "gauge", "Requests in progress."),
    ("node_disk_io_time_seconds_total", "counter", "Seconds with a request in progress."),
    ("node_disk_io_time_weighted_seconds_total", "counter", "Seconds of all requests together."),
    ("node_disk_read_bytes_total", "counter", "Bytes read."),
    ("node_disk_read_time_seconds_total", "counter", "Seconds of all reads together."),
    ("node_disk_reads_completed_total", "counter", "Reads completed."),
    ("node_disk_reads_merged_total", "counter", "Reads merged."),
    ("node_disk_write_time_seconds_total", "counter", "Seconds of all writes together."),
    ("node_disk_writes_completed_total", "counter", "Writes completed."),
    ("node_disk_writes_merged_total", "counter", "Writes merged."),
    ("node_disk_written_bytes_total", "counter", "Bytes written."),
    ("node_filefd_allocated", "gauge", "Open file descriptions."),
    ("node_filefd_maximum", "gauge", "Most open file descriptions there may be."),
    ("node_filesystem_avail_bytes", "gauge", "Bytes free to users other than root."),
    ("node_filesystem_device_error", "gauge", "Whether reading the file system failed."),
    ("node_filesystem_files", "gauge", "Inodes."),
    ("node_filesystem_files_free", "gauge", "Inodes free."),
    ("node_filesystem_free_bytes", "gauge", "Bytes free."),
    ("node_filesystem_readonly", "gauge", "Whether the file system is mounted read-only."),
    ("node_filesystem_size_bytes", "gauge", "Bytes of the file system."),
    ("node_forks_total", "counter", "Processes made."),
    ("node_intr_total", "counter", "Interrupts served."),
    ("node_load1", "gauge", "Load average of 1 minute."),
    ("node_load15", "gauge", "Load average of 15 minutes."),
    ("node_load5", "gauge", "Load average of 5 minutes."),
    ("node_memory_Buffers_bytes", "gauge", "Bytes of block device buffers."),
    ("node_memory_Cached_bytes", "gauge", "Bytes of the page cache."),
    ("node_memory_MemAvailable_bytes", "gauge", "Bytes that new programs can have."),
    ("node_memory_MemFree_bytes", "gauge", "Bytes not used at all."),
    ("node_memory_MemTotal_bytes", "gauge", "Bytes of memory."),
    ("node_memory_SwapFree_bytes", "gauge", "Bytes of swap not used."),
    ("node_memory_SwapTotal_bytes", "gauge", "Bytes of swap."),
    ("node_network_receive_bytes_total", "counter", "Bytes received."),
    ("node_network_receive_drop_total", "counter", "Received packets that were dropped."),
    ("node_network_receive_errs_total", "counter", "Errors in receiving."),
    ("node_network_receive_packets_total", "counter", "Packets received."),
    ("node_network_transmit_bytes_total", "counter", "Bytes sent."),
    ("node_network_transmit_drop_total", "counter", "Packets dropped instead of sent."),
    ("node_network_transmit_errs_total", "counter", "Errors in sending."),
    ("node_network_transmit_packets_total", "counter", "Packets sent."),
    ("node_pressure_cpu_waiting_seconds_total", "counter", "Seconds some task waited for a CPU."),
    ("node_pressure_io_stalled_seconds_total", "counter", "Seconds all tasks waited for I/O."),
    ("node_pressure_io_waiting_seconds_total", "counter", "Seconds some task waited for I/O."),
    (
        "node_pressure_memory_stalled_seconds_total",
        "counter",
        "Seconds all tasks waited for memory.",
    ),
    (
        "node_pressure_memory_waiting_seconds_total",
        "counter",
        "Seconds some task waited for memory.",
    ),
    ("node_procs_blocked", "gauge", "Tasks waiting for I/O."),
    ("node_procs_running", "gauge", "Tasks that could run."),
    ("node_sockstat_TCP_alloc", "gauge", "TCP sockets allocated."),
    ("node_sockstat_TCP_inuse", "gauge", "TCP sockets in use."),
    ("node_sockstat_sockets_used", "gauge", "Sockets in use."),
    ("node_time_seconds", "gauge", "The host's clock, Unix time."),
    ("node_uname_info", "gauge", "What uname says, as labels; always 1."),
    ("node_vmstat_pgfault", "unknown", "Page faults."),
    ("node_vmstat_pgmajfault", "unknown", "Page faults that needed I/O."),
];

pub(super) fn answer(form: &Form) -> Result<Body, ApiError> {
    let limit = form.optional("limit").map(str::parse::<usize>).transpose();
    let limit = limit.map_err(|_| ApiError::Bad("limit must be a number".to_owned()))?;
    let wanted = form.optional("metric");
    let known = KNOWN.iter().filter(|(name, ..)| wanted.is_none_or(|wanted| wanted == *name));
    let mut body = Body::success(usize::MAX);
    body.raw("{");
    for (index, (name, kind, help)) in known.take(limit.unwrap_or(usize::MAX)).enumerate() {
        if 0 < index {
            body.raw(",");
        }
        body.text(name);
        body.raw(":[");
        body.labels([("type", *kind), ("help", *help), ("unit", "")]);
        body.raw("]");
    }
    body.raw("}");
    Ok(body)
}
