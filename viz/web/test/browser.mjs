// Real Chromium on the real pages: against the server at STROBE_URL, or else against the generated one.
// Every test also holds that nothing was asked of another origin, that no rule of the content security
// policy was broken, and that the console stayed free of errors.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createRequire } from "node:module";
import { hostPath, launch } from "./browser-kit.mjs";
import { start } from "./mock.mjs";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const real = process.env.STROBE_URL?.replace(/\/$/, "");
const LONG = { timeout: 15_000 };
const generated = { skip: real ? "needs the generated server" : false };

let mock;
let base;
let kit;

before(async () => {
  mock = real ? null : await start();
  base = real ?? mock.url;
  kit = await launch();
});

after(async () => {
  await kit?.close();
  await mock?.stop();
});

/** Runs `act` on a fresh page; `tolerate` names console errors that the test provokes. */
async function visit(path, act, { tolerate, axe, ...options } = {}) {
  const context = await kit.browser.newContext({ viewport: { width: 1280, height: 900 }, bypassCSP: axe ?? false, ...options });
  const page = await context.newPage();
  const faults = [];
  page.on("console", (message) => message.type() === "error" && !tolerate?.test(message.text()) && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(base) && !url.startsWith("data:")) faults.push(`asked ${url}`);
  });
  page.on("websocket", (socket) => socket.url().startsWith(base.replace("http", "ws")) || faults.push(`opened ${socket.url()}`));
  await page.addInitScript(() => addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`)));
  try {
    await page.goto(`${base}/${path}`);
    await act(page, context);
    assert.deepEqual(faults, []);
  } finally {
    await context.close();
  }
}

const host = (query) => hostPath(base, "db-primary", query);
const rows = (page) => page.locator(".fleet tbody tr");
const ready = async (page) => {
  await page.waitForSelector(".card canvas", LONG);
  await page.waitForFunction(() => !document.querySelector(".card[data-busy]"), null, LONG);
};

/** Whether the plot inside each card has ink of a line in it: colours, not greys. */
const inked = (page) => page.evaluate(async () => {
  const found = {};
  for (const card of document.querySelectorAll(".card")) {
    card.scrollIntoView({ block: "center" });
    await new Promise((resolve) => setTimeout(resolve, 120));
    const canvas = card.querySelector("canvas");
    const note = card.querySelector(".note");
    if (!canvas) {
      found[card.id] = note.hidden ? "nothing" : note.textContent;
      continue;
    }
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let ink = 0;
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 60 && Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 40) ink += 1;
    found[card.id] = note.hidden ? ink : note.textContent;
  }
  return found;
});

/** The ground shows through the stacked area at so many places between its ends. */
const holes = (page) => page.evaluate(() => {
  const canvas = document.querySelector("#chart-cpu canvas");
  const over = document.querySelector("#chart-cpu .u-over").getBoundingClientRect();
  const left = Math.round(over.left - canvas.getBoundingClientRect().left);
  const { data } = canvas.getContext("2d").getImageData(left, Math.round(over.height) - 6, Math.round(over.width), 1);
  const inked = Array.from({ length: data.length / 4 }, (_, i) => (Math.max(data[i * 4], data[i * 4 + 2]) - Math.min(data[i * 4], data[i * 4 + 2]) > 40 ? "x" : " ")).join("");
  return inked.trim().split(/ {4,}/).length - 1;
});

test("the fleet shows its hosts and values change without a reload", () => visit("#/", async (page) => {
  await rows(page).first().waitFor(LONG);
  const known = await (await fetch(`${base}/api/strobe/v1/hosts`)).json();
  assert.equal(await rows(page).count(), Math.min(200, known.filter((one) => ["fresh", "late", "lost"].includes(one.state)).length));
  await page.evaluate(() => (window.same = true));
  const before = await page.locator(".fleet tbody").innerText();
  await page.waitForFunction((old) => document.querySelector(".fleet tbody").innerText !== old, before, LONG);
  assert.equal(await page.evaluate(() => window.same), true);
  assert.match(await page.locator("#connection").innerText(), /Live/);
}));

test("lost and late hosts come first, and the filter narrows", generated, () => visit("#/", async (page) => {
  await rows(page).first().waitFor(LONG);
  assert.deepEqual((await page.locator(".host").allInnerTexts()).slice(0, 2), ["worker-12", "worker-11"]);
  await page.keyboard.press("/");
  await page.keyboard.type("db");
  assert.equal(await rows(page).count(), 2);
  assert.match(page.url(), /q=db/);
  await page.reload();
  await rows(page).first().waitFor(LONG);
  assert.equal(await rows(page).count(), 2);
  await page.locator("#filter").fill("no such host");
  await page.getByText("No host matches").waitFor();
}));

test("machines without an agent, and what checks say, stand below the hosts", generated, () => visit("#/", async (page) => {
  await page.waitForSelector(".machine-list li", LONG);
  const names = await page.locator(".machine-list li .machine-name > :first-child").allInnerTexts();
  assert.deepEqual(names, ["switch-1", "10.0.0.77", "old-mail"]);
  assert.match(await page.locator(".machines .explain").innerText(), /^3 machines are known besides what agents report, 1 is down\./);
  assert.deepEqual(await page.locator(".machine-list li").first().locator(".badge").allInnerTexts(), ["tcp:22 up", "http:80/ down"]);
}));

test("the host page draws every chart, live", async () => visit(await host(), async (page) => {
  await ready(page);
  const found = await inked(page);
  assert.equal(Object.keys(found).filter((id) => !id.startsWith("chart-burst-")).length, 14);
  for (const [id, ink] of Object.entries(found)) {
    if (id.startsWith("chart-burst-")) continue;
    // A real machine may have no swap or no disk and then says so; the generated one has everything.
    if (typeof ink === "string" && real) assert.match(ink, /^(This|No)/, id);
    else assert.ok(ink > 100, `${id}: ${ink}`);
  }
  await page.locator("#chart-cpu").scrollIntoViewIfNeeded();
  const summary = await page.locator("#chart-cpu .legend").innerText();
  await page.waitForFunction((old) => document.querySelector("#chart-cpu .legend").innerText !== old, summary, LONG);
  assert.match(await page.locator("#chart-cpu-summary").textContent(), /5 minutes up to .*System now/);
}));

test("who is busy is named, with all others as one, wide and narrow", generated, async () => {
  for (const width of [1280, 360]) {
    await visit(await host(), async (page) => {
      for (const kind of ["process", "cgroup"]) {
        const table = page.locator(`table[aria-labelledby=busy-${kind}]`);
        await table.waitFor(LONG);
        await table.scrollIntoViewIfNeeded();
        assert.equal(await table.locator("tbody tr").count(), 11, kind);
        assert.match(await table.locator("tbody tr").last().innerText(), /^All others/);
        const shares = (await table.locator("tbody tr:not([data-others]) td:nth-of-type(2)").allInnerTexts()).map(parseFloat);
        assert.deepEqual(shares, [...shares].sort((a, b) => b - a), "the busiest first");
        assert.ok(shares[0] > 100, "of one core, so more than all of one");
        const fits = await table.evaluate((e) => e.scrollWidth <= e.clientWidth && e.getBoundingClientRect().right <= innerWidth);
        assert.ok(fits, `${kind} fits ${width}`);
        const paths = await table.locator(".spark-line").evaluateAll((lines) => lines.filter((line) => line.getAttribute("d").length > 20).length);
        assert.equal(paths, 11);
      }
      assert.match(await page.locator("table[aria-labelledby=busy-process]").innerText(), /<script> \(959\)/);
    }, { viewport: { width, height: 900 } });
  }
});

test("an agent that names nobody is said to, and how it would", generated, async () => {
  mock.state.nameless = true;
  try {
    await visit(await host(), async (page) => {
      await page.getByText("It does with --collector.process").waitFor(LONG);
      await page.getByText("It does with --collector.cgroup").waitFor(LONG);
    });
  } finally {
    mock.state.nameless = false;
  }
});

test("dragging zooms every chart, the URL holds it, and a reload restores it", async () => visit(await host("range=1m"), async (page) => {
  await ready(page);
  const over = page.locator("#chart-cpu .u-over");
  const box = await over.boundingBox();
  await page.mouse.move(box.x + box.width * 0.4, box.y + 50);
  const at = await page.locator(".at").textContent();
  assert.match(at, /at \d\d:\d\d:\d\d/);
  const line = (id) => page.locator(`#${id} .u-cursor-x`).evaluate((e) => Math.round(new DOMMatrix(getComputedStyle(e).transform).e));
  const own = await line("chart-cpu");
  assert.ok(own > 10 && Math.abs(own - (await line("chart-load"))) <= 2, "cursors stand in step");
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.7, box.y + 60, { steps: 6 });
  await page.mouse.up();
  await page.waitForURL(/from=\d+&to=\d+/, LONG);
  await ready(page);
  const [, from, to] = /from=(\d+)&to=(\d+)/.exec(page.url());
  const share = (to - from) / 60_000;
  assert.ok(share > 0.25 && share < 0.35, `zoomed to ${share} of the window`);
  for (const id of ["chart-cpu", "chart-memory", "chart-network"]) {
    const words = page.locator(`#${id}`);
    await words.scrollIntoViewIfNeeded();
    await page.waitForTimeout(200);
    const shown = await page.evaluate((id) => document.querySelector(`#${id} canvas`).toDataURL(), id);
    assert.ok(shown.length > 1000);
  }
  const when = await page.locator(".when").innerText();
  await page.reload();
  await ready(page);
  assert.equal(await page.locator(".when").innerText(), when);
  assert.equal(await page.locator(".pause").innerText(), "Back to live");
  await page.locator("#chart-cpu").scrollIntoViewIfNeeded();
  await page.locator("#chart-cpu .u-over").dblclick();
  await page.waitForFunction(() => !location.hash.includes("from="), null, LONG);
}));

