// Copy buttons: <button data-copy="text">.
import {say} from "./words.js";

async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Plain http on another host than localhost has no clipboard object.
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("not allowed");
}

export function offerCopies(root) {
  for (const button of root.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await copy(button.dataset.copy);
        button.textContent = say("Copied");
      } catch {
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = say("Selected: press Ctrl-C");
        button.previousElementSibling.focus();
      }
      setTimeout(() => { button.textContent = say("Copy"); }, 2000);
    });
  }
}
