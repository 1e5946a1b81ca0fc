// The page of a run.
import {logMayHaveGrown, offerLog} from "./log.js";
import {livePage} from "./page.js";

const grown = () => logMayHaveGrown(Number(document.getElementById("log_mark").dataset.newest));

offerLog();
livePage(`/ws/live${location.pathname}`, grown);
grown();
