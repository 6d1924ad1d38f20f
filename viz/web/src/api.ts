// What is asked over HTTP: the hosts, and history as Prometheus answers it.

export interface HostInfo {
  id: string;
  instance: string;
  job: string;
  state: "fresh" | "late" | "lost";
  version: string | null;
  kernel: string | null;
  interval_ms: number | null;
  first_seen_ms: number | null;
  last_seen_ms: number | null;
}

export interface Series {
  labels: Record<string, string>;
  points: [number, number][];
}

export interface RangeQuery {
  query: string;
  from: number;
  to: number;
  step: number;
}

const AT_ONCE = 4;
let running = 0;
const waiting: (() => void)[] = [];

export async function hosts(signal?: AbortSignal): Promise<HostInfo[]> {
  const body = await ask("/api/strobe/v1/hosts", signal);
  if (!Array.isArray(body)) throw new Error("The list of hosts came back in a form this page does not know.");
  return body as HostInfo[];
}

/** A range query; times in ms, answers in seconds as the API has them. */
export async function range({ query, from, to, step }: RangeQuery, signal?: AbortSignal): Promise<Series[]> {
  const params = new URLSearchParams({
    query,
    start: String(from / 1000),
    end: String(to / 1000),
    step: String(step / 1000),
  });
  await turn();
  try {
    const body = (await ask(`/api/v1/query_range?${params}`, signal)) as Answer;
    if (body.status !== "success") throw new Error(body.error ?? "The query failed without saying why.");
    return (body.data?.result ?? []).map(({ metric, values }) => ({
      labels: metric,
      points: values.map(([at, value]) => [at, Number(value)]),
    }));
  } finally {
    running -= 1;
    waiting.shift()?.();
  }
}

interface Answer {
  status: string;
  error?: string;
  data?: { result: { metric: Record<string, string>; values: [number, string][] }[] };
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
  if (!response.ok) throw new Error((body as Answer).error ?? `Strobe answered ${response.status}.`);
  return body;
}

/** Browsers open six connections to a server; some are left free for what the person does next. */
async function turn(): Promise<void> {
  if (running >= AT_ONCE) await new Promise<void>((resolve) => waiting.push(resolve));
  running += 1;
}
