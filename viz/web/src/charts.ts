// The charts of the host page: what each is made of and the one sentence that explains it.

import type { Unit } from "./format";
import type { Finish, Lines, Moment, Term } from "./terms";

export interface ChartSpec {
  id: string;
  title: string;
  explain: string;
  unit: Unit;
  /** Lines stand on one another; the top is their sum. */
  stacked?: boolean;
  /** The scale reaches at least this far, so that small numbers look small. */
  atLeast?: number;
  /** Many lines that share a scale of 0 to 1 become rows of colour, because a tangle tells nothing. */
  heat?: boolean;
  /** What goes out is drawn below zero. */
  mirrored?: boolean;
  /** Room kept for the legend, so that nothing moves when it fills; more than fits scrolls. */
  legendRows: 1 | 2 | 3;
  terms: Term[];
  finish: Finish;
  /** Said in place of the chart when the host has nothing of the kind. */
  none: string;
}

export interface Group {
  title: string;
  charts: ChartSpec[];
}

const NOT_DISK = "(ram|loop|fd|sr|zram)\\d+.*";
const NOT_LINK = "lo|veth.*|cali.*|docker_gwbridge";
const NOT_FS = "tmpfs|devtmpfs|overlay|squashfs|ramfs|proc|sysfs|cgroup2?|autofs|mqueue|nsfs|tracefs|debugfs|securityfs";

const rate = (key: string, metric: string, more: Partial<Term> = {}): Term => ({ key, metric, how: "rate", agg: "sum", ...more });
const value = (key: string, metric: string, more: Partial<Term> = {}): Term => ({ key, metric, how: "value", agg: "sum", ...more });

/** Each key under the name a person knows it by; what is absent stays absent. */
const named = (names: [key: string, name: string][]): Finish => (moment) => {
  const lines: Lines = new Map();
  for (const [key, name] of names) if (moment.has(key)) lines.set(name, moment.get(key)!);
  return lines;
};

/** The value part of every key `prefix|…`. */
const grouped = (moment: Moment, prefix: string): [string, number][] =>
  [...moment].filter(([key]) => key.startsWith(`${prefix}|`)).map(([key, v]) => [key.slice(prefix.length + 1), v]);

/** In above zero, out below: `<device> <in>` and `<device> <out>`. */
const mirrored = (into: string, out: string): Finish => (moment) => {
  const lines: Lines = new Map();
  for (const [device, v] of grouped(moment, "in").sort(byName)) {
    lines.set(`${device} ${into}`, v);
    const other = moment.get(`out|${device}`);
    lines.set(`${device} ${out}`, other === undefined ? null : -other);
  }
  return lines;
};

/** What goes in and out by device: a metric and a word for each way. */
const flow = (devices: Partial<Term>, into: [metric: string, word: string], out: [metric: string, word: string]) => ({
  legendRows: 2 as const, mirrored: true,
  terms: [rate("in", into[0], devices), rate("out", out[0], devices)], finish: mirrored(into[1], out[1]),
});

const byName = (a: [string, number], b: [string, number]) => a[0].localeCompare(b[0], "en", { numeric: true });

const MODES: [string, string][] = [
  ["system", "System"],
  ["user", "User"],
  ["nice", "Nice"],
  ["irq", "IRQ"],
  ["softirq", "Soft IRQ"],
  ["steal", "Stolen"],
  ["iowait", "I/O wait"],
];

const cores: Finish = (moment) => {
  const lines: Lines = new Map();
  for (const [cpu, busy] of grouped(moment, "busy").sort(byName)) lines.set(`Core ${cpu}`, Math.min(1, busy));
  return lines;
};

const memory: Finish = (moment) => {
  const total = moment.get("total");
  if (total === undefined) return new Map();
  const of = (key: string) => moment.get(key) ?? 0;
  const cache = of("cached") + of("slab") + of("buffers");
  return new Map([
    ["Used", Math.max(0, total - of("free") - cache)],
    ["Cache", cache],
    ["Free", of("free")],
  ]);
};

