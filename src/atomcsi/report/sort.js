// Click on a column's head to sort by it; without scripts the tables are as they are.
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const key = row => {
      const cell = row.cells[head.cellIndex];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const order = (a, b) => typeof a === "string" ? a.localeCompare(b) : (a - b || isNaN(a) - isNaN(b));
    const rows = [...body.rows].sort((a, b) => order(key(a), key(b)));
    body.append(...(ascending ? rows : rows.reverse()));
  });
}
