// A small server that speaks the dashboard's protocol with generated data, for tests and for working on
// the pages without a fleet: `node test/mock.mjs [port]`. Counters are closed-form functions of time, so
// that history and live rows agree.
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { WebSocketServer } from "ws";

const dist = join(dirname(fileURLToPath(import.meta.url)), "../dist");
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };
export const CSP = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
const GIB = 2 ** 30;

const HOSTS = [
  { name: "web-01", cores: 8, busy: 0.34, seed: 1 }, { name: "web-02", cores: 8, busy: 0.3, seed: 2 },
  { name: "db-primary", cores: 16, busy: 0.93, mem: 0.88, seed: 3 }, { name: "db-replica", cores: 16, busy: 0.22, mem: 0.79, seed: 4 },
  { name: "cache-01", cores: 4, busy: 0.12, mem: 0.94, seed: 5 }, { name: "build-07", cores: 32, busy: 0.72, seed: 6 },
  { name: "edge-router", cores: 2, busy: 0.05, mem: 0.31, seed: 7 }, { name: "worker-11", cores: 4, busy: 0.44, seed: 8, state: "late" },
  { name: "worker-12", cores: 4, busy: 0.4, seed: 9, state: "lost" }, { name: "backup", cores: 4, busy: 0.08, fs: 0.83, seed: 10 },
].map((host, i) => ({ mem: 0.5, fs: 0.46, state: "fresh", ...host, id: (0xa0 + i).toString(16).padStart(32, "0") }));

/** Smooth and repeatable: a mean with three waves on it; `sum` is its integral. */
const wave = (mean, seed) => {
  const parts = [[0.28, 97], [0.16, 31], [0.1, 7.3]].map(([size, period], i) => [mean * size, (2 * Math.PI) / (period * (1 + ((seed * 37) % 11) / 23)), seed + i * 1.7]);
  return {
    at: (t) => mean + parts.reduce((sum, [a, w, p]) => sum + a * Math.sin(w * t + p), 0),
    sum: (t) => mean * t - parts.reduce((sum, [a, w, p]) => sum + (a / w) * Math.cos(w * t + p), 0),
  };
};

const EPOCH = Math.floor(Date.now() / 1000) - 8 * 86400;

