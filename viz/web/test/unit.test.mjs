// The parts of the dashboard that are only arithmetic and text.
import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./load.mjs";

const [rates, format, view, attention, terms, charts, bursts, machines, busy, api] = await Promise.all(["rates", "format", "view", "attention", "terms", "charts", "bursts", "machines", "busy", "api"].map(load));

test("a rate is the growth per second, and nothing across a reset or a hole", () => {
  const table = [
    [100, 150, 1000, 50], [100, 150, 500, 100], [0, 0, 1000, 0],
    [150, 100, 1000, null], [null, 100, 1000, null], [100, null, 1000, null], [100, 150, 0, null],
  ];
  for (const [before, after, ms, expected] of table) assert.equal(rates.rate(before, after, ms), expected, `${before} → ${after} in ${ms} ms`);
});

const COLUMNS = [{ name: "c", labels: {}, kind: "counter" }, { name: "g", labels: {}, kind: "gauge" }];
const values = (point) => point.readings.map((reading) => reading.value);

test("a tracker turns rows into points", () => {
  const tracker = new rates.Tracker(1000, 1000);
  tracker.columns("host", "s1", COLUMNS);
  assert.equal(tracker.row("host", "s1", 1000, [10, 5]), true);
  assert.equal(tracker.point(), null, "one row gives no rate");
  tracker.row("host", "s1", 2000, [30, 6]);
  const point = tracker.point();
  assert.deepEqual([point.t, point.closed, point.gap, values(point)], [2000, true, false, [20, 6]]);
  assert.equal(tracker.point(), null, "nothing new");
});

test("a tracker reads no row of a schema that was not announced", () => {
  const tracker = new rates.Tracker(1000, 1000);
  assert.equal(tracker.row("host", "s1", 1000, [1, 2]), false);
  tracker.columns("host", "s1", COLUMNS);
  assert.equal(tracker.row("host", "s2", 1000, [1, 2]), false);
  assert.equal(tracker.row("host", "s1", 1000, [1]), false, "wrong width");
});

test("a counter that went back gives null once, then goes on", () => {
  const tracker = new rates.Tracker(1000, 1000);
  tracker.columns("host", "s1", COLUMNS);
  const seen = [[1000, 100], [2000, 110], [3000, 4], [4000, 9]].flatMap(([t, c]) => {
    tracker.row("host", "s1", t, [c, 0]);
    const point = tracker.point();
    return point ? [values(point)[0]] : [];
  });
  assert.deepEqual(seen, [10, null, 5]);
});

test("a tracker with a long step keeps its last point open until the step is full", () => {
  const tracker = new rates.Tracker(5000, 1000);
  tracker.columns("host", "s1", COLUMNS);
  const seen = [];
  for (let t = 0; t <= 6; t += 1) {
    tracker.row("host", "s1", 1000 + t * 1000, [t * t, t]);
    const point = tracker.point();
    if (point) seen.push([point.t, point.closed, values(point)[0]]);
  }
  assert.deepEqual(seen, [[2000, false, 1], [3000, false, 2], [4000, false, 3], [5000, false, 4], [6000, true, 5], [7000, false, 11]]);
});

test("silence is a gap", () => {
  const tracker = new rates.Tracker(1000, 1000);
  tracker.columns("host", "s1", COLUMNS);
  for (const t of [1000, 2000]) tracker.row("host", "s1", t, [t, 0]), tracker.point();
  tracker.row("host", "s1", 9000, [9000, 0]);
  assert.equal(tracker.point().gap, true);
});

