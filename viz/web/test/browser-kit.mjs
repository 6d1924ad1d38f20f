// Starting Chromium so that it stays quiet and leaves nothing behind.
import { chromium } from "playwright-core";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

export async function launch() {
  const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((path) => path && existsSync(path));
  if (!executablePath) throw new Error("Chromium is not installed: install it, or name it in CHROMIUM.");
  const dir = mkdtempSync(join(tmpdir(), "strobe-chromium-"));
  // Chromium keeps its caches under HOME as well; a home of its own makes every run the first.
  const browser = await chromium.launch({ executablePath, args: FLAGS, env: { ...process.env, HOME: dir, XDG_CONFIG_HOME: dir, XDG_CACHE_HOME: dir } });
  return {
    browser,
    close: async () => {
      await browser.close();
      rmSync(dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
    },
  };
}

/** The page of the host named `instance`, or of the first one. */
export async function hostPath(base, instance, query = "range=5m") {
  const hosts = await (await fetch(`${base}/api/strobe/v1/hosts`)).json();
  const host = hosts.find((h) => h.instance === instance) ?? hosts.find((h) => h.state === "fresh") ?? hosts[0];
  if (!host) throw new Error(`${base} knows no host yet`);
  return `#/host/${host.id}?${query}`;
}