function columns(host) {
  if (host.columns) return host.columns;
  const all = [];
  const counter = (section, name, labels, mean, seed) => {
    const w = wave(mean, seed + host.seed * 13);
    all.push({ section, name, labels, kind: "counter", read: (t) => Math.max(0, w.sum(t - EPOCH)) + 1e6 });
  };
  const gauge = (section, name, labels, read) => all.push({ section, name, labels, kind: "gauge", read });
  for (let cpu = 0; cpu < host.cores; cpu += 1) {
    const own = host.busy * (0.7 + 0.6 * (((cpu * 7 + host.seed) % 5) / 5));
    const busy = Math.min(0.97, own);
    const share = { user: 0.6, system: 0.24, iowait: 0.06, softirq: 0.04, nice: 0.02, irq: 0.01, steal: 0.01 };
    let idle = wave(1, 1);
    const waves = Object.entries(share).map(([mode, part], i) => [mode, wave(busy * part, host.seed * 13 + cpu * 3 + i)]);
    idle = { sum: (t) => t - waves.reduce((sum, [, w]) => sum + w.sum(t), 0) };
    for (const [mode, w] of [...waves, ["idle", idle]]) all.push({ section: "cpu", name: "node_cpu_seconds_total", labels: { cpu: String(cpu), mode }, kind: "counter", read: (t) => w.sum(t - EPOCH) + 1e5 });
  }
  const load = wave(host.busy * host.cores * 1.1, host.seed);
  [["node_load1", 1], ["node_load5", 0.96], ["node_load15", 0.9]].forEach(([name, k], i) => gauge("host", name, {}, (t) => k * load.at(t / (1 + i * 4))));
  const total = host.cores * 4 * GIB;
  const used = wave(host.mem, host.seed + 5);
  const usedAt = (t) => Math.min(0.97, host.mem + (used.at(t / 20) - host.mem) * 0.15);
  gauge("host", "node_memory_MemTotal_bytes", {}, () => total);
  gauge("host", "node_memory_MemFree_bytes", {}, (t) => total * (1 - usedAt(t)) * 0.35);
  gauge("host", "node_memory_MemAvailable_bytes", {}, (t) => total * (1 - usedAt(t)));
  gauge("host", "node_memory_Cached_bytes", {}, (t) => total * (1 - usedAt(t)) * 0.55);
  gauge("host", "node_memory_Buffers_bytes", {}, (t) => total * (1 - usedAt(t)) * 0.04);
  gauge("host", "node_memory_SReclaimable_bytes", {}, (t) => total * (1 - usedAt(t)) * 0.06);
  gauge("host", "node_memory_SwapTotal_bytes", {}, () => (host.seed % 3 === 1 ? 0 : 4 * GIB));
  gauge("host", "node_memory_SwapFree_bytes", {}, (t) => (host.seed % 3 === 1 ? 0 : 4 * GIB * (0.93 - 0.02 * Math.sin(t / 400))));
  counter("host", "node_context_switches_total", {}, 9000 * host.busy * host.cores, 1);
  counter("host", "node_intr_total", {}, 4300 * host.busy * host.cores, 2);
  gauge("host", "node_procs_running", {}, (t) => Math.max(1, Math.round(load.at(t * 3))));
  gauge("host", "node_procs_blocked", {}, (t) => (Math.sin(t / 17 + host.seed) > 0.9 ? 1 : 0));
  const hurt = host.busy ** 3;
  counter("host", "node_pressure_cpu_waiting_seconds_total", {}, hurt * 0.4, 3);
  counter("host", "node_pressure_memory_waiting_seconds_total", {}, host.mem > 0.9 ? 0.06 : 0.001, 4);
  counter("host", "node_pressure_io_waiting_seconds_total", {}, hurt * 0.12 + 0.004, 5);
  for (const [i, device] of ["nvme0n1", "sda"].entries()) {
    const k = (i ? 0.4 : 1) * (host.busy + 0.05);
    counter("disk", "node_disk_read_bytes_total", { device }, 2.4e7 * k, 6 + i);
    counter("disk", "node_disk_written_bytes_total", { device }, 4.1e7 * k, 8 + i);
    counter("disk", "node_disk_reads_completed_total", { device }, 900 * k, 10 + i);
    counter("disk", "node_disk_writes_completed_total", { device }, 1500 * k, 12 + i);
    counter("disk", "node_disk_io_time_seconds_total", { device }, 0.45 * k, 14 + i);
  }
  for (const [mountpoint, device, size, full] of [["/", "/dev/nvme0n1p2", 200, host.fs], ["/var/lib", "/dev/sda1", 1800, host.fs * 0.7], ["/boot", "/dev/nvme0n1p1", 1, 0.32]]) {
    const labels = { device, fstype: "ext4", mountpoint };
    gauge("filesystem", "node_filesystem_size_bytes", labels, () => size * GIB);
    // A twentieth is kept back for root: of what is left `full` is used.
    const left = (t) => 0.95 * (1 - full - 0.004 * Math.sin(t / 900));
    gauge("filesystem", "node_filesystem_free_bytes", labels, (t) => size * GIB * (left(t) + 0.05));
    gauge("filesystem", "node_filesystem_avail_bytes", labels, (t) => size * GIB * left(t));
  }
  for (const [i, device] of ["lo", "eth0", "eth1", "ifb0"].entries()) {
    const k = [0.1, 1, 0.25, 0][i] * (host.busy + 0.03);
    counter("net", "node_network_receive_bytes_total", { device }, 1.9e7 * k, 20 + i);
    counter("net", "node_network_transmit_bytes_total", { device }, 1.2e7 * k, 23 + i);
    for (const name of ["receive_errs", "transmit_errs", "transmit_drop"]) counter("net", `node_network_${name}_total`, { device }, 0, 1);
    counter("net", "node_network_receive_drop_total", { device }, i === 1 && host.busy > 0.9 ? 2.1 : 0, 3);
  }
  host.columns = all;
  return all;
}

