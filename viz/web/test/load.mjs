// Bundles one pure module of src/ in memory, so that node can test it as it is shipped.
import { build } from "esbuild";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const src = join(dirname(fileURLToPath(import.meta.url)), "../src");

export async function load(name) {
  const { outputFiles } = await build({ entryPoints: [join(src, `${name}.ts`)], bundle: true, format: "esm", write: false, logLevel: "error" });
  return import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].text).toString("base64")}`);
}