test("pause holds the window still and live moves it again", async () => visit(await host(), async (page) => {
  await ready(page);
  const when = () => page.locator(".when").innerText();
  const first = await when();
  await page.waitForFunction((old) => document.querySelector(".when").innerText !== old, first, LONG);
  await page.getByRole("button", { name: "Pause" }).click();
  await ready(page);
  const held = await when();
  const picture = () => page.locator("#chart-cpu canvas").evaluate((c) => c.toDataURL());
  const before = await picture();
  await page.waitForTimeout(2500);
  assert.equal(await when(), held);
  assert.equal(await picture(), before);
  await page.getByRole("button", { name: "Back to live" }).click();
  await page.waitForFunction((old) => document.querySelector(".when").innerText !== old, held, LONG);
}));

test("the page works from the keyboard alone", async () => visit("#/", async (page) => {
  await rows(page).first().waitFor(LONG);
  await page.keyboard.press("/");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "host");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Home");
  const name = await page.evaluate(() => document.activeElement.textContent);
  await page.keyboard.press("Enter");
  await page.waitForFunction((name) => document.querySelector("h1").textContent === name, name, LONG);
  const reach = async (label) => {
    for (let i = 0; i < 40; i += 1) {
      await page.keyboard.press("Tab");
      if ((await page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent)) === label) return;
    }
    assert.fail(`Tab never reaches ${label}`);
  };
  await reach("15m: the last 15 minutes");
  await page.keyboard.press("Enter");
  await page.waitForURL(/range=15m/);
  await reach("Zoom in");
  await page.keyboard.press("Enter");
  await page.waitForURL(/from=\d+/);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid");
  await page.goBack();
  await page.waitForFunction(() => location.hash.startsWith("#/") && !location.hash.includes("host"), null, LONG);
}));

