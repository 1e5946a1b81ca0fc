// The SQL box: Ctrl+Enter runs it, a click on a name puts it where the cursor is, the address has the statement.

const box = document.getElementById("box");
const field = document.getElementById("query");

field.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  box.requestSubmit(document.getElementById("run"));
});

for (const name of document.querySelectorAll(".reads li code")) {
  name.addEventListener("click", () => {
    field.setRangeText(name.textContent, field.selectionStart, field.selectionEnd, "end");
    field.focus();
  });
}

if (!field.value) field.focus();

// What was run came in a form, so that no link runs anything; the address has it all the same, to be copied.
const link = document.querySelector('.key a[href^="?query="]');
if (link) history.replaceState(null, "", link.href);
