// The log of a run: the newest lines, older ones on demand, following while one looks at the end, a search on the server.

import {say} from "./words.js";

const SHOWN = 5000; // lines in the document; of more, those at the other end go
const STEP = 1000;
const AGAIN = 1000;

const pane = document.getElementById("log-lines");
const box = document.getElementById("log");
const note = document.getElementById("log-note");
const jump = document.getElementById("log-jump");
const form = document.getElementById("log-search");
const address = box.dataset.log;

let first = 0; // everything wanted from this number
let last = 0; // up to this one is in the document
let search = "";
let previous = null;
let asking = false;
let wanted = false; // something came while we were asking
let begun = false;

function atEnd() {
  return pane.scrollHeight - pane.scrollTop - pane.clientHeight < 24;
}

function row(line, before) {
  const element = document.createElement("li");
  element.id = `line-${line.number}`;
  element.value = line.number;
  if (before && before !== String(line.allocation)) element.className = "divided";
  element.dataset.allocation = line.allocation;
  const who = document.createElement("a");
  who.className = "who";
  who.href = `#line-${line.number}`;
  who.textContent = line.node_name || "–";
  const {at, start: first, attempt, number} = line;
  const place = {at, first, last: line.stop - 1, attempt, line: number};
  who.title = say("{at}, items {first} to {last}, attempt {attempt}, line {line}", place);
  const text = document.createElement("span");
  text.className = "text";
  text.dir = "auto";
  text.textContent = (line.missing ? say("[… {n} characters are missing] ", {n: line.missing}) : "") + line.text;
  element.append(who, " ", text);
  return element;
}

function rows(lines, before) {
  const made = document.createDocumentFragment();
  for (const line of lines) {
    made.append(row(line, before));
    before = String(line.allocation);
  }
  return made;
}

function says() {
  const none = !pane.childElementCount;
  note.textContent = none ? (search ? say("No line has “{text}”.", {text: search}) : box.dataset.empty) : "";
  note.hidden = !none;
  box.classList.toggle("has-more", Boolean(previous));
  jump.hidden = atEnd() || none;
}

async function get(query) {
  const url = new URL(address, location.href);
  for (const [name, value] of Object.entries({limit: STEP, search, ...query})) if (value !== "") url.searchParams.set(name, value);
  const answer = await fetch(url, {cache: "no-store"});
  if (!answer.ok) throw new Error(say("the server answered {status}", {status: answer.status}));
  return answer.json();
}

async function ask(work) {
  if (asking) return void (wanted = true);
  asking = true;
  try {
    await work();
  } catch (error) {
    note.textContent = say("The log could not be read: {why}.", {why: error.message});
    note.hidden = false;
  }
  asking = false;
  if (wanted) {
    wanted = false;
    setTimeout(() => ask(follow), AGAIN);
  }
}

async function open() {
  const page = await get({});
  pane.replaceChildren(rows(page.results, ""));
  ({first, last, previous} = page);
  begun = true;
  pane.scrollTop = pane.scrollHeight;
  says();
}

async function follow() {
  if (!begun) return open();
  const follows = atEnd();
  for (;;) {
    const page = await get({after: last});
    const more = page.last > last;
    last = Math.max(last, page.last);
    pane.append(rows(page.results, pane.lastElementChild?.dataset.allocation ?? ""));
    if (!more || last >= page.newest) break;
  }
  // Who reads further up keeps what is there.
  if (follows) {
    while (pane.childElementCount > SHOWN) {
      pane.firstElementChild.remove();
      first = Number(pane.firstElementChild.value);
      previous = true;
    }
    pane.scrollTop = pane.scrollHeight;
  }
  says();
}

async function older() {
  const height = pane.scrollHeight - pane.scrollTop;
  const page = await get({before: first});
  pane.prepend(rows(page.results, ""));
  ({first, previous} = page);
  pane.scrollTop = pane.scrollHeight - height;
  says();
}

function keepInAddress() {
  const url = new URL(location.href);
  if (search) url.searchParams.set("log", search);
  else url.searchParams.delete("log");
  history.replaceState(null, "", url);
}

// `newest` is the number of the run's last line, as the page knows it.
export function logMayHaveGrown(newest) {
  if (!begun || newest > last) ask(follow);
}

export function offerLog() {
  search = new URL(location.href).searchParams.get("log") ?? "";
  form.elements.search.value = search;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search = form.elements.search.value.trim();
    begun = false;
    keepInAddress();
    ask(open);
  });
  document.getElementById("log-older").addEventListener("click", () => ask(older));
  jump.addEventListener("click", () => { pane.scrollTop = pane.scrollHeight; });
  pane.addEventListener("scroll", says, {passive: true});
  document.getElementById("log-wrap").addEventListener("change", ({target}) => pane.classList.toggle("wrapped", target.checked));
}
