"use strict";

// tables: a button in every head, numbers by their value, text by its letters
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        const difference = key(a) - key(b);
        const compared = Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference;
        return down ? -compared : compared;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}

// verdicts: a pressed one shows its claims only
const filters = [...document.querySelectorAll(".tally button")];
for (const button of filters) {
  button.addEventListener("click", () => {
    const wanted = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.verdict;
    filters.forEach((other) => other.setAttribute("aria-pressed", String(other.dataset.verdict === wanted)));
    for (const shown of document.querySelectorAll("article, .overview tbody tr")) {
      shown.hidden = wanted !== null && shown.dataset.verdict !== wanted;
    }
  });
}

// a link to a line, or to a claim that is filtered out, brings it into view
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const details = target.closest("details");
  if (details) details.open = true;
  const article = target.closest("article");
  if (article) article.hidden = false;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();

// light or dark: the system's choice until the button is pressed
const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
let dark = system.matches;
function label() { theme.textContent = dark ? "Light" : "Dark"; }
theme.hidden = false;
label();
theme.addEventListener("click", () => {
  dark = !dark;
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  label();
});
system.addEventListener("change", () => { dark = system.matches; label(); });
