// What every live page does: clocks, copy buttons, the title and icon that show failures, the socket.
import {offerCopies} from "./copy.js";
import {followLive} from "./live.js";
import {offerZones, setClock, tickTimes} from "./times.js";
import {say} from "./words.js";

const title = document.title;
const icon = document.getElementById("favicon");
const icons = {true: icon.dataset.failed, false: icon.getAttribute("href")};

function showFailures() {
  const failed = Number(document.querySelector("[data-failed][data-part]")?.dataset.failed ?? 0);
  const wanted = failed ? say("({n} failed) {title}", {n: failed, title}) : title;
  if (document.title !== wanted) {
    document.title = wanted;
    icon.setAttribute("href", icons[failed > 0]);
  }
}

// `path` is the socket's; `after` is called whenever the document was brought up to date.
export function livePage(path, after = () => {}) {
  setClock(Number(document.documentElement.dataset.now));
  offerCopies(document);
  offerZones(document.getElementById("zone"));
  showFailures();
  setInterval(tickTimes, 1000);
  followLive(path, () => {
    tickTimes();
    showFailures();
    after();
  });
}
