// The page of one branch.
import {followBranches} from "./branches.js";
import {offerZones, setClock, tickTimes} from "./times.js";

setClock(Number(document.documentElement.dataset.now));
offerZones(document.getElementById("zone"));
followBranches();
tickTimes();
setInterval(tickTimes, 1000);
