// What all drawings on canvas share: colours of the sheet, also when it changes between light and dark; times as saved.
import {createChart} from "../vendor/lightweight-charts-5.2.1.js";

import {language} from "./words.js";

// Numbers and dates as readers of the page's language write them.
export const locale = language === "en" ? "en-GB" : language;

const dark = matchMedia("(prefers-color-scheme: dark)");

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// The library reads times as UTC; those here have no zone, and are shown as they are.
export function seconds(text) {
  return Date.parse(`${text.length > 10 ? text : `${text}T00:00:00`}Z`) / 1000;
}

export function told(number) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  return number.toLocaleString(language, {maximumFractionDigits: size >= 1000 ? 2 : size >= 1 ? 4 : 6});
}

// `paint` is called with the chart now, and again when the colours change.
export function drawing(container, options, paint) {
  const chart = createChart(container, {
    autoSize: true,
    handleScroll: {vertTouchDrag: false},
    ...options,
    layout: {attributionLogo: false, fontFamily: getComputedStyle(document.body).fontFamily},
  });
  const colours = () => {
    chart.applyOptions({
      layout: {
        background: {color: colour("paper")}, textColor: colour("soft"),
        panes: {separatorColor: colour("line"), separatorHoverColor: colour("hover")},
      },
      grid: {vertLines: {color: colour("line")}, horzLines: {color: colour("line")}},
      rightPriceScale: {borderColor: colour("line")},
      timeScale: {borderColor: colour("line")},
    });
    paint(chart);
  };
  return {chart, begin() { colours(); dark.addEventListener("change", colours); chart.timeScale().fitContent(); }};
}