test("numbers are written as people read them", () => {
  const table = [
    [0.4217, "percent", "42.2 %"], [1, "percent", "100 %"], [-0.0001, "percent", "0.0 %"], [0.9996, "percent", "100 %"],
    [0, "bytes", "0 B"], [1023, "bytes", "1023 B"], [1024, "bytes", "1 KiB"], [1536, "bytes", "1.50 KiB"], [64 * 2 ** 30, "bytes", "64 GiB"],
    [-(2 ** 20), "bytes/s", "-1 MiB/s"], [1_340_000, "per second", "1.34 M/s"], [12.345, "number", "12.3"], [999_999, "number", "1.00 M"], [99.97, "number", "100"],
    [null, "bytes", "–"], [undefined, "percent", "–"], [NaN, "number", "–"], [Infinity, "bytes", "–"],
  ];
  for (const [value, unit, expected] of table) assert.equal(format.format(value, unit), expected, `${value} ${unit}`);
  assert.deepEqual([[0, "percent"], [-1024, "bytes/s"], [0.025, "percent"], [1_000_000.5, "per second"], [7500, "per second"], [0.8, "packets/s"], [100, "number"]].map(([v, u]) => format.tick(v, u)), ["0 %", "1 KiB/s", "2.5 %", "1 M/s", "7.5 k/s", "0.8/s", "100"]);
  assert.deepEqual([0, 90_000, 3_600_000, 300_000].map(format.span), ["0 seconds", "1.5 minutes", "1 hour", "5 minutes"]);
  assert.deepEqual([500, 30_000, 742_000, 10_000_000, 864_000_000].map(format.ago), ["now", "30 s ago", "12 min ago", "3 h ago", "10 days ago"]);
});

test("a view and its URL are one", () => {
  const views = [
    { page: "fleet", filter: "" }, { page: "fleet", filter: "web & db?" },
    { page: "host", id: "a/b c", range: "5m", held: null, burst: null }, { page: "host", id: "x", range: "24h", held: { from: 1000, to: 61_000 }, burst: 1_700_000_000_123 },
  ];
  for (const one of views) assert.deepEqual(view.parse(view.print(one)), one, view.print(one));
});

test("a URL that makes no sense is read as the nearest that does", () => {
  const fleet = { page: "fleet", filter: "" };
  for (const hash of ["", "#", "#/", "#/nothing", "#/host/", "#/host/a/b"]) assert.deepEqual(view.parse(hash), fleet, hash);
  const host = (query) => view.parse(`#/host/x?${query}`);
  for (const query of ["range=0s", "range=99999d", "range=1y", "range=", "from=5&to=x", "from=9&to=3", "from=-1&to=5", "from=1e3&to=9e3"]) {
    assert.deepEqual(host(query), { page: "host", id: "x", range: "5m", held: null, burst: null }, query);
  }
  assert.deepEqual(host("from=1000&to=2000").held, view.windowOf(1000, 2000));
  assert.equal(view.parse("#/host/%E0%A4%A?range=1m").id, "%E0%A4%A");
});

test("a window is ordered and never too small", () => {
  assert.deepEqual(view.windowOf(60_000, 0), { from: 0, to: 60_000 });
  const small = view.windowOf(100_000, 100_010);
  assert.ok(small.to - small.from >= 5000);
});

test("what needs attention comes first", () => {
  const host = (id, more) => ({ id, instance: id, state: "fresh", ...more });
  const all = [
    host("calm", { cpu: 0.1 }), host("full", { fs: 0.97 }), host("late", { state: "late" }), host("b", { cpu: 0.5 }), host("a", { cpu: 0.52 }),
    host("lost", { state: "lost" }), host("stalled", { pressure: { memory: 0.34 } }), host("odd", { state: "new state" }),
  ];
  assert.deepEqual(all.sort(attention.compare).map((h) => h.id), ["lost", "odd", "late", "full", "stalled", "a", "b", "calm"]);
  assert.deepEqual([0.2, 0.75, 0.9, null].map(attention.severity), ["calm", "warn", "alarm", "calm"]);
  assert.equal(attention.matches(host("Web-1", { kernel: "6.1" }), "web 6.1"), true);
  assert.equal(attention.matches(host("web-1"), "web db"), false);
});