test("silence is shown as a hole, and idle interfaces are named but not drawn", generated, async () => visit(await host("range=1m"), async (page) => {
  await ready(page);
  await page.locator("#chart-network").scrollIntoViewIfNeeded();
  await page.getByText("2 more that are idle or nearly so are not drawn").waitFor(LONG);
  mock.state.mute = true;
  await page.waitForTimeout(5500);
  mock.state.mute = false;
  const when = await page.locator(".when").innerText();
  await page.waitForFunction((old) => document.querySelector(".when").innerText !== old, when, LONG);
  await page.waitForTimeout(5000);
  await page.locator("#chart-cpu").scrollIntoViewIfNeeded();
  await page.waitForTimeout(300);
  assert.equal(await holes(page), 1);
}));

test("a page that missed rows gets another snapshot, which closes the hole", generated, async () => visit(await host("range=1m"), async (page) => {
  await ready(page);
  mock.state.mute = true;
  await page.waitForTimeout(5500);
  mock.state.mute = false;
  mock.again();
  const when = await page.locator(".when").innerText();
  await page.waitForFunction((old) => document.querySelector(".when").innerText !== old, when, LONG);
  await page.locator("#chart-cpu").scrollIntoViewIfNeeded();
  await page.waitForTimeout(300);
  assert.equal(await holes(page), 0);
}));

