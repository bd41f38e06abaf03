// The ranking: sorting, filters, and the first rows of a long table.
const FIRST = 300;
const table = document.getElementById("cells"), body = table.tBodies[0];
const form = document.getElementById("filters"), more = document.getElementById("more");
let rows = [...body.rows], all = rows.length <= FIRST;

function matches(row, wanted, words) {
  if (wanted.length) {
    const values = row.dataset.f.split("|");
    if (wanted.some(([k, value]) => value !== values[k])) return false;
  }
  return !words.length || words.every((word) => row.textContent.toLowerCase().includes(word));
}

function show() {
  const selects = [...form.querySelectorAll("select")];
  const wanted = selects.map((select) => [select.dataset.place, select.value]).filter(([, value]) => value);
  const words = form.elements.text.value.toLowerCase().split(/\s+/).filter((word) => word);
  let count = 0;
  for (const row of rows) {
    const fits = matches(row, wanted, words), hidden = !fits || (!all && count >= FIRST);
    if (row.hidden !== hidden) row.hidden = hidden;
    count += fits;
  }
  form.elements.count.value = `${count} of ${rows.length} cells`;
  more.hidden = all || count <= FIRST;
}

function key(row, k) {
  const cell = row.cells[k], value = cell.dataset.v ?? cell.textContent, number = Number(value);
  return value === "" ? null : Number.isNaN(number) ? value : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b));
}

function sort(head) {
  const k = head.cellIndex, sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const keys = new Map(rows.map((row) => [row, key(row, k)]));
  rows.sort((first, second) => {
    const a = keys.get(first), b = keys.get(second);
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * compare(a, b);
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  for (const row of rows) row.hidden = true;  // what is not laid out is cheap to move
  body.replaceChildren(...rows);
  show();
}

table.tHead.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (head) sort(head);
});
form.addEventListener("input", () => {
  table.classList.toggle("wide", form.elements.wide.checked);
  show();
});
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => { all = true; show(); });
form.hidden = false;
show();