test("a term says the same to the broker and to live rows", () => {
  const term = { key: "in", metric: "m", how: "rate", agg: "sum", by: "device", where: { label: "device", not: true, pattern: "lo|veth.*" } };
  assert.deepEqual(terms.asked(term), { metric: "m", how: "rate", agg: "sum", by: "device", where: { label: "device", not: true, pattern: "lo|veth.*" } });
  const readings = new Map([["m", [["eth0", 3], ["eth0", 4], ["lo", 100], ["veth1", 5], ["loop", 2], ["eth1", null]].map(([device, value]) => ({ name: "m", labels: { device }, value }))]]);
  assert.deepEqual([...terms.evaluate([term], readings)], [["in|eth0", 7], ["in|loop", 2]]);
  assert.deepEqual([...terms.evaluate([{ ...term, agg: "avg" }], readings)], [["in|eth0", 3.5], ["in|loop", 2]]);
});

test("a snapshot's lines find their terms again", () => {
  const of = (key, by) => ({ key, metric: `m_${key}`, how: "value", agg: "sum", ...(by ? { by } : {}) });
  const grid = terms.assemble([of("in", "device"), of("out", "device"), of("total")], [{ eth0: [1] }, { eth0: [2] }, { "": [3] }], { from: 10_000, step: 1000, count: 1, interval_ms: 1000 }, (moment) => moment);
  assert.deepEqual([...grid.lines], [["in|eth0", [1]], ["out|eth0", [2]], ["total", [3]]]);
});

test("history is put on its grid with holes kept, and live points follow", () => {
  const term = { key: "k", metric: "m", how: "value", agg: "sum" };
  const grid = terms.assemble([term], [{ "": [1, null, 3, null] }], { from: 10_000, step: 1000, count: 4, interval_ms: 1000 }, (m) => new Map([["line", m.get("k")]]));
  assert.deepEqual([grid.times, grid.lines.get("line")], [[10, 11, 12, 13], [1, null, 3, null]]);
  terms.append(grid, 14, new Map([["line", 5], ["new", 1]]), false);
  terms.append(grid, 14.5, new Map([["line", 6]]), true);
  terms.trim(grid, 11);
  assert.deepEqual([grid.times, grid.lines.get("line"), grid.lines.get("new")], [[11, 12, 13, 14.5], [null, 3, null, 6], [null, null, null, null]]);
});

test("an end without values is forgotten, a hole inside is kept", () => {
  const grid = { times: [1, 2, 3, 4], lines: new Map([["a", [1, null, 3, null]], ["b", [1, null, null, null]]]) };
  terms.trimEnd(grid);
  assert.deepEqual([grid.times, grid.lines.get("a"), grid.lines.get("b")], [[1, 2, 3], [1, null, 3], [1, null, null]]);
  const empty = { times: [1, 2], lines: new Map() };
  terms.trimEnd(empty);
  assert.deepEqual(empty.times, []);
});

test("every chart explains itself in one sentence and has a name of its own", () => {
  const all = charts.GROUPS.flatMap((group) => group.charts);
  assert.equal(new Set(all.map((chart) => chart.id)).size, all.length);
  for (const chart of all) assert.match(chart.explain, /^[A-Z][^.]*\.$/, chart.id);
  for (const chart of all) assert.deepEqual([...chart.finish(new Map())], [], `${chart.id} invents values`);
});

test("a file system is as full as df says, with what is kept back for root and without", () => {
  const chart = charts.GROUPS.flatMap((group) => group.charts).find((chart) => chart.id === "filesystems");
  const moment = new Map([["size|/", 66053021], ["free|/", 51733463], ["available|/", 9501914], ["size|/boot", 100], ["available|/boot", 25], ["size|/gone", 9]]);
  const lines = [...chart.finish(moment)].map(([mount, share]) => [mount, Math.round(share * 1e4)]);
  assert.deepEqual(lines, [["/", 6011], ["/boot", 7500]]);
});

test("what a counter did between two samples holds for all of the time between them", () => {
  const line = bursts.perSecond({ times: [1, 1.01, 1.02, 1.06, 1.06, 1.07], values: [5, 5.01, 5.01, 5.09, 5.1, 0] });
  assert.deepEqual(line.times, [1.01, 1.02, 1.06]);
  assert.deepEqual(line.values.map((value) => Math.round(value * 1e6) / 1e6), [1, 0, 2]);
  assert.deepEqual(bursts.onto([1, 1.02, 1.03, 1.06, 1.07], { times: [1.02, 1.06], values: [3, 4] }), [3, 3, 4, 4, null]);
});

