// The cluster: how each broker does, who owns which shard, what is wrong. Asked anew every two seconds;
// rates are differences between two answers. A broker by itself says so, and shows its own numbers.

import * as api from "./api";
import { h, text } from "./dom";
import { format, percent, span } from "./format";
import type { Live } from "./live";
import type { BrokerVitals, ClusterState, Member } from "./api";

const ASK_MS = 2000;
const NO_CLUSTER = "This broker is by itself: no other one knows what it stores, and while it is down nobody takes its hosts' rows.";

export class ClusterPage {
  readonly root: HTMLElement;
  private readonly about = h("p", { class: "facts" });
  private readonly trouble = h("p", { class: "wrong", role: "status", hidden: true });
  private readonly figures = h("dl", { class: "figures" });
  private readonly findings = h("ul", { class: "findings" });
  private readonly brokers = h("div", { class: "brokers" });
  private readonly shards = h("div", { class: "shards", role: "img" });
  private readonly owners = h("ul", { class: "owners" });
  private readonly shardCard = h("section", { class: "card", hidden: true }, h("h2", {}, "Shards by owner"), this.shards, this.owners);
  private readonly cards = new Map<string, Card>();
  private readonly seen = new Map<string, { at: number; frames: number; cpu: number; rate: Rate | null }>();
  private timer = 0;
  private over = new AbortController();

  constructor(live: Live) {
    this.root = h("div", { class: "page cluster" },
      h("div", { class: "page-head" }, h("h1", { tabindex: "-1" }, "Cluster"), this.about),
      this.trouble, this.figures, this.findings, this.brokers, this.shardCard);
    // Nothing of it is shown: it says at the top of the page whether Strobe is there.
    live.watch({ fleet: true, history: { range_ms: 60_000, pixels: 1, terms: [] } }, () => undefined);
    void this.ask();
  }

  stop(): void {
    this.over.abort();
    clearTimeout(this.timer);
  }

  private async ask(): Promise<void> {
    try {
      const state = await api.cluster(this.over.signal);
      if (this.over.signal.aborted) return;
      this.trouble.hidden = true;
      this.show(state);
    } catch (error) {
      if (this.over.signal.aborted) return;
      text(this.trouble, `No news: ${(error as Error).message} What you see is the last that was known.`);
      this.trouble.hidden = false;
    }
    this.timer = window.setTimeout(() => void this.ask(), ASK_MS);
  }

  private show(state: ClusterState): void {
    const alone = state.cluster === null;
    const leader = state.members.find((member) => member.leader);
    text(this.about, alone ? NO_CLUSTER : `${state.cluster!.slice(0, 8)}, agreed up to ${state.committed}; asked is broker ${state.broker}`);
    const rates = state.members.map((member) => this.rate(member));
    const vitals = state.members.map((member) => member.vitals).filter((of): of is BrokerVitals => !!of);
    const sum = (pick: (of: BrokerVitals) => number) => vitals.reduce((all, of) => all + pick(of), 0);
    const waits = vitals.map((of) => of.ack_ms_p99).filter((ms): ms is number => ms !== null);
    const up = state.members.filter((member) => !member.down).length;
    const known = rates.filter((rate): rate is Rate => rate !== null);
    this.count([
      ["Brokers up", `${up} of ${state.members.length}`, up < state.members.length ? "alarm" : ""],
      ["Leader", alone ? "not needed" : leader ? `broker ${leader.id}` : "none", alone || leader ? "" : "alarm"],
      ["Term", alone ? "–" : String(state.term), ""],
      ["Agents", String(sum((of) => of.sessions)), ""],
      ["Frames", known.length === 0 ? "–" : format(known.reduce((all, rate) => all + rate.frames, 0), "per second"), ""],
      ["Slowest ack p99", waits.length === 0 ? "–" : `${Math.max(...waits)} ms`, waits.some((ms) => ms > 500) ? "warn" : ""],
    ]);
    this.tell(state.findings, alone);
    state.members.forEach((member, i) => this.card(member).update(member, rates[i] ?? null, alone));
    const there = new Set(state.members.map(key));
    for (const [id, card] of this.cards) {
      if (there.has(id)) continue;
      card.root.remove();
      this.cards.delete(id);
    }
    this.map(state);
  }

  /** What it did since the last answer; by its own clock, so that no other delay counts. */
  private rate(member: Member): Rate | null {
    const of = member.vitals;
    if (!of) return null;
    const before = this.seen.get(key(member));
    if (before && before.at === of.now_ms) return before.rate;
    const per = before && before.at < of.now_ms && before.frames <= of.frames && before.cpu <= of.cpu_ms ? 1 / (of.now_ms - before.at) : 0;
    const rate = before && per > 0 ? { frames: (of.frames - before.frames) * 1000 * per, cores: (of.cpu_ms - before.cpu) * per } : null;
    this.seen.set(key(member), { at: of.now_ms, frames: of.frames, cpu: of.cpu_ms, rate });
    return rate;
  }

  private count(figures: [string, string, string][]): void {
    if (this.figures.children.length === 0) this.figures.append(...figures.map(([name]) => h("div", {}, h("dt", {}, name), h("dd"))));
    figures.forEach(([, value, kind], i) => {
      const cell = this.figures.children[i]!.lastElementChild as HTMLElement;
      text(cell, value);
      cell.dataset["kind"] = kind;
    });
  }

