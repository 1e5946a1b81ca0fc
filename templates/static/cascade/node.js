// The page of a node. What a form of it has made, or was refused, is shown at the form's own address, which no reload shall
// ask for again: it would make another key.
import {livePage} from "./page.js";

const path = `/nodes/${document.documentElement.dataset.node}`;

if (location.pathname !== path) history.replaceState(null, "", path);
livePage(`/ws/live${path}`);