test("an axis says milliseconds where it shows them", () => {
  const at = new Date(2026, 0, 2, 3, 4, 5, 250).getTime() / 1000;
  assert.deepEqual([format.clock(at, 2), format.clock(at, 60), format.clock(at - 0.25, 2)], [":05.25", "03:04:05", "03:04:05"]);
  assert.equal(format.instant(at * 1000), "2026-01-02 03:04:05.250");
});

test("of machines those that are down come first and those out of use last", () => {
  const one = (instance, state, ...checks) => ({ instance, state, checks: checks.map((said) => ({ check: "tcp:1", state: said })) });
  const all = [one("e", "retired", "down"), one("d", "fresh", "up"), one("c", "known"), one("a", "lost", "up", "failing"), one("b2", "known", "down"), one("b10", "fresh", "up", "down")];
  assert.deepEqual(all.sort(machines.compare).map((machine) => machine.instance), ["b2", "b10", "a", "c", "d", "e"]);
  assert.deepEqual(all.map(machines.worst), ["down", "down", "failing", "", "up", "down"]);
  assert.equal(machines.worthALine(one("x", "fresh")), false);
  assert.equal(machines.worthALine(one("x", "enrolled")), true);
});

test("the busiest come first, whoever was named in a part of the window counts with that part, and others are last", () => {
  const one = (labels, values, times = [10, 20, 30, 40]) => ({ metric: "", labels, times, values });
  const found = busy.users("process", [10, 20, 30, 40], {
    cpu: [one({ comm: "other" }, [9, 9, 9, 9]), one({ comm: "a", pid: "1" }, [0.5, 0.5, 0.5, 0.5]), one({ comm: "b", pid: "2" }, [1.2, 1.2], [30, 40]), one({ cgroup: "/x" }, [9, 9, 9, 9])],
    memory: [one({ comm: "a", pid: "1" }, [5, 6]), one({ comm: "c", pid: "3" }, [7])],
    disk: [one({ comm: "b", pid: "2" }, [100]), one({ comm: "b", pid: "2" }, [1, 11])],
  });
  assert.deepEqual(found.map((user) => [user.name, user.cpu, user.memory, user.disk, user.others]), [
    ["b (2)", 0.6, null, 111, false], ["a (1)", 0.5, 6, null, false], ["c (3)", null, 7, null, false], ["All others", 9, null, null, true],
  ]);
  assert.deepEqual(found[0].line, [null, null, 1.2, 1.2]);
  const young = busy.users("process", [10, 20, 30, 40], { cpu: [one({ comm: "a", pid: "1" }, [0.5], [40])], memory: [], disk: [] });
  assert.equal(young[0].cpu, 0.5, "what is not known of the time before is no idleness");
  assert.deepEqual(busy.users("cgroup", [10], { cpu: [], memory: [], disk: [] }), []);
  const [group] = busy.users("cgroup", [10], { cpu: [one({ cgroup: "/system.slice/a.slice/b.service" }, [1], [10])], memory: [], disk: [] });
  assert.deepEqual([group.name, group.parent, group.detail], ["b.service", "a.slice", "/system.slice/a.slice/b.service"]);
});

test("brokers that do not answer are named, and a broker by itself is none of them", () => {
  const member = (id, vitals) => ({ id, address: `10.0.0.${id}:7801`, vitals });
  const said = (cluster, ...members) => api.silent({ cluster, members, findings: [] });
  assert.deepEqual(said("c", member(1, {}), member(2, {})), []);
  assert.match(said("c", member(1, {}), member(2, null)).join(), /^Broker 2 \(10\.0\.0\.2:7801\) does not answer/);
  assert.deepEqual(said(null, member(null, null)), []);
});