  private tell(found: ClusterState["findings"], alone: boolean): void {
    const lines = found.map(({ kind, why, runbook }) => ({ kind, line: `${why[0]!.toUpperCase()}${why.slice(1)}`, runbook }));
    if (lines.length === 0) lines.push({ kind: "good", line: alone ? "Nothing is wrong with this broker." : "The cluster is well.", runbook: "" });
    const said = JSON.stringify(lines);
    if (this.findings.dataset["said"] === said) return;
    this.findings.dataset["said"] = said;
    this.findings.replaceChildren(...lines.map(({ kind, line, runbook }) =>
      h("li", { "data-kind": kind }, h("span", {}, line), runbook ? h("code", {}, runbook) : null)));
  }

  private card(member: Member): Card {
    const known = this.cards.get(key(member));
    if (known) return known;
    const card = new Card();
    this.cards.set(key(member), card);
    this.brokers.append(card.root);
    return card;
  }

  private map({ shards, members }: ClusterState): void {
    this.shardCard.hidden = !shards;
    if (!shards) return;
    const place = (owner: number) => members.findIndex((member) => member.id === owner) + 1;
    if (this.shards.children.length === 0) this.shards.append(...shards.map(() => h("i")));
    shards.forEach((owner, i) => {
      const cell = this.shards.children[i] as HTMLElement;
      const color = String(Math.min(place(owner), 8));
      if (cell.dataset["owner"] === color && cell.title.endsWith(` ${owner}`)) return;
      cell.dataset["owner"] = color;
      cell.title = owner === 0 ? `shard ${i}: nobody's` : `shard ${i}: broker ${owner}`;
    });
    const words = members.map((member) => `broker ${member.id} has ${member.shards}`);
    const none = shards.filter((owner) => owner === 0).length;
    if (none > 0) words.push(`${none} have no owner`);
    this.shards.setAttribute("aria-label", `Of ${shards.length} shards ${words.join(", ")}`);
    this.owners.replaceChildren(...words.map((word, i) => h("li", { "data-owner": i < members.length ? String(Math.min(i + 1, 8)) : "0" }, h("i", { "aria-hidden": "true" }), word)));
  }
}

/** Frames a second, and CPU time a second. */
type Rate = { frames: number; cores: number };

class Card {
  private readonly name = h("h3");
  private readonly badge = h("span", { class: "badge" });
  private readonly leads = h("span", { class: "leads" }, "leads");
  private readonly address = h("p", { class: "facts" });
  private readonly values = new Map<string, HTMLElement>();
  private readonly hosts = h("p", { class: "names" });
  private readonly list = h("dl", { class: "vitals" });
  readonly root = h("section", { class: "card broker" },
    h("div", { class: "name-line" }, this.name, this.badge, this.leads), this.address, this.list, this.hosts);

  update(member: Member, rate: Rate | null, alone: boolean): void {
    const of = member.vitals;
    text(this.name, alone ? "This broker" : `Broker ${member.id}${member.me ? " (asked)" : ""}`);
    const [state, word] = member.down ? ["lost", "down"] : !of ? ["late", "no answer"] : of.storing ? ["fresh", member.stage === "voter" || alone ? "up" : member.stage!] : ["lost", "takes nothing"];
    text(this.badge, word!);
    this.badge.dataset["state"] = state!;
    this.leads.hidden = !member.leader;
    text(this.address, `${member.address}${of ? `, ${of.version}` : ""}`);
    const { fresh, late, lost, names } = member.hosts;
    const total = fresh + late + lost;
    this.put("Hosts", `${total}${late ? `, ${late} late` : ""}${lost ? `, ${lost} lost` : ""}`, lost ? "warn" : "");
    this.put("Agents connected", of ? String(of.sessions) : "–");
    this.put("Frames", rate === null ? "–" : format(rate.frames, "per second"));
    this.put("Ack p99", of?.ack_ms_p99 == null ? "–" : `≤ ${of.ack_ms_p99} ms`, (of?.ack_ms_p99 ?? 0) > 500 ? "warn" : "");
    this.put("CPU", rate === null ? "–" : `${percent(rate.cores)} of a core`);
    this.put("Memory", of ? format(of.memory_bytes, "bytes") : "–");
    if (!alone) this.put("Shards", String(member.shards));
    this.put("WAL", of ? `${format(of.wal_bytes, "bytes")}, ${of.in_flight} waiting` : "–");
    this.put("Segments", of ? format(of.segment_bytes, "bytes") : "–");
    const redis = of?.redis;
    this.put("Redis", !of ? "–" : !redis ? "not used" : !redis.connected ? "away" : redis.lag_segments ? `${span(redis.lag_ms)} behind` : "all there", redis && !redis.connected ? "alarm" : "");
    text(this.hosts, names.length === 0 ? "No hosts." : `${names.join(", ")}${names.length < total ? ` and ${total - names.length} more` : ""}`);
  }

  private put(name: string, value: string, kind = ""): void {
    let cell = this.values.get(name);
    if (!cell) {
      cell = h("dd");
      this.values.set(name, cell);
      this.list.append(h("div", {}, h("dt", {}, name), cell));
    }
    text(cell, value);
    cell.dataset["kind"] = kind;
  }
}

function key(member: Member): string {
  return String(member.id);
}