function summary(host, t) {
  const one = (name, match = () => true) => columns(host).filter((c) => c.name === name && match(c.labels));
  const rate = (list) => list.reduce((sum, c) => sum + c.read(t) - c.read(t - 1), 0);
  const value = (name) => one(name)[0]?.read(t) ?? null;
  const total = value("node_memory_MemTotal_bytes");
  const swap = value("node_memory_SwapTotal_bytes");
  const links = (l) => l.device !== "lo";
  return {
    id: host.id, instance: host.name, state: host.state, version: "0.1.0", kernel: "6.12.9-amd64", cores: host.cores,
    last_seen_ms: Math.round(t * 1000) - (host.state === "lost" ? 742_000 : host.state === "late" ? 9000 : 300),
    cpu: 1 - rate(one("node_cpu_seconds_total", (l) => l.mode === "idle" || l.mode === "iowait")) / host.cores, load1: value("node_load1"),
    mem: 1 - value("node_memory_MemAvailable_bytes") / total, swap: swap ? 1 - value("node_memory_SwapFree_bytes") / swap : null,
    disk_busy: rate(one("node_disk_io_time_seconds_total", (l) => l.device === "nvme0n1")), fs: host.fs,
    rx: rate(one("node_network_receive_bytes_total", links)), tx: rate(one("node_network_transmit_bytes_total", links)),
    pressure: Object.fromEntries([["cpu", "cpu_waiting"], ["memory", "memory_waiting"], ["io", "io_waiting"]].map(([k, n]) => [k, rate(one(`node_pressure_${n}_seconds_total`))])),
  };
}

/** What the broker's /api/strobe/v1/history answers. */
function history(wish, id) {
  const to = wish.to_ms ?? Date.now();
  const from = wish.from_ms ?? to - wish.range_ms;
  const least = Math.max((to - from) / (2 * wish.pixels), 1000);
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600].map((s) => s * 1000).find((ms) => ms >= least);
  const start = Math.floor(from / step) * step;
  const times = Array.from({ length: Math.floor((to - start) / step) + 1 }, (_, i) => (start + i * step) / 1000);
  const hosts = HOSTS.filter((host) => (id ? host.id === id : host.state !== "lost"));
  return { from: start, step, count: times.length, interval_ms: id ? 1000 : step, terms: wish.terms.map((term) => lines(term, hosts, times, Math.max(step / 1000, 1))) };
}

/** Two bursts of the host that is in trouble, and what /api/v1/query has of them. */
const BURSTS = ["db-primary"].flatMap((instance) => [0, 1].map((i) => {
  const at = Date.now() - 600_000 - i * 7_200_000;
  return {
    at_ms: at, instance, reason: ["io_pressure", "signal"][i], from_ms: at - 59_500, to_ms: at + 10_000,
    processes: [["4711", "postgres", 0.97], ["17", "kworker/1:2", 0.21], ["9001", "<script>", 0.02]].map(([pid, comm, cpus]) => ({ pid, comm, cpus })),
    cgroups: [["/system.slice/postgresql.service", 1.31], ["/", 0.4]].map(([cgroup, cpus]) => ({ cgroup, cpus })),
  };
}));

