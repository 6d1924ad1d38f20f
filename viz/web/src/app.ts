// The page: reads the view from the URL, shows it, and keeps the two in step.

import { text } from "./dom";
import { ClusterPage } from "./cluster";
import { FleetPage } from "./fleet";
import { HostPage } from "./host";
import { Live, type Link } from "./live";
import { parse, print, type View } from "./view";
import * as theme from "./theme";

const main = document.querySelector("main")!;
const status = document.querySelector<HTMLElement>("#connection")!;
const announcer = document.querySelector<HTMLElement>("#announcer")!;

const live = new Live(connection);
let page: FleetPage | HostPage | ClusterPage | null = null;
let shown: View | null = null;
let countdown = 0;

theme.start(document.querySelector<HTMLButtonElement>("#theme")!, () => page instanceof HostPage && page.retheme());
addEventListener("hashchange", () => show(true));
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || !(page instanceof FleetPage)) return;
  if ((event.target as Element).closest("input, textarea, dialog")) return;
  event.preventDefault();
  page.focusFilter();
});
document.querySelector(".skip")!.addEventListener("click", (event) => {
  event.preventDefault();
  main.querySelector<HTMLElement>("h1")?.focus();
});
show(false);

function show(moved: boolean): void {
  const view = parse(location.hash);
  if (shown?.page === "host" && view.page === "host" && view.id === shown.id && page instanceof HostPage) {
    shown = view;
    page.navigate(view);
    return;
  }
  page?.stop();
  shown = view;
  document.title = `${{ fleet: "Fleet", host: "Host", cluster: "Cluster" }[view.page]} · Strobe`;
  const here = { fleet: "#/", host: "", cluster: "#/cluster" }[view.page];
  for (const link of document.querySelectorAll(".pages a")) {
    if (link.getAttribute("href") === here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  page = view.page === "cluster"
    ? new ClusterPage(live)
    : view.page === "fleet"
    ? new FleetPage(live, view.filter, (filter) => remember({ page: "fleet", filter }))
    : new HostPage(live, view, remember);
  main.replaceChildren(page.root);
  if (!moved) return;
  scrollTo(0, 0);
  main.querySelector<HTMLElement>("h1")?.focus({ preventScroll: true });
}

function remember(view: View): void {
  shown = view;
  history.replaceState(null, "", print(view));
}

function connection(link: Link): void {
  clearInterval(countdown);
  status.dataset["state"] = link.state;
  const words = { connecting: "Connecting", open: "Live", waiting: "Disconnected" }[link.state];
  const label = status.querySelector(".label")!;
  text(label, words);
  text(announcer, { connecting: "", open: "Connected. Values are live.", waiting: "Disconnected. Values stand still; trying again." }[link.state]);
  const banner = document.querySelector<HTMLElement>("#banner")!;
  banner.hidden = link.state === "open" || (link.state === "connecting" && banner.hidden);
  if (link.state !== "waiting") return;
  const tell = () => {
    const seconds = Math.max(1, Math.ceil((link.retryAt - Date.now()) / 1000));
    text(banner, `Strobe does not answer. What you see is the last that was known; next try in ${seconds} s.`);
  };
  tell();
  countdown = window.setInterval(tell, 1000);
}

