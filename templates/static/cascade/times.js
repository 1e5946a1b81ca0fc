// Times: relative in the text, absolute with its zone on hover. The server's clock counts, not this machine's.

import {language, say} from "./words.js";

let ahead = 0; // milliseconds the server's clock is ahead
let utc = localStorage.getItem("zone") === "utc";

export function setClock(serverNow) {
  if (serverNow) ahead = serverNow - Date.now();
}

function long(seconds) {
  if (seconds < 60) return say("{n} s", {n: Math.floor(seconds)});
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return say("{n} min", {n: minutes});
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? say("{n} h", {n: hours}) : say("{n} d", {n: Math.floor(hours / 24)});
}

function exactly(seconds) {
  if (seconds < 60) return say("{n} s", {n: Math.floor(seconds)});
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return say("{n} min {m} s", {n: minutes, m: Math.floor(seconds % 60)});
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return say("{n} h {m} min", {n: hours, m: minutes % 60});
  return say("{n} d {m} h", {n: Math.floor(hours / 24), m: hours % 24});
}

// Made once: making one takes longer than all that it is asked.
const style = {dateStyle: "short", timeStyle: "medium"};
const inUtc = new Intl.DateTimeFormat("sv-SE", {...style, timeZone: "UTC"});
const here = new Intl.DateTimeFormat("sv-SE", style);
const zoned = new Intl.DateTimeFormat(language === "en" ? "en-GB" : language, {timeZoneName: "short"});

function absolute(moment) {
  return utc ? `${inUtc.format(moment)} UTC` : `${here.format(moment)} ${zoneName(moment)}`;
}

function zoneName(moment) {
  return zoned.formatToParts(moment).find((part) => part.type === "timeZoneName").value;
}

const known = new WeakMap(); // element -> what was last read of it, and said in it
const SELDOM = 10; // of so many ticks, those that nobody sees have one: a thousand that tick are a fifth of a core
let turn = 0;

// Who comes into sight is right at once.
const watcher = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    const seen = known.get(target);
    if (!seen) continue;
    seen.inSight = isIntersecting;
    if (isIntersecting) tick(target, Date.now() + ahead);
  }
});

function read(element, at) {
  const moment = new Date(at);
  const hover = absolute(moment);
  if (element.title !== hover) element.title = hover;
  const inSight = known.get(element)?.inSight ?? true;
  const seen = {at, utc, moment, exact: element.hasAttribute("data-since"), text: element.textContent, inSight};
  if (!known.has(element)) watcher.observe(element);
  known.set(element, seen);
  return seen;
}

function tick(element, now) {
  const at = element.dateTime;
  let seen = known.get(element);
  if (!seen || seen.at !== at || seen.utc !== utc) seen = read(element, at);
  const since = (now - seen.moment) / 1000, seconds = Math.max(0, since);
  // What is a second ahead is now, by a clock that is a little behind.
  const distance = since < -1 ? say("in {time}", {time: long(-since)}) : say("{time} ago", {time: long(seconds)});
  const text = seen.exact ? exactly(seconds) : distance;
  // Only what differs is written: a write costs a layout, and ends a selection.
  if (seen.text !== text) element.textContent = seen.text = text;
}

// `all`: those, too, that are out of sight.
export function tickTimes(all = false) {
  const now = Date.now() + ahead;
  turn += 1;
  for (const element of document.querySelectorAll("time[datetime]:not([datetime=''])")) {
    if (all || turn % SELDOM === 0 || (known.get(element)?.inSight ?? true)) tick(element, now);
  }
}

export function offerZones(button) {
  if (!button) return;
  const tell = () => { button.textContent = utc ? say("Times in local zone") : say("Times in UTC"); };
  button.hidden = false;
  button.addEventListener("click", () => {
    utc = !utc;
    localStorage.setItem("zone", utc ? "utc" : "local");
    tell();
    tickTimes(true);
  });
  tell();
}