function recorded(query, to) {
  const [, names, instance, seconds] = /^\{__name__=~"(.*)",instance="(.*)"\}\[(\d+)s\]$/.exec(query) ?? [];
  const wanted = new RegExp(`^(?:${names})$`);
  const cpu = ["user", "system", "iowait", "irq", "steal", "idle"].map((mode, i) => ["strobe_burst_cpu_seconds_total", { mode }, (k) => Math.floor(k * [1.1, 0.4, k % 900 > 700 ? 1.5 : 0, 0.02, 0, 2][i]) / 100, 1]);
  const disk = (way, by) => [`strobe_burst_disk_${way}_bytes_total`, { device: "sda" }, (k) => Math.floor(k / 20) * by, 1];
  const link = (way, by) => [`strobe_burst_network_${way}_bytes_total`, { device: "eth0" }, (k) => Math.floor(k * by), 1];
  const pressure = ["cpu", "io", "memory"].flatMap((resource) => ["some", "full"].map((share) => ["strobe_burst_pressure_seconds_total", { resource, share }, (k) => k * 0.002, 5]));
  const all = [...cpu, ["strobe_burst_procs_running", {}, (k) => 1 + (k % 7), 1], ["strobe_burst_procs_blocked", {}, (k) => (k % 900 > 700 ? 3 : 0), 1], disk("read", 1e5), disk("written", 4e6), ["strobe_burst_disk_io_seconds_total", { device: "sda" }, (k) => Math.floor(k * 6) / 1000, 1], link("receive", 9000), link("transmit", 21000), ...pressure];
  const count = (Number(seconds) - 1) * 100;
  return all.filter(([name]) => wanted.test(name)).map(([name, labels, read, every]) => ({
    metric: { __name__: name, instance, ...labels },
    values: Array.from({ length: Math.floor(count / every) }, (_, i) => [to - (count - i * every) / 100, String(read(i * every))]),
  }));
}

/** Who is busy, as /api/v1/query_range has it: twelve named of each kind, and all others. */
function busiest(query, instance, [start, end, step]) {
  const host = HOSTS.find((one) => one.name === instance);
  const names = ["postgres", "postgres", "java", "node", "kworker/u16:3", "systemd-journal", "sshd", "<script>", "redis-server", "strobe-agent", "cron", "backup.sh"];
  const groups = names.map((name, i) => (i % 3 === 2 ? `/kubepods.slice/kubepods-burstable.slice/kubepods-pod${i}aa0c.slice/cri-containerd-${String(i).repeat(12)}.scope` : `/system.slice/${name.replace("/", "-")}-${i}.service`));
  const kinds = [
    [/process/, (i) => (i < names.length ? { comm: names[i], pid: String(700 + i * 37) } : { comm: "other" })],
    [/cgroup/, (i) => ({ cgroup: groups[i] ?? "other" })],
  ];
  const how = /cpu_seconds/.test(query) ? (w, t) => w.at(t) : /resident|memory_bytes/.test(query) ? (w) => w.at(0) * 3 * GIB : (w, t) => w.at(t) * 4e6;
  const times = Array.from({ length: Math.floor((end - start) / step + 1e-6) + 1 }, (_, i) => start + i * step);
  return kinds.filter(([pattern]) => pattern.test(query)).flatMap(([, labels]) => Array.from({ length: names.length + 1 }, (_, i) => {
    const w = wave((host.busy * host.cores * 0.5) / (i + 1), host.seed + i);
    // The third was named in the later half of the window only.
    return { metric: { instance, ...labels(i) }, values: times.slice(i === 2 ? Math.floor(times.length / 2) : 0).map((t) => [t, String(how(w, t))]) };
  }));
}

function lines({ metric, how, agg, by, where }, hosts, times, back) {
  const groups = new Map();
  for (const host of hosts) {
    for (const column of columns(host)) {
      const labels = { ...column.labels, instance: host.name };
      if (column.name !== metric || (where && new RegExp(`^(?:${where.pattern})$`).test(labels[where.label] ?? "") === where.not)) continue;
      const key = by ? labels[by] ?? "" : "";
      groups.set(key, [...(groups.get(key) ?? []), column]);
    }
  }
  const put = { sum: (v) => v.reduce((a, b) => a + b, 0), avg: (v) => v.reduce((a, b) => a + b, 0) / v.length, max: (v) => Math.max(...v), count: (v) => v.length }[agg];
  const at = (list, t) => (t < EPOCH + 90_000 ? null : put(list.map((c) => (how === "value" ? c.read(t) : (c.read(t) - c.read(t - back)) / back))));
  return Object.fromEntries([...groups].map(([key, list]) => [key, times.map((t) => at(list, t))]));
}

