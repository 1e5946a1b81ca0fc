// What scripts say, in the language of the page: a text says itself where the page has brought no other for it.

const found = document.getElementById("words");
const words = found ? JSON.parse(found.textContent) : {};

export const language = document.documentElement.lang || "en";

export function say(text, values = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
