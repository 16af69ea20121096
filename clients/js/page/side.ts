// Beside the table, or at the bottom of a small window: the event that was selected, and what was
// missed.

import type { Gap } from "../src/index.js";
import { showReason, showTime } from "./format.js";
import type { Quote } from "./quote.js";

const GAPS_SHOWN = 50;
const CHARS_SHOWN = 20_000;

const part = <T extends HTMLElement>(selector: string): T => document.querySelector(selector) as T;

function element(name: string, text: string): HTMLElement {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

export function createSide(closed: () => void) {
  const side = part("#side");
  const details = part("#details");
  const title = part("#details h2");
  const facts = part("#details dl");
  const data = part("#details pre");
  const gaps = part("#gaps");
  const list = part<HTMLOListElement>("#gaps ol");
  const nothing = part("#gaps p");
  const counter = part<HTMLButtonElement>("#missed");
  let known = 0;
  let isUnknown = false;
  let shown: unknown;

  function show(section: HTMLElement | null): void {
    details.hidden = section !== details;
    part("#invitation").hidden = section === details;
    side.classList.toggle("is-open", section !== null);
    side.classList.toggle("has-gaps", section === gaps);
  }

  function showEvent({ channel, event }: Quote): void {
    if (details.hidden || title.textContent !== channel) show(details);
    if (shown === event) return;
    shown = event;
    title.textContent = channel;
    const skipped = event.skipped === null ? "very many" : event.skipped;
    const entries: [string, unknown][] = [
      ["Stored", showTime(event.unixMs)],
      ["Offset", event.offset ?? "none"],
      ["Before it", event.prev ?? "unknown"],
      ["Skipped", skipped],
    ];
    facts.replaceChildren(
      ...entries.flatMap(([name, value]) => [element("dt", name), element("dd", String(value))]),
    );
    const text = JSON.stringify(event.data, null, 2);
    data.textContent = text.length > CHARS_SHOWN ? `${text.slice(0, CHARS_SHOWN)}\n…` : text;
  }

  function addGap({ channels, missed, reason }: Gap): void {
    if (missed === null) isUnknown = true;
    else known += missed;
    const some = missed === null ? "Perhaps some" : missed.toLocaleString("en");
    const names = channels.length > 3 ? `${channels.length} channels` : channels.join(", ");
    const entry = document.createElement("li");
    entry.append(
      element("time", showTime(Date.now())),
      element("span", `${some} of ${names}`),
      element("small", showReason(reason)),
    );
    list.prepend(entry);
    if (list.children.length > GAPS_SHOWN) list.lastElementChild?.remove();
    nothing.hidden = true;
    counter.textContent = !isUnknown ? String(known) : known ? `${known}+` : "some";
    counter.dataset.some = "";
    counter.setAttribute("aria-label", `${counter.textContent}, show which`);
  }

  function close(): void {
    show(null);
    shown = undefined;
    closed();
  }

  for (const button of side.querySelectorAll("button.close")) button.addEventListener("click", close);
  counter.addEventListener("click", () => {
    closed();
    show(gaps);
    gaps.scrollIntoView({ block: "nearest" });
  });
  return { showEvent, addGap, close };
}