/** Machines without an agent, as `strobe hosts` has them. */
const MACHINES = [
  { instance: "switch-1", state: "known", source: "static", address: "10.0.0.2", group: "net", tags: ["rack-4"], first_seen_ms: EPOCH * 1000, checks: [{ check: "tcp:22", state: "up" }, { check: "http:80/", state: "down" }] },
  { instance: "10.0.0.77", state: "known", source: "scan", address: "10.0.0.77", group: "", tags: [], first_seen_ms: EPOCH * 1000 },
  { instance: "old-mail", state: "retired", source: "operator", address: "", group: "", tags: [], first_seen_ms: EPOCH * 1000 },
];
/** Three brokers of which the last is down, or one by itself. */
function cluster(alone) {
  const now = Date.now();
  const vitals = (id) => ({ version: "0.1.0", now_ms: now, sessions: 4 + id, connections: 8, frames: Math.floor(now / 1000) * 40 * id, ack_ms_p99: 30, in_flight: id, cpu_ms: Math.floor(now / 1000) * 250 * id, memory_bytes: 40_000_000 * id, wal_bytes: 3_400_000 * id, head_bytes: 1, segment_bytes: 72_000_000, storing: true, redis: alone ? null : { connected: true, lag_ms: 0, lag_segments: 0 } });
  const member = (id, more) => ({ id, address: `127.0.0.1:780${id}`, stage: "voter", down: false, shards: 128, leader: id === 1, me: id === 1, vitals: vitals(id), hosts: { fresh: 4, late: 1, lost: 0, names: HOSTS.slice(id * 5 - 5, id * 5).map((host) => host.name) }, ...more });
  if (alone) return { cluster: null, now_ms: now, members: [{ ...member(1), id: null, leader: undefined, stage: undefined, down: undefined }], findings: [] };
  const gone = { down: true, shards: 0, vitals: null, hosts: { fresh: 0, late: 0, lost: 0, names: [] } };
  const shards = Array.from({ length: 256 }, (_, i) => 1 + ((i * 7) % 11 % 2));
  const findings = [{ kind: "bad", code: "broker-down", why: "broker 3 (127.0.0.1:7803) is not heard of: start it, or `strobe cluster remove 3`", runbook: "docs/runbooks.md#broker-down" }];
  return { cluster: "5be0cd19137e2179".repeat(2), broker: 1, term: 4, leader: 1, committed: 5120, now_ms: now, members: [member(1), member(2), member(3, gone)], shards, findings };
}

