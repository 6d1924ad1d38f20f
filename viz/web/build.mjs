// Bundles the dashboard into dist/, each file with a .gz twin, and refuses to exceed the budget of the
// first load. `node build.mjs --watch` builds again on change, without the twins.
import { build, context } from "esbuild";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { gzipSync, constants } from "node:zlib";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const FIRST_LOAD_BYTES_MAX = 80 * 1024;
const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "dist");

/** CSS has no way to name a set of declarations: `@dark;` stands for those of dark.css. */
const dark = {
  name: "dark",
  setup: ({ onLoad }) => onLoad({ filter: /\/style\.css$/ }, ({ path }) => {
    const [style, set] = [path, join(here, "dark.css")].map((file) => readFileSync(file, "utf8"));
    return { contents: style.replaceAll("@dark;", set), loader: "css", watchFiles: [path, join(here, "dark.css")] };
  }),
};

const options = {
  entryPoints: { app: join(here, "src/app.ts"), style: join(here, "style.css") },
  outdir: dist,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome109", "firefox115", "safari16"],
  legalComments: "none",
  logLevel: "warning",
  plugins: [dark],
};

rmSync(dist, { recursive: true, force: true });
mkdirSync(dist, { recursive: true });
for (const name of ["index.html", "icon.svg"]) copyFileSync(join(here, name), join(dist, name));

if (process.argv.includes("--watch")) {
  await (await context(options)).watch();
} else {
  await build(options);
  compress();
}

function compress() {
  let total = 0;
  for (const name of readdirSync(dist).sort()) {
    const bytes = readFileSync(join(dist, name));
    const packed = gzipSync(bytes, { level: constants.Z_BEST_COMPRESSION });
    writeFileSync(join(dist, `${name}.gz`), packed);
    total += packed.length;
    console.log(`${name.padEnd(12)} ${String(bytes.length).padStart(7)} B  ${String(packed.length).padStart(6)} B gzip`);
  }
  console.log(`first load   ${String(total).padStart(17)} B gzip of ${FIRST_LOAD_BYTES_MAX} allowed`);
  if (total > FIRST_LOAD_BYTES_MAX) {
    console.error("The first load is over its budget: make it smaller before it ships.");
    process.exit(1);
  }
}
