// The journal's newest page.
import {livePage} from "./page.js";

livePage(`/ws/live/journal/${document.documentElement.dataset.live}`);
