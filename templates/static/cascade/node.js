// The page of a node. A form of it that was refused is shown at the form's own address.
import {livePage} from "./page.js";

livePage(`/ws/live${location.pathname.match(/^\/nodes\/\d+/)[0]}`);
