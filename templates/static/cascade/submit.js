// Submitting a run: what only looks (the type's form, the preview, the fire times) is drawn in place, without a reload.
import "./still.js";

const form = document.getElementById("submission");
const LOOKS = new Set(["draw", "form", "json", "preview", "fires"]);
const DRAWN = {
  draw: ["said", "work", "verbs", "preview", "schedule"], form: ["said", "params-part"], json: ["said", "params-part"],
  preview: ["said", "preview", "work"], fires: ["said", "fires"],
};
let asked = 0;

async function look(what) {
  const body = new URLSearchParams(new FormData(form));
  body.set("do", what);
  body.set("drawn", "1");
  const [mine, sent] = [++asked, values()];
  form.setAttribute("aria-busy", "true");
  try {
    const said = await fetch(form.action, {method: "POST", body, redirect: "manual", cache: "no-store"});
    const text = await said.text();
    if (mine !== asked) return;
    if (!said.headers.get("Content-Type")?.startsWith("text/html") || !draw(text, DRAWN[what], sent)) throw new Error("no page");
    if (what === "draw") history.replaceState(null, "", form.elements.again ? location.href : `?type=${encodeURIComponent(form.elements.type.value)}`);
    if (what === "preview" || what === "fires") reveal(what);
  } catch {
    if (mine === asked) send(what);
  } finally {
    if (mine === asked) form.removeAttribute("aria-busy");
  }
}

function values() {
  return new Map([...form.elements].filter((each) => each.id && "value" in each).map((each) => [each.id, each.value]));
}

function draw(text, ids, sent) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  if (!fresh.getElementById("submission")) return false;
  // What was typed while the answer was on its way stays.
  for (const [id, value] of values()) {
    const field = fresh.getElementById(id);
    if (field && sent.has(id) && sent.get(id) !== value) field.value = value;
  }
  const held = document.activeElement?.id;
  const open = new Set([...form.querySelectorAll("details[open] > summary")].map((each) => each.textContent));
  for (const id of ids) document.getElementById(id).replaceWith(fresh.getElementById(id));
  for (const each of form.querySelectorAll("details > summary")) if (open.has(each.textContent)) each.parentElement.open = true;
  if (held && document.activeElement?.id !== held) document.getElementById(held)?.focus({preventScroll: true});
  return true;
}

function reveal(id) {
  const problem = document.querySelector("#said [role=alert]");
  const place = problem || document.getElementById(id);
  place.scrollIntoView({block: "nearest"});
}

// The plain way, where the quiet one failed: the page is sent and comes anew.
function send(what) {
  const field = document.createElement("input");
  Object.assign(field, {type: "hidden", name: "do", value: what});
  form.append(field);
  form.submit();
}

form.addEventListener("submit", (event) => {
  const what = event.submitter?.value;
  if (LOOKS.has(what)) {
    event.preventDefault();
    look(what);
  } else if (form.dataset.sent) {
    event.preventDefault();
  } else {
    form.dataset.sent = "";
  }
});
form.addEventListener("change", ({target}) => {
  if (target.matches("[data-redraw]")) look("draw");
  if (target.dataset.origin && target.value) form.querySelector(`[name=origin][value=${target.dataset.origin}]`).checked = true;
});
form.addEventListener("input", ({target}) => {
  if (target.id === "items" && target.value) form.querySelector("[name=origin][value=typed]").checked = true;
});
addEventListener("pageshow", () => { delete form.dataset.sent; });
