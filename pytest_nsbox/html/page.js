"use strict";
(() => {
  const body = document.querySelector("#tests tbody");
  const heads = [...document.querySelectorAll("#tests th")];
  const form = document.getElementById("filters");
  const search = form.querySelector("input[type=search]");
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const rows = [...body.rows];
  const text = new Map(rows.map((row) => [row, row.cells[0].textContent.toLowerCase()]));

  function show() {
    const wanted = search.value.trim().toLowerCase();
    const outcomes = new Set(boxes.filter((box) => box.checked).map((box) => box.name));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !outcomes.has(row.className) || !text.get(row).includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    form.querySelector("output").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} tests`;
  }

  function value(row, index) {
    const cell = row.cells[index];
    return index === 0 ? cell.textContent : "value" in cell.dataset ? Number(cell.dataset.value) : -Infinity;
  }

  function sort(index) {
    // Names and outcomes begin at the top, figures with the largest; the second time it is the other way round.
    const first = index < 2 ? "ascending" : "descending";
    const other = index < 2 ? "descending" : "ascending";
    const order = heads[index].getAttribute("aria-sort") === first ? other : first;
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[index].setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const left = value(a, index);
      const right = value(b, index);
      return left < right ? -sign : left > right ? sign : 0;
    });
    body.append(...rows);
  }

  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(index));
    head.append(button);
  });
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
})();
