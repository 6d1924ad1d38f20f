// What is asked over HTTP: the facts about the hosts, and bursts. Other numbers come by the live stream.

import type { Window } from "./view";

export interface HostInfo {
  /** Machines without an agent have none. */
  id?: string;
  instance: string;
  job: string;
  state: "fresh" | "late" | "lost" | "known" | "enrolled" | "retired";
  source?: string;
  address?: string;
  group?: string;
  tags?: string[];
  checks?: { check: string; state: "up" | "failing" | "down" }[];
  version: string | null;
  kernel: string | null;
  interval_ms: number | null;
  first_seen_ms: number | null;
  last_seen_ms: number | null;
}

export async function hosts(signal?: AbortSignal): Promise<HostInfo[]> {
  const body = await ask("/api/strobe/v1/hosts", signal);
  if (!Array.isArray(body)) throw new Error("The list of hosts came back in a form this page does not know.");
  return body as HostInfo[];
}

export interface Burst {
  instance: string;
  at_ms: number;
  from_ms: number;
  to_ms: number;
  reason: string;
  processes: { pid: string; comm: string; cpus: number }[];
  cgroups: { cgroup: string; cpus: number }[];
}

/** A host's bursts, newest first: of the last day, or of a time. */
export async function bursts(instance: string, fromMs?: number, toMs?: number): Promise<Burst[]> {
  const query = new URLSearchParams({ host: instance });
  if (fromMs !== undefined) query.set("start", String(fromMs / 1000));
  if (toMs !== undefined) query.set("end", String(toMs / 1000));
  const body = await ask(`/api/strobe/v1/bursts?${query}`);
  if (!Array.isArray(body)) throw new Error("The list of bursts came back in a form this page does not know.");
  return body as Burst[];
}

/** A series as it is stored: seconds since 1970, and values. */
export interface Raw {
  metric: string;
  labels: Record<string, string>;
  times: number[];
  values: number[];
}

/** Every sample of a host's series in a window; `metrics` is a regular expression. */
export async function raw(metrics: string, instance: string, { from, to }: Window): Promise<Raw[]> {
  const seconds = Math.ceil((to - from) / 1000) + 1;
  const query = new URLSearchParams({ query: `{__name__=~${JSON.stringify(metrics)},instance=${JSON.stringify(instance)}}[${seconds}s]`, time: String(to / 1000) });
  return matrix(await ask(`/api/v1/query?${query}`));
}

/** What a PromQL expression is in a window, every `step` seconds. */
export async function range(expression: string, { from, to }: Window, step: number): Promise<Raw[]> {
  const query = new URLSearchParams({ query: expression, start: String(from / 1000), end: String(to / 1000), step: String(step) });
  return matrix(await ask(`/api/v1/query_range?${query}`));
}

function matrix(body: unknown): Raw[] {
  const { data } = body as { data?: { result?: { metric: Record<string, string>; values: [number, string][] }[] } };
  return (data?.result ?? []).map(({ metric, values }) => ({
    metric: metric["__name__"] ?? "", labels: metric, times: values.map(([time]) => time), values: values.map(([, value]) => Number(value)),
  }));
}

/** What a broker says of itself; null where it did not answer. */
export interface BrokerVitals {
  version: string;
  now_ms: number;
  sessions: number;
  connections: number;
  frames: number;
  ack_ms_p99: number | null;
  in_flight: number;
  wal_bytes: number;
  segment_bytes: number;
  storing: boolean;
  cpu_ms: number;
  memory_bytes: number;
  redis: { connected: boolean; lag_ms: number; lag_segments: number } | null;
}

export interface Member {
  id: number | null;
  address: string;
  stage?: "learner" | "voter" | "draining";
  down?: boolean;
  shards?: number;
  leader?: boolean;
  me: boolean;
  vitals: BrokerVitals | null;
  hosts: { fresh: number; late: number; lost: number; names: string[] };
}

/** How the cluster stands; `cluster` is null of a broker by itself, which is then the only member. */
export interface ClusterState {
  cluster: string | null;
  broker?: number;
  term?: number;
  committed?: number;
  members: Member[];
  shards?: number[];
  findings: { kind: string; why: string; runbook: string }[];
}

/** A sentence for each broker that does not answer: of hosts that only it has heard of nobody can tell. */
export function silent(state: ClusterState): string[] {
  return state.members.filter((member) => !member.vitals && state.cluster !== null).map(({ id, address }) =>
    `Broker ${id} (${address}) does not answer: its hosts are as it told them last, and some may be missing here.`);
}

export async function cluster(signal: AbortSignal): Promise<ClusterState> {
  const body = (await ask("/api/strobe/v1/cluster", signal)) as ClusterState;
  if (!Array.isArray(body?.members)) throw new Error("The state of the cluster came back in a form this page does not know.");
  return body;
}

async function ask(path: string, signal?: AbortSignal): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(path, { headers: { accept: "application/json" }, ...(signal ? { signal } : {}) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("Strobe does not answer. It may be stopped, or the network is down.");
  }
  const text = await response.text();
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Error(`Strobe answered ${response.status} with something that is not JSON.`);
  }
  if (!response.ok) throw new Error((body as { error?: string }).error ?? `Strobe answered ${response.status}.`);
  return body;
}