export async function start(port = 0) {
  const sockets = new Set();
  const state = { refuse: false, fail: false, empty: false, mute: false, alone: false };
  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://x");
    const json = (status, body) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
    if (url.pathname === "/api/strobe/v1/hosts") {
      return json(200, state.empty ? [] : [...MACHINES, ...HOSTS.map((h) => ({ id: h.id, instance: h.name, job: "node", state: h.state, version: "0.1.0", kernel: "6.12.9-amd64", labels: {}, interval_ms: 1000, first_seen_ms: EPOCH * 1000, last_seen_ms: Date.now() - (h.state === "lost" ? 742_000 : 300) }))]);
    }
    if (url.pathname === "/api/strobe/v1/cluster") return state.fail ? json(503, { status: "error", error: "the store is not ready" }) : json(200, cluster(state.alone));
    const asked = (name) => url.searchParams.get(name);
    if (url.pathname === "/api/strobe/v1/bursts") {
      const within = (burst) => (asked("start") ?? 0) * 1000 <= burst.at_ms && burst.at_ms <= (asked("end") ?? Infinity) * 1000;
      return json(200, BURSTS.filter((burst) => burst.instance === asked("host") && within(burst)));
    }
    if (url.pathname === "/api/v1/query_range") {
      const [, instance] = /instance="([^"]*)"/.exec(asked("query")) ?? [];
      const known = !state.nameless && HOSTS.some((one) => one.name === instance);
      return json(200, { status: "success", data: { resultType: "matrix", result: known ? busiest(asked("query"), instance, ["start", "end", "step"].map((name) => Number(asked(name)))) : [] } });
    }
    if (url.pathname === "/api/v1/query") {
      if (state.fail) return json(503, { status: "error", error: "the store is not ready" });
      return json(200, { status: "success", data: { resultType: "matrix", result: recorded(asked("query"), Number(asked("time"))) } });
    }
    const name = url.pathname === "/" ? "index.html" : url.pathname.slice(1);
    if (!/^[\w.]+$/.test(name)) return response.writeHead(404).end();
    try {
      const bytes = readFileSync(join(dist, name));
      response.writeHead(200, { "content-type": TYPES[extname(name)] ?? "application/octet-stream", "content-security-policy": CSP, "cache-control": "no-store" }).end(bytes);
    } catch {
      response.writeHead(404).end();
    }
    return undefined;
  });
  const live = new WebSocketServer({ noServer: true });
  server.on("upgrade", (request, socket, head) => {
    if (state.refuse || request.url !== "/live") return socket.destroy();
    live.handleUpgrade(request, socket, head, (ws) => serve(ws, sockets, state));
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  const stop = () => {
    for (const ws of sockets) ws.terminate();
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  /** What a page gets that was too slow for the rows. */
  const again = () => sockets.forEach((ws) => ws.again());
  return { url: `http://127.0.0.1:${server.address().port}`, state, stop, again, drop: () => sockets.forEach((ws) => ws.terminate()) };
}

function serve(ws, sockets, state) {
  let watch = null;
  let timer = 0;
  sockets.add(ws);
  const send = (message) => ws.readyState === ws.OPEN && ws.send(JSON.stringify(message));
  const snapshot = () => {
    const answer = state.fail ? { status: "error", errorType: "unavailable", error: "the store is not ready" } : { status: "success", data: history(watch.history, watch.host) };
    send({ type: "snapshot", ask: watch.ask, answer });
  };
  ws.again = () => (snapshot(), tick(true));
  const tick = (first) => {
    if (state.mute) return;
    const now = Date.now();
    if (watch?.fleet) {
      if (state.trouble) return send({ type: first ? "fleet" : "fleet_delta", now_ms: now, hosts: [], trouble: state.trouble });
      const hosts = HOSTS.filter((host) => !state.empty && (first || host.state === "fresh")).map((host) => summary(host, now / 1000));
      send({ type: first ? "fleet" : "fleet_delta", now_ms: now, hosts });
    } else if (watch?.host) {
      const host = HOSTS.find((h) => h.id === watch.host);
      if (!host || host.state !== "fresh" || !watch.rows) return;
      for (const section of ["host", "cpu", "disk", "net", "filesystem"]) {
        const own = columns(host).filter((c) => c.section === section && watch.names.includes(c.name));
        const head = { id: host.id, section, schema: `${section}-1` };
        if (first) send({ type: "columns", ...head, columns: own.map(({ name, labels, kind }) => ({ name, labels, kind })) });
        send({ type: "row", ...head, t: now, v: own.map((c) => c.read(now / 1000)) });
      }
    }
  };
  ws.on("message", (data) => {
    clearInterval(timer);
    watch = JSON.parse(String(data)).watch;
    if (watch.host) snapshot();
    tick(true);
    if (watch.fleet) snapshot();
    timer = setInterval(() => tick(false), 1000);
  });
  ws.on("close", () => {
    clearInterval(timer);
    sockets.delete(ws);
  });
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { url } = await start(Number(process.argv[2] ?? 7890));
  console.log(`Serving generated hosts at ${url}`);
}
