// Keeps the parts of a page current over one socket.
//
// The server sends {seq, at, full, parts: {id: html}, cells: {id: {name: text}}, lists: {id: [part id…]}}: everything
// first, then what changed, and waits for {seen: seq} before the next. Cells are what changes all the time: their new
// text goes into the part that is there. Each part's newest HTML and cells are kept here; the document follows unless it
// is paused, a list is being pointed or tabbed through (its rows then stay where they are), or a row's text is being
// selected.

import {carry} from "./branches.js";
import {setClock} from "./times.js";
import {language, say} from "./words.js";

const SILENCE = 8000; // the server speaks every 2 s; after so long the connection is dead without knowing it
const HIDDEN_RETRY = 60000;
const HOLD = 5000; // rows stay where they are for so long after the last sign of a pointer or a key among them

const html = new Map(); // part id -> newest HTML
const cells = new Map(); // part id -> texts by cell that are newer than its HTML
const lists = new Map(); // list id -> part ids, newest order
const stale = new Set(); // part ids the document shows an older HTML of
const behind = new Set(); // part ids the document shows older cells of
const touched = new Map(); // list -> when a pointer or a key was last at work in it
let url = "";
let socket = null;
let heard = 0; // when the server last spoke
let failures = 0; // connections in a row that brought nothing
let retry = 0;
let state = "connecting";
let paused = false;
let held = 0; // updates that came in while paused
let shown = () => {};

const box = document.getElementById("liveness");
const text = document.getElementById("live-text");
const said = document.getElementById("live-said");
const button = document.getElementById("pause");

// ---- the document ----

function make(source) {
  const template = document.createElement("template");
  template.innerHTML = source;
  return template.content.firstElementChild;
}

function fill(part, texts) {
  for (const cell of part.querySelectorAll("[data-cell]")) {
    const text = texts[cell.dataset.cell];
    if (text === undefined) continue;
    // What a time says follows from when it was.
    if (cell.tagName === "TIME") cell.dateTime = text;
    else if (cell.textContent !== text) cell.textContent = text;
  }
}

// The part `id` as the server last told it.
function newest(id) {
  const fresh = make(html.get(id));
  if (cells.has(id)) fill(fresh, cells.get(id));
  stale.delete(id);
  behind.delete(id);
  return fresh;
}

const FOCUSABLE = "a[href], button, summary, [tabindex]";

function replace(old, fresh) {
  const at = old.contains(document.activeElement) ? [...old.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement) : -1;
  carry(old, fresh);
  old.replaceWith(fresh);
  if (at >= 0) fresh.querySelectorAll(FOCUSABLE)[at]?.focus({preventScroll: true});
}

function busy(list) {
  return Date.now() - (touched.get(list) ?? 0) < HOLD;
}

function arrange(list, ids) {
  const wanted = new Set(ids);
  for (const row of [...list.children]) if (!wanted.has(row.id)) row.remove();
  let next = list.firstElementChild;
  for (const id of ids) {
    if (next?.id === id) {
      next = next.nextElementSibling;
      continue;
    }
    list.insertBefore(document.getElementById(id) ?? newest(id), next);
  }
  const kinds = list.closest("[data-list]")?.classList;
  kinds?.toggle("is-empty", ids.length === 0);
  kinds?.toggle("is-own", ids.length > 0 && [...list.children].every((row) => "own" in row.dataset));
}

function show() {
  if (paused) return;
  const selection = getSelection();
  // Asked once: after each change it would have the whole page laid out.
  const selecting = !selection.isCollapsed;
  for (const id of [...stale]) {
    const old = document.getElementById(id);
    if (old && selecting && selection.containsNode(old, true)) continue;
    // A row not in the document yet comes with its list.
    if (old) replace(old, newest(id));
    stale.delete(id);
  }
  for (const id of [...behind]) {
    const part = document.getElementById(id);
    if (part && selecting && selection.containsNode(part, true)) continue;
    if (part) fill(part, cells.get(id));
    behind.delete(id);
  }
  for (const [name, ids] of lists) {
    const list = document.getElementById(name);
    const same = list.children.length === ids.length && ids.every((id, at) => list.children[at].id === id);
    if (!same && (!busy(list) || list.children.length === 0)) arrange(list, ids);
  }
  shown();
}

function take(frame) {
  if (frame.full) for (const kept of [html, cells, lists, stale, behind]) kept.clear();
  for (const [id, source] of Object.entries(frame.parts)) {
    html.set(id, source);
    cells.delete(id);
    behind.delete(id);
    stale.add(id);
  }
  for (const [id, texts] of Object.entries(frame.cells)) {
    cells.set(id, {...cells.get(id), ...texts});
    behind.add(id);
  }
  for (const [name, ids] of Object.entries(frame.lists)) {
    const there = new Set(ids);
    for (const id of lists.get(name) ?? []) {
      if (!there.has(id)) for (const kept of [html, cells, stale, behind]) kept.delete(id);
    }
    lists.set(name, ids);
  }
  const changes = [frame.parts, frame.cells, frame.lists].some((each) => Object.keys(each).length);
  if (paused && changes && !frame.full) held += 1;
  show();
}

