// What-if: the address holds what was changed, and not what is as it is.
import "./still.js";

const form = document.getElementById("supposing");

form.addEventListener("submit", () => {
  for (const field of form.querySelectorAll("[data-now]")) field.disabled = field.value === field.dataset.now;
  const find = form.elements.find;
  find.disabled = !find.value;
});
addEventListener("pageshow", () => {
  for (const field of form.elements) field.disabled = false;
});
