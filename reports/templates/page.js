"use strict";
// Sorts and filters the tables of class `sortable`, and opens what a link points to. A page is whole without it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const key = (row, k) => row.cells[k].dataset.v ?? row.cells[k].innerText.trim().toLowerCase();
  const order = (k, down) => (a, b) => {
    const x = key(a, k), y = key(b, k);
    if (x === "" || y === "") return (x === "") - (y === "");
    const by = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -by : by;
  };
  heads.forEach((head, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    for (const term of button.querySelectorAll(".term")) term.removeAttribute("tabindex");
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows.sort(order(k, down)));
    });
  });
  if (rows.length < 5) continue;
  const name = table.dataset.name, column = Number(table.dataset.filter);
  const tools = document.createElement("div"), search = document.createElement("input");
  const said = document.createElement("span"), choice = document.createElement("select");
  tools.className = "tools";
  search.type = "search";
  search.placeholder = "search";
  search.setAttribute("aria-label", `search the ${name}`);
  said.className = "quiet";
  said.setAttribute("role", "status");
  if (column >= 0) {
    const words = [...new Set(rows.map(row => row.cells[column].innerText.trim()))].sort();
    choice.setAttribute("aria-label", `which ${name}`);
    choice.append(...["all", ...words].map(word => new Option(word, word)));
    tools.append(choice);
  }
  tools.append(search, said);
  table.closest(".scroll").before(tools);
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const filter = () => {
    const word = search.value.trim().toLowerCase(), kind = column >= 0 ? choice.value : "all";
    let left = 0;
    for (const row of rows) {
      const kept = texts.get(row).includes(word) && (kind === "all" || row.cells[column].innerText.trim() === kind);
      row.hidden = !kept;
      left += kept;
    }
    said.textContent = `${left} of ${rows.length} ${name}`;
  };
  search.addEventListener("input", filter);
  choice.addEventListener("change", filter);
  filter();
}
const open = () => {
  const found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!found) return;
  for (const one of found.querySelectorAll("details")) one.open = true;
  for (let up = found; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  found.scrollIntoView();
};
addEventListener("hashchange", open);
open();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
