// Candles with volume; indicators over them or, where their numbers are of another size, below; signals as marks.
import {
  CandlestickSeries, HistogramSeries, LineSeries, createSeriesMarkers,
} from "../vendor/lightweight-charts-5.2.1.js";
import {colour, drawing, locale, seconds, told} from "./charts.js";

const LABELLED = 40; // bars with signals; of more, a strip at the top says how many each has
const LINES = ["executing", "retrying", "expired", "allocated", "cancelled", "failed"];
const BELOW = 3; // panes at most; further indicators share the last

const source = document.getElementById("bars");
const legend = document.getElementById("legend");

// Whether an indicator is a price: near the close at most bars.
function isPrice(values, closes) {
  const there = values.filter((value) => value !== null).length;
  const near = values.filter((value, number) => value !== null && Math.abs(value / closes[number] - 1) < 0.3).length;
  return there > 0 && near > there * 0.6;
}

function part(text, line = "") {
  const element = document.createElement("span");
  element.textContent = text;
  if (line) element.className = `line-${line}`;
  return element;
}

function draw(answer) {
  const {columns, rows} = answer;
  const at = Object.fromEntries(columns.map((name, number) => [name, number]));
  const times = rows.map((row) => seconds(row[at.datetime]));
  const column = (name) => rows.map((row) => row[at[name]]);
  const closesOnly = rows.every((row) => row[at.open] === null);
  const intraday = times.some((time) => time % 86400);
  const points = (name) => times.flatMap((time, number) => {
    const value = rows[number][at[name]];
    return value === null ? [{time}] : [{time, value}];
  });

  const painted = [];
  const {chart, begin} = drawing(
    document.getElementById("chart"),
    {timeScale: {timeVisible: intraday, secondsVisible: false}, localization: {locale}},
    () => painted.forEach((paint) => paint()),
  );

  const prices = closesOnly ? chart.addSeries(LineSeries, {lineWidth: 2}) : chart.addSeries(CandlestickSeries, {});
  prices.setData(closesOnly ? points("close") : rows.map((row, number) => ({
    time: times[number], open: row[at.open], high: row[at.high], low: row[at.low], close: row[at.close],
  })));
  prices.priceScale().applyOptions({scaleMargins: {top: 0.06, bottom: 0.24}});
  painted.push(() => prices.applyOptions(closesOnly ? {color: colour("ink")} : {
    upColor: colour("saved"), wickUpColor: colour("saved"), borderUpColor: colour("saved"),
    downColor: colour("failed"), wickDownColor: colour("failed"), borderDownColor: colour("failed"),
  }));

  const volume = chart.addSeries(HistogramSeries, {
    priceScaleId: "volume", priceFormat: {type: "volume"}, lastValueVisible: false, priceLineVisible: false,
  });
  volume.setData(points("volume"));
  volume.priceScale().applyOptions({scaleMargins: {top: 0.82, bottom: 0}});
  painted.push(() => volume.applyOptions({color: colour("pending")}));

  const chosen = columns.slice(columns.indexOf("bars") + 1);
  let panes = 0;
  chosen.forEach((name, number) => {
    const over = isPrice(column(name), column("close"));
    if (!over) panes += 1;
    const line = chart.addSeries(LineSeries, {
      lineWidth: 1, priceLineVisible: false, lastValueVisible: false,
    }, over ? 0 : Math.min(panes, BELOW));
    line.setData(points(name));
    painted.push(() => line.applyOptions({color: colour(LINES[number % LINES.length])}));
  });
  chart.panes().forEach((pane, number) => pane.setStretchFactor(number ? 1 : 4));

  // A signal belongs to the bar that its moment is in.
  const said = new Map();
  for (const {datetime, signal} of answer.signals ?? []) {
    const moment = seconds(datetime);
    const bar = times.findLastIndex((time) => time <= moment);
    if (bar >= 0) said.set(bar, [...(said.get(bar) ?? []), signal]);
  }
  if (said.size > LABELLED) {
    const strip = chart.addSeries(HistogramSeries, {priceScaleId: "signals", lastValueVisible: false, priceLineVisible: false});
    strip.setData(times.map((time, bar) => (said.has(bar) ? {time, value: said.get(bar).length} : {time})));
    strip.priceScale().applyOptions({scaleMargins: {top: 0, bottom: 0.95}});
    painted.push(() => strip.applyOptions({color: colour("expired")}));
  } else {
    const marks = createSeriesMarkers(prices, []);
    painted.push(() => marks.setMarkers([...said].map(([bar, signals]) => ({
      time: times[bar], position: "aboveBar", shape: "circle", size: 0.6, color: colour("expired"),
      text: signals.length > 1 ? `${signals[0]} +${signals.length - 1}` : signals[0],
    }))));
  }

  const tell = (bar) => {
    const row = rows[bar];
    const moment = row[at.datetime].replace("T", " ");
    const parts = [part(intraday ? moment : moment.slice(0, 10))];
    for (const name of columns) {
      if (name === "bars" || name === "datetime" || row[at[name]] === null) continue;
      const line = chosen.indexOf(name);
      parts.push(part(`${name} ${told(row[at[name]])}`, line < 0 ? "" : LINES[line % LINES.length]));
    }
    for (const signal of said.get(bar) ?? []) parts.push(part(`⚑ ${signal}`));
    legend.replaceChildren(...parts);
  };
  const places = new Map(times.map((time, number) => [time, number]));
  chart.subscribeCrosshairMove(({time}) => tell(places.get(time) ?? rows.length - 1));
  tell(rows.length - 1);
  begin();
  document.getElementById("chart").dataset.drawn = rows.length;
}

if (source) draw(JSON.parse(source.textContent));
