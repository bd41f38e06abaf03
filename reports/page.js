// The ranking: sorting, filters of rows and of tasks, and the first rows of a long table.
// Only the rows that are shown are in the document: what is not laid out costs nothing to sort.
const STEP = 100;
const table = document.getElementById("cells"), body = table.tBodies[0];
const form = document.getElementById("filters"), more = document.getElementById("more");
const taskRules = document.head.appendChild(document.createElement("style"));
const keys = new Map();  // of each column, by row, once it has been sorted by
let rows = [...body.rows], limit = STEP;

function matches(row, wanted, words) {
  if (wanted.length) {
    const values = JSON.parse(row.dataset.f);
    if (wanted.some(([k, value]) => value !== values[k])) return false;
  }
  return !words.length || words.every((word) => row.textContent.toLowerCase().includes(word));
}

function show() {
  showTask();
  const selects = [...form.querySelectorAll("select[data-place]")];
  const chosen = selects.filter((select) => select.value);  // "all" is empty
  const wanted = chosen.map((select) => [select.dataset.place, JSON.parse(select.value)]);
  const words = form.elements.text.value.toLowerCase().split(/\s+/).filter((word) => word);
  const fitting = wanted.length || words.length ? rows.filter((row) => matches(row, wanted, words)) : rows;
  body.replaceChildren(...fitting.slice(0, limit));
  form.elements.count.value = `${fitting.length} of ${rows.length} cells`;
  more.hidden = fitting.length <= limit;
  more.firstElementChild.textContent = `Show ${Math.min(STEP, fitting.length - limit)} more rows`;
}

function showTask() {
  // By one rule for each column of scores, so that no field of thousands of rows is touched.
  const task = form.elements.task?.value, rules = [];
  [...table.tHead.rows[0].cells].forEach((head, k) => {
    if (!task || !head.dataset.task) return;
    const shown = head.dataset.task === task ? "table-cell" : "none";
    rules.push(`#cells tr > :nth-child(${k + 1}) { display: ${shown} !important; }`);
  });
  taskRules.textContent = rules.join(" ");
}

function key(row, k) {
  // Without `data-v` it is the text, which a difference may stand below.
  const cell = row.cells[k], value = cell.dataset.v ?? (cell.firstChild?.textContent ?? "").trim();
  const number = Number(value);
  if (value === "") return null;
  // Of texts, numbers are filled up, so that they sort as numbers.
  return Number.isNaN(number) ? value.replace(/\d+/g, (digits) => digits.padStart(9, "0")) : number;
}

function column(k) {
  if (!keys.has(k)) keys.set(k, new Map(rows.map((row) => [row, key(row, k)])));
  return keys.get(k);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  const first = String(a), second = String(b);
  return first < second ? -1 : first > second ? 1 : 0;
}

function sort(head) {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const values = column(head.cellIndex);
  rows.sort((first, second) => {
    const a = values.get(first), b = values.get(second);
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * compare(a, b);
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
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
more.addEventListener("click", () => { limit += STEP; show(); });
form.hidden = false;
show();
