// The page of a run.
import {livePage} from "./page.js";

livePage(`/ws/live${location.pathname}`);
