"use strict";
// Sorts, filters and pages the table of concepts, sorts the table of pairs, and opens the details of a concept.
// Text from data goes into the page as text, never as markup; details come from the page's inert templates.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const byId = (id) => document.getElementById(id);
  const PAGE = 50;

  // -- order: unknown values last in both directions
  const compare = (one, other, sign) => {
    if (one === null || other === null) return (one === null) - (other === null);
    if (typeof one === "string" && typeof other === "string") return sign * one.localeCompare(other, "en", { numeric: true });
    return sign * (one < other ? -1 : one > other ? 1 : 0);
  };
  const flip = (heading, first) => {
    const now = heading.getAttribute("aria-sort");
    const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
    for (const each of heading.parentElement.children) if (each.hasAttribute("aria-sort")) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", next);
    return next === "ascending" ? 1 : -1;
  };

  // -- details of a concept
  const dialog = byId("detail");
  const names = new Map();
  const open = (name) => {
    const found = names.has(name) ? byId("d" + names.get(name)) : null;
    if (!found) return false;
    const body = dialog.querySelector(".body");
    body.replaceChildren(found.content.cloneNode(true));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    history.replaceState(null, "", "#concept=" + encodeURIComponent(name));
    return true;
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-concept]");
    if (link) open(link.dataset.concept);
    else if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));

  // -- the table of concepts
  const table = byId("concepts");
  const body = table.tBodies[0];
  const kinds = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.kind);
  const rows = JSON.parse(byId("rows").textContent).rows;
  for (const [cells, detail] of rows) if (detail >= 0) names.set(shown(cells[0]), detail);
  function shown(cell) { return Array.isArray(cell) ? cell[0] : cell; }
  function key(cell) { return Array.isArray(cell) ? cell[1] : cell; }
  let order = rows, matching = rows, page = 0;
  const cellOf = (cell, at, detail) => {
    const made = document.createElement(at ? "td" : "th");
    if (!at) made.scope = "row";
    made.className = { name: "left ends", text: "long" }[kinds[at]] || "";
    if (!at && detail >= 0) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "link";
      button.dataset.concept = button.textContent = shown(cell);
      made.append(button);
    } else made.textContent = shown(cell);
    return made;
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    page = Math.min(page, pages - 1);
    const from = page * PAGE, part = matching.slice(from, from + PAGE);
    body.replaceChildren(...part.map(([cells, detail]) => {
      const row = document.createElement("tr");
      row.append(...cells.map((cell, at) => cellOf(cell, at, detail)));
      return row;
    }));
    byId("count").textContent = matching.length
      ? `${from + 1}–${from + part.length} of ${matching.length.toLocaleString("en")}` : "none";
    byId("before").disabled = page === 0;
    byId("after").disabled = page >= pages - 1;
  };
  const searched = (cells) => cells.filter((_, at) => kinds[at]).map(shown).join(" ").toLowerCase();
  const filter = () => {
    const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean), only = byId("above").checked;
    matching = order.filter(([cells, , above]) => (above || !only)
      && words.every((word) => searched(cells).includes(word)));
    page = 0;
    draw();
  };
  [...table.tHead.rows[0].cells].forEach((heading, at) => {
    heading.querySelector("button").addEventListener("click", () => {
      const sign = flip(heading, kinds[at] ? "ascending" : "descending");
      order = [...rows].sort((one, other) => compare(key(one[0][at]), key(other[0][at]), sign));
      filter();
    });
  });
  byId("words").addEventListener("input", filter);
  byId("above").addEventListener("change", filter);
  byId("before").addEventListener("click", () => { page -= 1; draw(); });
  byId("after").addEventListener("click", () => { page += 1; draw(); });
  draw();

  // -- small tables, sorted in place
  for (const small of document.querySelectorAll("table.sortable")) {
    [...small.tHead.rows[0].cells].forEach((heading, at) => {
      const value = (row) => {
        const { key: given } = row.cells[at].dataset;
        return given === undefined ? row.cells[at].textContent.trim() : given === "" ? null : Number(given);
      };
      heading.querySelector("button")?.addEventListener("click", () => {
        const sign = flip(heading, heading.classList.contains("left") ? "ascending" : "descending");
        small.tBodies[0].append(...[...small.tBodies[0].rows].sort((one, other) => compare(value(one), value(other), sign)));
      });
    });
  }

  if (location.hash.startsWith("#concept=")) open(decodeURIComponent(location.hash.slice(9)));
})();
