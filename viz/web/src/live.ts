// The WebSocket that keeps the page live. It reconnects by itself with a jittered back-off, asks again
// for what was watched, and says in what state it is.
//
//   connecting ──open──▶ open ──close──▶ waiting ──timer, online, visible──▶ connecting

import type { Column } from "./rates";
import type { HostState } from "./attention";

export type Watch = { fleet: true } | { host: string; names: string[] };

export type Message =
  | { type: "fleet" | "fleet_delta"; now_ms: number; hosts: HostState[] }
  | { type: "columns"; id: string; section: string; schema: string; columns: Column[] }
  | { type: "row"; id: string; section: string; schema: string; t: number; v: (number | null)[] }
  | { type: "skipped"; n: number };

export type Link = { state: "connecting" } | { state: "open" } | { state: "waiting"; retryAt: number };

interface Listener {
  message(message: Message): void;
  /** A new connection stands where one was lost: what happened in between has to be fetched. */
  reopened(): void;
}

const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 15_000;

export class Live {
  private socket: WebSocket | null = null;
  private watching: Watch | null = null;
  private listener: Listener | null = null;
  private failures = 0;
  private everOpen = false;
  private timer = 0;
  link: Link = { state: "connecting" };

  constructor(private readonly changed: (link: Link) => void) {
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.hurry();
    });
  }

  /** Replaces what was watched before. */
  watch(watch: Watch, listener: Listener): void {
    this.watching = watch;
    this.listener = listener;
    if (this.socket?.readyState === WebSocket.OPEN) this.ask();
    else if (!this.socket) this.connect();
  }

  private connect(): void {
    clearTimeout(this.timer);
    this.become({ state: "connecting" });
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
    this.socket = socket;
    socket.onopen = () => {
      const again = this.everOpen;
      this.everOpen = true;
      this.failures = 0;
      this.become({ state: "open" });
      this.ask();
      if (again) this.listener?.reopened();
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
    if (this.watching) this.socket?.send(JSON.stringify({ watch: this.watching }));
  }

  private take(data: unknown): void {
    let message: Message;
    try {
      message = JSON.parse(String(data)) as Message;
    } catch {
      return;
    }
    this.listener?.message(message);
  }

  private become(link: Link): void {
    this.link = link;
    this.changed(link);
  }
}
