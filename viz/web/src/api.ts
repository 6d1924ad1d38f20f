// What is asked over HTTP: the facts about the hosts. Numbers come by the live stream.

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

export async function hosts(signal?: AbortSignal): Promise<HostInfo[]> {
  const body = await ask("/api/strobe/v1/hosts", signal);
  if (!Array.isArray(body)) throw new Error("The list of hosts came back in a form this page does not know.");
  return body as HostInfo[];
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