test("everything a chart draws comes by its one socket", generated, async () => visit(await host("range=1h"), async (page) => {
  const asked = [];
  page.on("request", (request) => asked.push(new URL(request.url()).pathname));
  await ready(page);
  await page.getByRole("button", { name: "15m: the last 15 minutes" }).click();
  await page.waitForURL(/range=15m/, LONG);
  await ready(page);
  assert.deepEqual([...new Set(asked)].filter((path) => path.startsWith("/api/") && !["/api/strobe/v1/hosts", "/api/strobe/v1/bursts", "/api/v1/query_range"].includes(path)), []);
}));

test("a burst is listed, opened at 10 ms, zoomed below a second, and closed", generated, async () => visit(await host(), async (page) => {
  const first = page.locator(".burst-list a").first();
  await first.waitFor(LONG);
  assert.match(await first.innerText(), /I\/O pressure[\s\S]*postgres 97\.0 %/);
  assert.equal(await page.locator(".burst").isVisible(), false);
  await first.click();
  await page.waitForURL(/burst=\d+/, LONG);
  await page.waitForSelector("#chart-burst-pressure canvas", LONG);
  const found = Object.entries(await inked(page)).filter(([id]) => id.startsWith("chart-burst-"));
  assert.equal(found.length, 6);
  for (const [id, ink] of found) assert.ok(ink > 100, `${id}: ${ink}`);
  assert.match(await page.locator(".users").innerText(), /postgres \(4711\)\s+0\.97 CPUs[\s\S]*<script> \(9001\)[\s\S]*postgresql\.service\s+1\.31 CPUs/);
  // A hundredth of a second is told apart.
  const over = page.locator("#chart-burst-cpu .u-over");
  await over.scrollIntoViewIfNeeded();
  const drag = async (from, to) => {
    const box = await over.boundingBox();
    await page.mouse.move(box.x + box.width * from, box.y + 50);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * to, box.y + 60, { steps: 6 });
    await page.mouse.up();
    await page.waitForTimeout(200);
  };
  await drag(0.4, 0.44);
  await drag(0.4, 0.5);
  const box = await over.boundingBox();
  await page.mouse.move(box.x + box.width * 0.5, box.y + 50);
  assert.match(await page.locator(".burst .instant").innerText(), /at \d\d:\d\d:\d\d\.\d{3}/);
  const at = new Set();
  for (const part of [0.2, 0.35, 0.5, 0.65, 0.8]) {
    await page.mouse.move(box.x + box.width * part, box.y + 50);
    at.add(await page.locator("#chart-burst-cpu .legend").innerText());
  }
  assert.ok(at.size > 1, "samples differ within a fraction of a second");
  assert.match(await page.locator("#chart-burst-cpu-summary").textContent(), /User now/);
  const url = page.url();
  await page.reload();
  await page.waitForSelector("#chart-burst-cpu canvas", LONG);
  assert.equal(page.url(), url);
  await page.getByRole("link", { name: "Close" }).click();
  await page.waitForFunction(() => !location.hash.includes("burst=") && document.querySelector(".burst").hidden, null, LONG);
}));