// ---- the connection ----

function connect() {
  clearTimeout(retry);
  const mine = new WebSocket(url);
  socket = mine;
  heard = Date.now();
  let begun = ""; // of a frame that comes as several messages
  mine.onmessage = ({data}) => {
    heard = Date.now();
    if (data[0] === "+") return void (begun += data.slice(1));
    const frame = JSON.parse(data[0] === "=" ? begun + data.slice(1) : data);
    begun = "";
    failures = 0;
    setClock(frame.at);
    take(frame);
    mine.send(JSON.stringify({seen: frame.seq}));
    become("live");
  };
  mine.onclose = (event) => {
    if (socket === mine) lost(event.code);
  };
}

async function lost(code) {
  socket = null;
  if (code === 4403) return become("signed out");
  if (code === 4404) return become("gone");
  failures += 1;
  if (state !== "polling") become("reconnecting");
  // Something on the way may let pages through but no sockets; and a refused handshake does not say why.
  if (failures >= 3) {
    const outcome = await poll();
    if (ENDS.has(outcome) || socket) return become(outcome);
    become(outcome);
  }
  const wait = state === "polling" ? 3000 : Math.min(5000, 500 * 2 ** failures) * (0.3 + 0.7 * Math.random());
  retry = setTimeout(connect, document.hidden && failures > 10 ? HIDDEN_RETRY : wait);
}

async function poll() {
  try {
    const answer = await fetch(location.href, {redirect: "manual", cache: "no-store"});
    if (answer.type === "opaqueredirect" || answer.status === 403) return "signed out";
    if (answer.status === 404) return "gone";
    if (!answer.ok) return "reconnecting";
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const frame = {full: true, parts: {}, cells: {}, lists: {}};
    for (const section of page.querySelectorAll("[data-list]")) {
      const rows = [...page.getElementById(section.dataset.list).children];
      frame.lists[section.dataset.list] = rows.map((row) => row.id);
      for (const row of rows) frame.parts[row.id] = row.outerHTML;
    }
    for (const part of page.querySelectorAll("[data-part]")) frame.parts[part.id] = part.outerHTML;
    heard = Date.now();
    setClock(Number(page.documentElement.dataset.now));
    take(frame);
    return "polling";
  } catch {
    return "reconnecting";
  }
}

function wake() {
  if (socket || ENDS.has(state) || state === "connecting") return;
  clearTimeout(retry);
  connect();
}

// ---- what the header says ----

const WORDS = {
  connecting: say("Connecting…"), reconnecting: say("Reconnecting…"), "signed out": say("Signed out"), gone: say("Deleted"),
};
const ENDS = new Set(["signed out", "gone"]);

function become(next) {
  if (state !== next) said.textContent = WORDS[next] ?? (next === "live" ? say("Live") : say("Polling"));
  state = next;
  tell();
}

function tell() {
  let words = WORDS[state];
  const n = Math.max(0, Math.round((Date.now() - heard) / 1000));
  if (!words) words = state === "live" ? say("Live · {n} s ago", {n}) : say("Polling · {n} s ago", {n});
  if (paused) words = (held ? say("Paused (+{n})", {n: held}) : say("Paused")) + (WORDS[state] ? ` · ${words}` : "");
  if (text.textContent !== words) text.textContent = words;
  box.dataset.state = paused && !WORDS[state] ? "paused" : state.replace(" ", "-");
  if (state === "signed out" && !box.querySelector("a")) {
    const link = document.createElement("a");
    link.href = location.href;
    link.textContent = say("Sign in");
    box.append(link);
    button.hidden = true;
  }
}

function togglePause() {
  paused = !paused;
  held = 0;
  button.setAttribute("aria-pressed", String(paused));
  button.textContent = paused ? say("Resume") : say("Pause");
  said.textContent = paused ? say("Paused") : say("Resumed");
  show();
  tell();
}

// Keeps the page current from `path`; `after` is called whenever the document was brought up to date.
export function followLive(path, after) {
  url = location.origin.replace(/^http/, "ws") + `${path}?language=${language}`;
  shown = after;
  button.hidden = false;
  button.addEventListener("click", togglePause);
  for (const list of document.querySelectorAll("[data-list] tbody")) {
    for (const sign of ["pointermove", "pointerdown", "keydown", "focusin"]) {
      list.addEventListener(sign, () => touched.set(list, Date.now()));
    }
    for (const sign of ["pointerleave", "focusout"]) {
      list.addEventListener(sign, () => {
        touched.delete(list);
        setTimeout(show);
      });
    }
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) wake(); });
  addEventListener("online", wake);
  addEventListener("pagehide", () => {
    clearTimeout(retry);
    const old = socket;
    socket = null;
    old?.close();
  });
  addEventListener("pageshow", (event) => { if (event.persisted) wake(); });
  setInterval(() => {
    if (socket && Date.now() - heard > SILENCE) {
      const old = socket;
      lost(1006);
      old.close();
    }
    tell();
  }, 1000);
  connect();
  tell();
}
