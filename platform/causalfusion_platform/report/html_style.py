"""What makes a report's page look and sort as it does."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --faint: #6b6b70; --ground: #fff; --line: #d9d9de;
  --soft: #f4f4f6; --holds: #1a7f37; --fails: #c62828; --undecided: #8a6100; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6ea; --faint: #9c9ca3; --ground: #16161a; --line: #3a3a42; --soft: #22222a;
    --holds: #57c26f; --fails: #ff7b72; --undecided: #e0b040; }
}
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.25rem; color: var(--ink); background: var(--ground);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p { margin: .4rem 0; max-width: 60rem; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { white-space: nowrap; background: var(--soft); }
th[colspan] { text-align: center; }
td.number { text-align: right; }
td.number, td.short { white-space: nowrap; }
td.long { font-family: ui-monospace, monospace; font-size: .8rem; overflow-wrap: anywhere; min-width: 11rem; }
th.sortable { cursor: pointer; }
th[aria-sort="ascending"]::after { content: " ▲"; }
th[aria-sort="descending"]::after { content: " ▼"; }
tr.best td { font-weight: 600; background: var(--soft); }
.holds { color: var(--holds); } .fails { color: var(--fails); } .undecided { color: var(--undecided); }
.notmeasured { color: var(--faint); }
.verdict { font-weight: 600; white-space: nowrap; }
details { margin: .3rem 0; } summary { cursor: pointer; }
figure { margin: 0 0 1.4rem; }
figure img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
figcaption { font-size: .9rem; color: var(--faint); max-width: 60rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .4rem 0; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
input.filter { font: inherit; padding: .2rem .5rem; margin: 0 0 .5rem; width: 18rem; max-width: 100%;
  color: var(--ink); background: var(--soft); border: 1px solid var(--line); border-radius: 4px; }
"""

# Without a script the page is whole; with one, tables marked so can be sorted and filtered.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, place) => {
    const cell = row.cells[place], number = cell.dataset.number;
    return number === undefined ? cell.textContent.trim() : Number(number);
  };
  heads.forEach((head, place) => {
    head.classList.add("sortable");
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const empty = row => row.cells[place].dataset.empty !== undefined;
      [...body.rows].sort((a, b) => {
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        const x = key(a, place), y = key(b, place);
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
        return down ? -order : order;
      }).forEach(row => body.append(row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
  if (body.rows.length < 8) continue;
  const filter = document.createElement("input");
  filter.className = "filter";
  filter.placeholder = "show only rows with …";
  filter.setAttribute("aria-label", filter.placeholder);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
  table.parentElement.before(filter);
}
"""
