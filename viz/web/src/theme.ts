// Light or dark: as the system says, unless the person said otherwise here.

type Choice = "system" | "light" | "dark";

const KEY = "strobe-theme";
const NEXT: Record<Choice, Choice> = { system: "dark", dark: "light", light: "system" };
const NAMES: Record<Choice, string> = { system: "System", light: "Light", dark: "Dark" };

export function start(button: HTMLButtonElement, changed: () => void): void {
  let choice = read();
  const apply = () => {
    if (choice === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = choice;
    button.querySelector(".label")!.textContent = NAMES[choice];
    button.setAttribute("aria-label", `Colours: ${NAMES[choice]}. Change to ${NAMES[NEXT[choice]]}`);
  };
  apply();
  button.addEventListener("click", () => {
    choice = NEXT[choice];
    write(choice);
    apply();
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

function read(): Choice {
  try {
    const kept = localStorage.getItem(KEY);
    return kept === "light" || kept === "dark" ? kept : "system";
  } catch {
    return "system";
  }
}

function write(choice: Choice): void {
  try {
    if (choice === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, choice);
  } catch {
    // Storage may be switched off; the choice then lasts as long as the page.
  }
}
