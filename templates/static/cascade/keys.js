// Keys: ? for help, / for the search, g and a letter to go somewhere, j and k through the rows, f for the whole screen.

const help = document.getElementById("keys-help");
let going = 0;

function typing({target}) {
  return target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
}

function rows() {
  return [...document.querySelectorAll("tbody tr, #log-lines li")].filter((row) => row.checkVisibility());
}

function step(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.indexOf(document.activeElement?.closest("tbody tr, #log-lines li"));
  const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
  const place = next.querySelector("a[href]") ?? next;
  if (place === next) next.tabIndex = -1;
  place.focus();
  next.scrollIntoView({block: "nearest"});
}

// A menu, or the first step of what takes two.
function shut(among) {
  const open = [...document.querySelectorAll("details.menu[open], details.confirm[open]")].filter(among);
  for (const each of open) {
    if (each.contains(document.activeElement)) each.querySelector("summary").focus();
    each.open = false;
  }
  return open;
}

function whole() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.();
}

const ACTS = {
  "?": () => (help.open ? help.close() : help.showModal()),
  "/": () => document.querySelector('main input[type="search"]')?.focus(),
  j: () => step(1),
  k: () => step(-1),
  f: whole,
  w: () => document.getElementById("log-wrap")?.click(),
  g: () => { going = Date.now(); },
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !help.open && !event.defaultPrevented) {
    const [last] = shut(() => true);
    if (last && !document.activeElement?.offsetParent) last.querySelector("summary").focus();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || typing(event)) return;
  if (Date.now() - going < 1500) {
    going = 0;
    const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      location.assign(link.href);
      return;
    }
  }
  const act = ACTS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
// A menu covers what is below it, so it closes when the pointer or the keys are elsewhere.
for (const sign of ["pointerdown", "focusin"]) {
  document.addEventListener(sign, ({target}) => shut((each) => each.matches(".menu") && !each.contains(target)));
}
document.addEventListener("click", ({target}) => { if (target.closest(".sheet a")) shut(() => true); });
help.querySelector("button").addEventListener("click", () => help.close());