const swap: Finish = (moment) => {
  const total = moment.get("total");
  if (!total) return new Map();
  const free = moment.get("free") ?? 0;
  return new Map([["Used", total - free], ["Free", free]]);
};

const filesystems: Finish = (moment) => {
  const lines: Lines = new Map();
  for (const [mount, size] of grouped(moment, "size").sort(byName)) {
    const available = moment.get(`available|${mount}`);
    if (available === undefined) continue;
    const used = size - (moment.get(`free|${mount}`) ?? available);
    if (used + available > 0) lines.set(mount, used / (used + available));
  }
  return lines;
};

const NO_CPU = "This host reports no CPU times.";
const NO_DISK = "This host has no disks to report.";
const NO_LINK = "This host has no network interface besides loopback.";

const disk = { by: "device", where: { label: "device", not: true, pattern: NOT_DISK } };
const link = { by: "device", where: { label: "device", not: true, pattern: NOT_LINK } };
const mount = { by: "mountpoint", agg: "max" as const, where: { label: "fstype", not: true, pattern: NOT_FS } };

export const GROUPS: readonly Group[] = [
  {
    title: "Processor",
    charts: [
      {
        id: "cpu", legendRows: 3, title: "CPU by mode", unit: "percent", stacked: true, atLeast: 1, none: NO_CPU,
        explain: "Share of all cores’ time by what it was spent on; the empty part is idle.",
        terms: [rate("mode", "node_cpu_seconds_total", { agg: "avg", by: "mode" })], finish: named(MODES.map(([mode, name]) => [`mode|${mode}`, name])),
      },
      {
        id: "cores", legendRows: 3, title: "CPU per core", unit: "percent", heat: true, atLeast: 1, none: NO_CPU,
        explain: "How busy each core is; one core at the top while others rest is a single-threaded limit.",
        terms: [rate("busy", "node_cpu_seconds_total", { by: "cpu", where: { label: "mode", not: true, pattern: "idle|iowait" } })],
        finish: cores,
      },
      {
        id: "load", legendRows: 1, title: "Load", unit: "number", atLeast: 1, none: "This host reports no load.",
        explain: "Tasks running or waiting, averaged over 1, 5 and 15 minutes; compare it with the number of cores.",
        terms: [value("1", "node_load1"), value("5", "node_load5"), value("15", "node_load15")],
        finish: named([["1", "1 minute"], ["5", "5 minutes"], ["15", "15 minutes"]]),
      },
      {
        id: "pressure", legendRows: 1, title: "Pressure", unit: "percent", atLeast: 0.1, none: "This kernel does not report pressure (it needs Linux 4.20 with PSI on).",
        explain: "Share of time in which work stood still for want of CPU, memory or I/O; above a few per cent it is felt.",
        terms: [
          rate("cpu", "node_pressure_cpu_waiting_seconds_total"), rate("memory", "node_pressure_memory_waiting_seconds_total"),
          rate("io", "node_pressure_io_waiting_seconds_total"),
        ],
        finish: named([["cpu", "CPU"], ["memory", "Memory"], ["io", "I/O"]]),
      },
    ],
  },
  {
    title: "Memory",
    charts: [
      {
        id: "memory", legendRows: 1, title: "Memory", unit: "bytes", stacked: true, none: "This host reports no memory figures.",
        explain: "Where physical memory is; cache is given back when programs need it.",
        terms: [
          value("total", "node_memory_MemTotal_bytes"), value("free", "node_memory_MemFree_bytes"),
          value("buffers", "node_memory_Buffers_bytes"), value("cached", "node_memory_Cached_bytes"),
          value("slab", "node_memory_SReclaimable_bytes"),
        ],
        finish: memory,
      },
      {
        id: "swap", legendRows: 1, title: "Swap", unit: "bytes", stacked: true, none: "This host has no swap.",
        explain: "Memory moved to disk; it is growth, not the level, that slows a host down.",
        terms: [value("total", "node_memory_SwapTotal_bytes"), value("free", "node_memory_SwapFree_bytes")],
        finish: swap,
      },
    ],
  },
  {
    title: "Disk",
    charts: [
      {
        id: "disk-throughput", title: "Disk throughput", unit: "bytes/s", none: NO_DISK,
        explain: "Bytes read (above zero) and written (below) by each disk.",
        ...flow(disk, ["node_disk_read_bytes_total", "read"], ["node_disk_written_bytes_total", "written"]),
      },
      {
        id: "disk-iops", title: "Disk operations", unit: "per second", none: NO_DISK,
        explain: "Reads (above zero) and writes (below) each disk completed.",
        ...flow(disk, ["node_disk_reads_completed_total", "reads"], ["node_disk_writes_completed_total", "writes"]),
      },
      {
        id: "disk-busy", legendRows: 2, title: "Disk busy", unit: "percent", atLeast: 1, none: NO_DISK,
        explain: "Share of time a disk had at least one request open; fast disks serve many at once and can do more at 100 %.",
        terms: [rate("busy", "node_disk_io_time_seconds_total", disk)],
        finish: (moment) => new Map(grouped(moment, "busy").sort(byName).map(([name, v]) => [name, Math.min(1, v)])),
      },
      {
        id: "filesystems", legendRows: 2, title: "File systems", unit: "percent", atLeast: 1, none: "This host reports no file systems.",
        explain: "How full each mounted file system is, as df tells it: what is kept back for root is neither used nor free.",
        terms: [
          value("size", "node_filesystem_size_bytes", mount), value("free", "node_filesystem_free_bytes", mount),
          value("available", "node_filesystem_avail_bytes", mount),
        ],
        finish: filesystems,
      },
    ],
  },
  {
    title: "Network",
    charts: [
      {
        id: "network", title: "Network throughput", unit: "bytes/s", none: NO_LINK,
        explain: "Bytes received (above zero) and sent (below) by each interface.",
        ...flow(link, ["node_network_receive_bytes_total", "in"], ["node_network_transmit_bytes_total", "out"]),
      },
      {
        id: "network-faults", legendRows: 2, title: "Network errors and drops", unit: "packets/s", atLeast: 1, none: NO_LINK,
        explain: "Packets lost to errors or full queues; anything but a flat zero deserves a look.",
        terms: [
          rate("re", "node_network_receive_errs_total"), rate("te", "node_network_transmit_errs_total"),
          rate("rd", "node_network_receive_drop_total"), rate("td", "node_network_transmit_drop_total"),
        ],
        finish: named([["re", "Errors in"], ["te", "Errors out"], ["rd", "Drops in"], ["td", "Drops out"]]),
      },
    ],
  },
  {
    title: "Kernel",
    charts: [
      {
        id: "switches", legendRows: 1, title: "Context switches and interrupts", unit: "per second", none: "This host reports no context switches.",
        explain: "How often cores changed task and were interrupted; a jump without more work points at contention.",
        terms: [rate("switches", "node_context_switches_total"), rate("interrupts", "node_intr_total")],
        finish: named([["switches", "Switches"], ["interrupts", "Interrupts"]]),
      },
      {
        id: "processes", legendRows: 1, title: "Processes", unit: "number", atLeast: 2, none: "This host reports no processes.",
        explain: "Tasks that run or are ready to, and tasks blocked on I/O.",
        terms: [value("running", "node_procs_running"), value("blocked", "node_procs_blocked")],
        finish: named([["running", "Running"], ["blocked", "Blocked on I/O"]]),
      },
    ],
  },
];

/** All terms of the host page, chart by chart. */
export const TERMS: readonly Term[] = GROUPS.flatMap((group) => group.charts.flatMap((chart) => chart.terms));

/** Every metric the host page watches. */
export const METRICS: readonly string[] = [...new Set(TERMS.map((term) => term.metric))];

