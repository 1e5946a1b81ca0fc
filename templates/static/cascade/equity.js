// A backtest: its equity with entries and exits, and below how far it is under its highest point.
import {AreaSeries, LineSeries, createSeriesMarkers} from "../vendor/lightweight-charts-5.2.1.js";
import {colour, drawing, locale, seconds, told} from "./charts.js";
import {say} from "./words.js";

const MARKED = 200; // trades; more would hide the curve

const legend = document.getElementById("legend");
const container = document.getElementById("chart");
const {rows} = JSON.parse(document.getElementById("equity").textContent);
const trades = JSON.parse(document.getElementById("trades").textContent);
const times = rows.map(([moment]) => seconds(moment));
const painted = [];

const {chart, begin} = drawing(container, {localization: {locale}}, () => painted.forEach((paint) => paint()));
const point = (number, value) => (value === null ? {time: times[number]} : {time: times[number], value});

const curve = chart.addSeries(LineSeries, {lineWidth: 2, priceLineVisible: false});
curve.setData(rows.map(([, equity], number) => point(number, equity)));
painted.push(() => curve.applyOptions({color: colour("executing")}));

const fall = chart.addSeries(AreaSeries, {
  lineWidth: 1, priceLineVisible: false, lastValueVisible: false, priceFormat: {type: "percent"},
}, 1);
fall.setData(rows.map(([, , drawdown], number) => point(number, drawdown === null ? null : -100 * drawdown)));
painted.push(() => fall.applyOptions({
  lineColor: colour("failed"), topColor: "transparent", bottomColor: "transparent", invertFilledArea: true,
}));
chart.panes().forEach((pane, number) => pane.setStretchFactor(number ? 1 : 3));

function nearest(moment) {
  const wanted = seconds(moment);
  const number = times.findLastIndex((time) => time <= wanted);
  return times[Math.max(number, 0)];
}

const marks = createSeriesMarkers(curve, []);
painted.push(() => marks.setMarkers(trades.slice(0, MARKED).flatMap((trade) => {
  const short = trade.side === "short";
  const entry = {
    time: nearest(trade.entry_date), position: short ? "aboveBar" : "belowBar", size: 0.8,
    shape: short ? "arrowDown" : "arrowUp", color: colour("saved"),
  };
  const exit = trade.exit_date && !trade.open
    ? [{time: nearest(trade.exit_date), position: "inBar", shape: "circle", size: 0.5, color: colour(trade.profit < 0 ? "failed" : "saved")}]
    : [];
  return [entry, ...exit];
}).sort((a, b) => a.time - b.time)));

const places = new Map(times.map((time, number) => [time, number]));
function tell(number) {
  const [moment, equity, drawdown] = rows[number];
  const numbers = say("equity {equity}  draw-down {drawdown} %", {equity: told(equity), drawdown: told(100 * drawdown)});
  legend.textContent = `${moment.slice(0, 16).replace("T00:00", "").replace("T", " ")}  ${numbers}`;
}
if (rows.length) {
  chart.subscribeCrosshairMove(({time}) => tell(places.get(time) ?? rows.length - 1));
  tell(rows.length - 1);
}
begin();
container.dataset.drawn = rows.length;