test("a burst that cannot be read says so", generated, async () => {
  mock.state.fail = true;
  try {
    await visit(await host("range=5m&burst=1000"), async (page) => {
      await page.getByText("The burst could not be read: there is none of this moment").waitFor(LONG);
    });
  } finally {
    mock.state.fail = false;
  }
});

test("a custom window can be typed", async () => visit(await host(), async (page) => {
  await ready(page);
  await page.getByRole("button", { name: "Custom… window of time" }).click();
  const to = new Date(Date.now() - 60_000);
  const text = (date) => new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
  await page.locator("#to").fill(text(new Date(to - 600_000)));
  await page.locator("#from").fill(text(to));
  await page.locator("dialog .primary").click();
  await page.getByText("The start has to lie before the end.").waitFor();
  await page.locator("#from").fill(text(new Date(to - 900_000)));
  await page.locator("dialog .primary").click();
  await page.waitForURL(/from=\d+/);
  const [, from, end] = /from=(\d+)&to=(\d+)/.exec(page.url());
  assert.equal(end - from, 300_000);
}));

test("360 pixels wide, by touch: nothing sticks out and a finger zooms", async () => {
  const narrow = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true };
  const fits = (page) => page.evaluate(() => document.scrollingElement.scrollWidth <= innerWidth);
  await visit("#/", async (page) => {
    await rows(page).first().waitFor(LONG);
    assert.ok(await fits(page), "fleet");
    await rows(page).first().tap();
    await page.waitForURL(/#\/host\//);
  }, narrow);
  await visit("#/cluster", async (page) => {
    await page.locator(".broker .badge").first().waitFor(LONG);
    assert.ok(await fits(page), "cluster");
  }, narrow);
  await visit(await host(), async (page, context) => {
    await ready(page);
    assert.ok(await fits(page), "host");
    if (!real) {
      await page.locator(".burst-list a").first().tap();
      await page.waitForSelector("#chart-burst-cpu canvas", LONG);
      assert.ok(await fits(page), "burst");
    }
    await page.locator("#chart-cpu .u-over").scrollIntoViewIfNeeded();
    const box = await page.locator("#chart-cpu .u-over").boundingBox();
    const session = await context.newCDPSession(page);
    const send = (type, x) => session.send("Input.dispatchTouchEvent", { type, touchPoints: x === null ? [] : [{ x: box.x + box.width * x, y: box.y + 60 }] });
    await send("touchStart", 0.3);
    for (const x of [0.4, 0.5, 0.6, 0.7]) await send("touchMove", x);
    await send("touchEnd", null);
    await page.waitForURL(/from=\d+&to=\d+/, LONG);
  }, narrow);
});

test("no word of the fleet lies on another, at any width", generated, () => visit("#/", async (page) => {
  await rows(page).first().waitFor(LONG);
  for (const width of [1440, 1281, 1280, 1000, 901, 900, 700, 400, 360, 320]) {
    await page.setViewportSize({ width, height: 900 });
    const clashes = await page.evaluate(() => [...document.querySelectorAll(".fleet tbody tr")].flatMap((row) => {
      const place = (e) => {
        const range = document.createRange();
        range.selectNodeContents(e);
        return range.getBoundingClientRect();
      };
      const boxes = [...row.querySelectorAll(".badge, .number")].filter((e) => e.textContent).map((e) => [e.textContent, place(e)]);
      return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1).map(([b]) => `${a} on ${b}`));
    }));
    assert.deepEqual(clashes, [], `at ${width}`);
    assert.ok(await page.evaluate(() => document.scrollingElement.scrollWidth <= innerWidth), `sticks out at ${width}`);
  }
}));

