// Branches of the tree: what hangs below a relay is asked for when its line is opened, and again while it stays open.

import {say} from "./words.js";

const AGAIN = 10000;

const asking = new WeakSet();

// Opens in `fresh` what is open in `old`, and moves along what was loaded there.
export function carry(old, fresh) {
  for (const was of old.querySelectorAll("details[data-key][open]")) {
    const now = fresh.querySelector(`details[data-key="${CSS.escape(was.dataset.key)}"]`);
    if (!now || now.open) continue;
    now.dataset.carried = "";
    now.open = true;
    const loaded = was.querySelector(":scope > .loaded");
    if (loaded) now.querySelector(":scope > .loaded")?.replaceWith(loaded);
  }
}

async function answer(address) {
  const url = new URL(address, location.href);
  url.searchParams.set("fragment", "");
  const fresh = document.createElement("div");
  fresh.className = "loaded";
  try {
    const said = await fetch(url, {cache: "no-store", redirect: "manual"});
    const text = await said.text();
    if (said.headers.get("Content-Type")?.startsWith("text/html")) {
      fresh.innerHTML = text;
      return fresh;
    }
    fresh.append(problem(text || say("answered {status}", {status: said.status})));
  } catch {
    fresh.append(problem(say("The server cannot be reached.")));
  }
  return fresh;
}

function problem(text) {
  const line = document.createElement("p");
  line.className = "error";
  line.textContent = text;
  return line;
}

async function ask(details) {
  const place = () => details.querySelector(":scope > .loaded");
  if (asking.has(place())) return;
  asking.add(place());
  place().setAttribute("aria-busy", "true");
  const fresh = await answer(details.dataset.below);
  // Meanwhile the line may have been drawn anew, with its list moved along.
  const key = CSS.escape(details.dataset.key);
  const old = document.querySelector(`details[data-key="${key}"] > .loaded`);
  if (!old) return;
  carry(old, fresh);
  old.replaceWith(fresh);
}

function shown(details) {
  for (let each = details; each; each = each.parentElement?.closest("details")) if (!each.open) return false;
  return true;
}

export function followBranches() {
  document.addEventListener("toggle", ({target}) => {
    if (!target.matches("details[data-key]")) return;
    if ("carried" in target.dataset) delete target.dataset.carried;
    else if (target.open && target.dataset.below) ask(target);
  }, true);
  setInterval(() => {
    if (document.hidden || document.getElementById("pause")?.getAttribute("aria-pressed") === "true") return;
    for (const details of document.querySelectorAll("details[data-below][open]")) if (shown(details)) ask(details);
  }, AGAIN);
}
