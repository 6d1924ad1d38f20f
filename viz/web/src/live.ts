// The WebSocket by which a page gets its data: it says what it looks at, and gets a snapshot of that and
// then what comes in. It reconnects by itself with a jittered back-off, asks again for what was watched,
// and says in what state it is.
//
//   connecting ──open──▶ open ──close──▶ waiting ──timer, online, visible──▶ connecting

import type { Column } from "./rates";
import type { HostState } from "./attention";

export type Watch =
  | { fleet: true; history: Wish }
  /** `rows` is false where a window of the past is looked at, which nothing is added to. */
  | { host: string; names: string[]; rows: boolean; history: Wish };

/** The last `range_ms`, or a window held still; at most two points for each of `pixels`. */
export type Wish = ({ range_ms: number } | { from_ms: number; to_ms: number }) & { pixels: number; terms: Asked[] };

/** A term as it is asked: its key stays here. */
export interface Asked {
  metric: string;
  how: "rate" | "value";
  agg: "sum" | "avg" | "max" | "count";
  by?: string;
  where?: { label: string; not: boolean; pattern: string };
}

/** All terms on one grid; each is lines by the label it is grouped by, null where nothing is known. */
export interface History {
  from: number;
  step: number;
  count: number;
  interval_ms: number;
  terms: Record<string, (number | null)[]>[];
}

export type Message =
  /** `trouble`: why nothing comes from the broker. */
  | { type: "fleet" | "fleet_delta"; now_ms: number; hosts: HostState[]; trouble?: string }
  | { type: "columns"; id: string; section: string; schema: string; columns: Column[] }
  | { type: "row"; id: string; section: string; schema: string; t: number; v: (number | null)[] }
  | { type: "snapshot"; ask: number; answer: { status: string; error?: string; data?: History } };

export type Link = { state: "connecting" } | { state: "open" } | { state: "waiting"; retryAt: number };

type Listener = (message: Message) => void;

const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 15_000;

export class Live {
  private socket: WebSocket | null = null;
  private watching: Watch | null = null;
  private listener: Listener | null = null;
  private failures = 0;
  private asks = 0;
  private timer = 0;
  link: Link = { state: "connecting" };

  constructor(private readonly changed: (link: Link) => void) {
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.hurry();
    });
  }

  /** Replaces what was watched before, of which no snapshot comes any more. */
  watch(watch: Watch, listener: Listener): void {
    this.watching = watch;
    this.listener = listener;
    this.asks += 1;
    if (this.socket?.readyState === WebSocket.OPEN) this.ask();
    else if (!this.socket) this.connect();
  }

  private connect(): void {
    clearTimeout(this.timer);
    this.become({ state: "connecting" });
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
    this.socket = socket;
    socket.onopen = () => {
      this.failures = 0;
      this.become({ state: "open" });
      this.ask();
    };
    socket.onmessage = (event) => this.take(event.data);
    socket.onclose = () => {
      if (this.socket === socket) this.lost();
    };
  }

  private lost(): void {
    this.socket = null;
    const ceiling = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** this.failures);
    const wait = ceiling * (0.5 + Math.random() / 2);
    this.failures += 1;
    this.become({ state: "waiting", retryAt: Date.now() + wait });
    this.timer = window.setTimeout(() => this.connect(), wait);
  }

  private hurry(): void {
    if (this.link.state === "waiting") this.connect();
  }

  private ask(): void {
    if (this.watching) this.socket?.send(JSON.stringify({ watch: { ...this.watching, ask: this.asks } }));
  }

  private take(data: unknown): void {
    let message: Message;
    try {
      message = JSON.parse(String(data)) as Message;
    } catch {
      return;
    }
    if (message.type !== "snapshot" || message.ask === this.asks) this.listener?.(message);
  }

  private become(link: Link): void {
    this.link = link;
    this.changed(link);
  }
}
