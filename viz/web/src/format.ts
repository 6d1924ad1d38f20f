// Numbers as people read them. Every function takes null for "not known" and answers with a dash.

export type Unit = "percent" | "bytes" | "bytes/s" | "per second" | "number" | "packets/s";

const DASH = "–";
const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const THOUSANDS = ["", "k", "M", "G", "T"];

/** `value` in `unit`; the sign is dropped where a chart mirrors it below zero. */
export function format(value: number | null | undefined, unit: Unit): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  switch (unit) {
    case "percent":
      return percent(value);
    case "bytes":
      return scaled(value, 1024, BINARY);
    case "bytes/s":
      return `${scaled(value, 1024, BINARY)}/s`;
    case "per second":
      return `${scaled(value, 1000, THOUSANDS)}/s`;
    case "packets/s":
      return `${scaled(value, 1000, THOUSANDS)}/s`;
    case "number":
      return Math.abs(value) < 1000 ? digits(value) : scaled(value, 1000, THOUSANDS);
  }
}

/** A share of one as a percentage: `0.4217` is `42.2 %`. */
export function percent(share: number | null | undefined): string {
  if (share === null || share === undefined || !Number.isFinite(share)) return DASH;
  const value = share * 100;
  const places = Math.abs(value) < 99.95 ? 1 : 0;
  return `${value.toFixed(places).replace("-0.0", "0.0")} %`;
}

/** How long ago, in the largest unit that keeps it short. */
export function ago(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 2) return "now";
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

/** A span of time in words: `90000` is `1.5 minutes`. */
export function span(ms: number): string {
  const steps: [number, string][] = [[86_400_000, "day"], [3_600_000, "hour"], [60_000, "minute"], [1000, "second"]];
  const [size, name] = steps.find(([size]) => size <= ms) ?? [1000, "second"];
  const count = Math.round((ms / size) * 10) / 10;
  return `${count} ${name}${count === 1 ? "" : "s"}`;
}

/** Clock time for an axis or a cursor; how much of it is said depends on the span looked at. */
export function clock(seconds: number, spanSeconds: number): string {
  const date = new Date(seconds * 1000);
  const two = (n: number) => String(n).padStart(2, "0");
  const time = `${two(date.getHours())}:${two(date.getMinutes())}`;
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const ms = Math.round(seconds * 1000) % 1000;
  if (spanSeconds < 5 && ms !== 0) return `:${two(date.getSeconds())}.${String(ms).padStart(3, "0").replace(/0+$/, "")}`;
  if (spanSeconds <= 1800) return `${time}:${two(date.getSeconds())}`;
  if (spanSeconds <= 86_400) return time;
  return `${day.slice(5)} ${time}`;
}

/** Date and time to the second, for people. */
export function moment(ms: number): string {
  const date = new Date(ms);
  const two = (n: number) => String(n).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** Date and time to the millisecond. */
export function instant(ms: number): string {
  return `${moment(ms)}.${String(Math.round(ms) % 1000).padStart(3, "0")}`;
}

function scaled(value: number, base: number, names: string[]): string {
  let size = Math.abs(value);
  let name = 0;
  while (size >= base * 0.9995 && name + 1 < names.length) {
    size /= base;
    name += 1;
  }
  const text = names === BINARY && name === 0 ? String(Math.round(size)) : digits(size);
  return `${value < 0 ? "-" : ""}${text} ${names[name] ?? ""}`.trim();
}

function digits(value: number): string {
  const size = Math.abs(value);
  if (size >= 99.95 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(size >= 9.995 ? 1 : 2);
}

/** For an axis: no digits behind the point that say nothing. */
export function tick(value: number, unit: Unit): string {
  return format(Math.abs(value), unit).replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
}

/** Whole per cent, where the eye compares rows and tenths only flicker. */
export function whole(share: number | null | undefined): string {
  return share === null || share === undefined || !Number.isFinite(share) ? DASH : `${Math.round(share * 100)} %`;
}
