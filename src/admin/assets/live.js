// The last calls, live. Everything else on the page works without this.
"use strict";
const rows = document.querySelector("#last tbody");
const state = document.querySelector("#live");
const form = document.querySelector("#filter");
const columns = ["at", "client", "run", "route", "status", "outcome", "charged", "remaining", "ms"];
const numbers = new Set(["status", "charged", "remaining", "ms"]);
const shown = 200;
let source;

function cell(call, column) {
  const element = document.createElement(column === "route" ? "th" : "td");
  if (!numbers.has(column)) element.className = "text";
  let value = call[column] ?? "";
  if (column === "at") value = new Date(value).toISOString().slice(0, 19) + "Z";
  if (column === "ms") value = value.toFixed(1);
  // As text: names come from clients.
  element.textContent = value;
  return element;
}

function add(call) {
  const row = document.createElement("tr");
  row.append(...columns.map((column) => cell(call, column)));
  rows.prepend(row);
  while (rows.children.length > shown) rows.lastChild.remove();
}

function filter() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value.trim()) query.set(name, value.trim());
  return query;
}

async function watch() {
  if (source) source.close();
  const query = filter();
  source = new EventSource("/api/events?" + query);
  source.addEventListener("open", () => { state.textContent = "live"; });
  source.addEventListener("error", () => { state.textContent = "not connected; trying again"; });
  source.addEventListener("missed", () => { state.textContent = "live; some were too fast to show"; });
  source.addEventListener("call", (event) => add(JSON.parse(event.data)));
  const before = await fetch("/api/calls?" + query);
  if (before.ok) {
    rows.replaceChildren();
    (await before.json()).reverse().forEach(add);
  }
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", watch);
watch();
