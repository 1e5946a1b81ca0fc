// Pages that are as of the moment they were asked for: clocks and copy buttons only.
import {offerCopies} from "./copy.js";
import {offerZones, setClock, tickTimes} from "./times.js";

setClock(Number(document.documentElement.dataset.now));
offerCopies(document);
offerZones(document.getElementById("zone"));
tickTimes();
setInterval(tickTimes, 1000);
