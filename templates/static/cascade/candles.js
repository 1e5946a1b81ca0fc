// Candles with volume; indicators over them or, where their numbers are of another size, below; signals as marks.
import {
  CandlestickSeries, HistogramSeries, LineSeries, createSeriesMarkers,
} from "../vendor/lightweight-charts-5.2.1.js";
import {colour, drawing, seconds, told} from "./charts.js";

const LINES = ["executing", "retrying", "expired", "allocated", "cancelled", "failed"];
const BELOW = 3; // panes at most; further indicators share the last

const source = document.getElementById("bars");
const legend = document.getElementById("legend");

function middle(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : null;
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
    {timeScale: {timeVisible: intraday, secondsVisible: false}, localization: {locale: "en-GB"}},
    () => painted.forEach((paint) => paint()),
  );

  const prices = closesOnly ? chart.addSeries(LineSeries, {lineWidth: 2}) : chart.addSeries(CandlestickSeries, {});
  prices.setData(closesOnly ? points("close") : rows.map((row, number) => ({
    time: times[number], open: row[at.open], high: row[at.high], low: row[at.low], close: row[at.close],
  })));
  prices.priceScale().applyOptions({scaleMargins: {top: 0.06, bottom: 0.24}});
  painted.push(() => prices.applyOptions(closesOnly ? {color: colour("executing")} : {
    upColor: colour("saved"), wickUpColor: colour("saved"), borderUpColor: colour("saved"),
    downColor: colour("failed"), wickDownColor: colour("failed"), borderDownColor: colour("failed"),
  }));

  const volume = chart.addSeries(HistogramSeries, {
    priceScaleId: "volume", priceFormat: {type: "volume"}, lastValueVisible: false, priceLineVisible: false,
  });
  volume.setData(points("volume"));
  volume.priceScale().applyOptions({scaleMargins: {top: 0.82, bottom: 0}});
  painted.push(() => volume.applyOptions({color: colour("pending")}));

  const size = middle(column("close"));
  const chosen = columns.slice(columns.indexOf("bars") + 1);
  let panes = 0;
  chosen.forEach((name, number) => {
    const usual = middle(column(name));
    const over = usual !== null && usual > size / 2 && usual < size * 2;
    if (!over) panes += 1;
    const line = chart.addSeries(LineSeries, {
      lineWidth: 1, title: name, priceLineVisible: false, lastValueVisible: false,
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
  const marks = createSeriesMarkers(prices, []);
  painted.push(() => marks.setMarkers([...said].map(([bar, signals]) => ({
    time: times[bar], position: "aboveBar", shape: "circle", size: 0.6, color: colour("expired"),
    text: said.size <= 40 ? (signals.length > 1 ? `${signals[0]} +${signals.length - 1}` : signals[0]) : "",
  }))));

  const tell = (bar) => {
    const row = rows[bar];
    const parts = columns.filter((name) => name !== "bars" && name !== "datetime" && row[at[name]] !== null)
      .map((name) => `${name} ${told(row[at[name]])}`);
    const moment = row[at.datetime].replace("T", " ");
    const signals = said.get(bar) ?? [];
    legend.textContent = [intraday ? moment : moment.slice(0, 10), ...parts, ...signals.map((each) => `⚑ ${each}`)].join("  ");
  };
  const places = new Map(times.map((time, number) => [time, number]));
  chart.subscribeCrosshairMove(({time}) => tell(places.get(time) ?? rows.length - 1));
  tell(rows.length - 1);
  begin();
  document.getElementById("chart").dataset.drawn = rows.length;
}

if (source) draw(JSON.parse(source.textContent));
