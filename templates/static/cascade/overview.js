// The overview: wires the parts of the page to the live socket.
import {followBranches} from "./branches.js";
import {offerCopies} from "./copy.js";
import {followLive} from "./live.js";
import {offerZones, setClock, tickTimes} from "./times.js";

const title = document.title;
const icon = document.getElementById("favicon");
const icons = {true: icon.dataset.failed, false: icon.getAttribute("href")};

function showFailures() {
  const failed = Number(document.getElementById("totals").dataset.failed);
  const wanted = failed ? `(${failed} failed) ${title}` : title;
  if (document.title !== wanted) {
    document.title = wanted;
    icon.setAttribute("href", icons[failed > 0]);
  }
}

setClock(Number(document.documentElement.dataset.now));
offerCopies(document);
offerZones(document.getElementById("zone"));
showFailures();
followBranches();
setInterval(tickTimes, 1000);
followLive("/ws/live", () => {
  tickTimes();
  showFailures();
});