test("light and dark follow the system and the person, and the choice is kept", () => visit("#/", async (page) => {
  await rows(page).first().waitFor(LONG);
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await ground();
  await page.emulateMedia({ colorScheme: "light" });
  const light = await ground();
  assert.notEqual(dark, light);
  await page.locator("#theme").click();
  assert.equal(await ground(), dark);
  await page.reload();
  assert.equal(await ground(), dark);
  await page.locator("#theme").click();
  assert.equal(await ground(), light);
}, { colorScheme: "dark" }));

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 360]) {
    test(`axe finds nothing critical or serious, ${colorScheme} at ${width}`, async () => {
      for (const path of ["#/", "#/cluster", await host()]) {
        await visit(path, async (page) => {
          if (path === "#/cluster") await page.locator(".broker .badge").first().waitFor(LONG);
          else await (path === "#/" ? rows(page).first().waitFor(LONG) : ready(page));
          if (path.startsWith("#/host") && !real) {
            await page.locator(".burst-list a").first().click();
            await page.waitForSelector("#chart-burst-cpu canvas", LONG);
          }
          await page.addScriptTag({ path: AXE });
          const { violations } = await page.evaluate(() => window.axe.run());
          const bad = violations.filter(({ impact }) => impact === "critical" || impact === "serious");
          assert.deepEqual(bad.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 120)} ${node.any[0]?.message ?? ""}`).join(" | ")}`), []);
        }, { axe: true, colorScheme, viewport: { width, height: 800 } });
      }
    });
  }
}

test("the cluster page tells of brokers, shards and what is wrong, and goes on by itself", generated, async () => {
  await visit("#/", async (page) => {
    await page.getByText("Broker 3 (127.0.0.1:7803) does not answer: its hosts").waitFor(LONG);
    await page.getByRole("link", { name: "Cluster" }).click();
    await page.getByRole("heading", { name: "Broker 3" }).waitFor(LONG);
    await page.getByText("Broker 3 (127.0.0.1:7803) is not heard of").waitFor(LONG);
    assert.equal(await page.locator(".shards i").count(), 256);
    assert.equal(await page.locator(".broker .badge").allTextContents().then((all) => all.join()), "up,up,down");
    await page.waitForFunction(() => /\/s/.test(document.querySelector(".figures").textContent), null, LONG);
    await page.waitForFunction(() => /CPU[0-9.]+ % of a coreMemory[0-9.]+ MiB/.test(document.querySelector(".broker").textContent), null, LONG);
    mock.state.fail = true;
    await page.getByText("No news: the store is not ready").waitFor(LONG);
    mock.state.fail = false;
    await page.waitForFunction(() => document.querySelector(".cluster .wrong").hidden, null, LONG);
  }, { tolerate: /503/ });
  mock.state.alone = true;
  await visit("#/cluster", (page) => page.getByText("This broker is by itself").waitFor(LONG));
  mock.state.alone = false;
});

test("a lost connection is said, and mended by itself", generated, () => visit("#/", async (page) => {
  await rows(page).first().waitFor(LONG);
  mock.state.refuse = true;
  mock.drop();
  await page.getByText("Strobe does not answer").waitFor(LONG);
  assert.match(await page.locator("#announcer").textContent(), /Disconnected/);
  mock.state.refuse = false;
  await page.waitForFunction(() => document.querySelector("#connection").dataset.state === "open", null, LONG);
  assert.equal(await page.locator("#banner").isVisible(), false);
}, { tolerate: /WebSocket|ERR_/ }));

test("an empty fleet, an unknown host and failing history are told in words", generated, async () => {
  mock.state.empty = true;
  await visit("#/", (page) => page.getByText("No host has reported yet").waitFor(LONG));
  mock.state.empty = false;
  mock.state.trouble = "the broker is not connected: the token is not its own";
  await visit("#/", async (page) => {
    await page.getByText("No news: the broker is not connected: the token is not its own.").waitFor(LONG);
    assert.equal(await page.getByText("No host has reported yet").isVisible(), false);
    mock.state.trouble = null;
    await rows(page).first().waitFor(LONG);
    assert.equal(await page.getByText("No news").isVisible(), false);
  });
  await visit("#/host/ffff", (page) => page.getByText("No host has this name here").waitFor(LONG));
  mock.state.fail = true;
  try {
    await visit(await host(), async (page) => {
      await page.getByText("the store is not ready").first().waitFor(LONG);
      mock.state.fail = false;
      await ready(page);
      assert.equal(await page.getByText("the store is not ready").count(), 0, "history is asked for again by itself");
    });
  } finally {
    mock.state.fail = false;
  }
});
