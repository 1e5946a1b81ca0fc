// The overview: wires the parts of the page to the live socket.
import {followBranches} from "./branches.js";
import {livePage} from "./page.js";

followBranches();
livePage("/ws/live");
