// Pictures of every page, wide and narrow, light and dark: `node test/screens.mjs DIR` (STROBE_URL for a
// real server). They are for looking at.
import { mkdirSync } from "node:fs";
import { launch, hostPath } from "./browser-kit.mjs";
import { start } from "./mock.mjs";

const dir = process.argv[2] ?? "/tmp/strobe-screens";
mkdirSync(dir, { recursive: true });
const mock = process.env.STROBE_URL ? null : await start();
const base = process.env.STROBE_URL ?? mock.url;
const { browser, close } = await launch();
for (const scheme of ["light", "dark"]) {
  for (const width of [1440, 360]) {
    const context = await browser.newContext({ viewport: { width, height: 800 }, colorScheme: scheme, hasTouch: width < 500 });
    const page = await context.newPage();
    await page.goto(`${base}/#/`);
    await page.waitForSelector(".fleet tbody tr");
    await page.waitForTimeout(2500);
    await page.screenshot({ path: `${dir}/fleet-${width}-${scheme}.png`, fullPage: true });
    await page.goto(`${base}/${await hostPath(base, process.env.STROBE_HOST ?? "db-primary")}`);
    await page.waitForSelector(".card canvas");
    await page.waitForTimeout(2500);
    // Cards draw when they come into sight: a tall window brings all of them.
    await page.setViewportSize({ width, height: width < 500 ? 5600 : 2900 });
    await page.waitForTimeout(1800);
    await page.screenshot({ path: `${dir}/host-${width}-${scheme}.png` });
    await context.close();
  }
}
await close();
await mock?.stop();
console.log(dir);
