// Many texts: a file, its column of texts, and the table of answers.

import { $, bar, bars, call, download, failure, given, isSure, looks, make, named, percent, settings, unsure } from "./page.js";

const PAGE_ROWS = 100;

const plain = (cell) => cell.replace(/^'(?=\s*[=+\-@＝＋－＠])/, ""); // table.py's apostrophe is for spreadsheets

let uploaded = null;
let content = ""; // the results as csv
let rows = [];
let shown = PAGE_ROWS;
let sorted = { by: "number", down: false };

async function reading(button, work) {
  $("trouble").textContent = "";
  $("results").hidden = true;
  if (button) button.disabled = true;
  try {
    await work();
  } catch (error) {
    $("trouble").textContent = failure(error);
  }
  $("progress").textContent = "";
  if (button) button.disabled = false;
}

$("file").addEventListener("click", () => ($("file").value = "")); // so that the same file can be chosen again
$("file").addEventListener("change", () =>
  reading(null, async () => {
    $("chosen").hidden = true;
    const [file] = $("file").files;
    if (!file) return;
    $("progress").textContent = "Reading the file…";
    const form = new FormData();
    form.append("files", file);
    const sent = await fetch("gradio_api/upload", { method: "POST", body: form });
    if (!sent.ok) throw new Error(sent.status === 413 ? "The file has more than 10 MB." : "The file did not arrive. Please try again.");
    if ($("file").files[0] !== file) return; // another one was chosen meanwhile
    uploaded = { path: (await sent.json())[0], orig_name: file.name, meta: { _type: "gradio.FileData" } };
    const { columns, likely, rows: count } = await call("columns", [uploaded]);
    $("column").replaceChildren(...columns.map((name) => make("option", { value: name, selected: name === likely }, name)));
    $("classify").textContent = `Classify ${count.toLocaleString("en")} row${count > 1 ? "s" : ""}`;
    $("chosen").hidden = false;
  }),
);

$("classify").addEventListener("click", () =>
  reading($("classify"), async () => {
    $("progress").textContent = `${$("classify").textContent.replace("Classify", "Classifying")}…`;
    const asked = uploaded;
    const at = $("column").selectedIndex;
    const result = await call("classify_batch", [asked, $("column").value]);
    const loaded = await fetch(`gradio_api/file=${result.path}`);
    if (!loaded.ok) throw new Error("The results are gone. Please classify the file again.");
    const answers = await loaded.text();
    if (asked !== uploaded) return;
    content = answers;
    const [header, ...lines] = parse(content);
    const own = header.length - settings.labels.length - 5; // predicted_label, whatever number it got
    rows = lines.map((cells, index) => {
      const label = plain(cells[own]);
      const scores = settings.labels.map((_, position) => Number(cells[own + 3 + position]));
      return {
        number: index + 1,
        text: plain(cells[at]),
        label,
        labels: settings.several ? given(scores) : [looks.get(label)],
        score: Number(cells[own + 1]),
        known: !cells.at(-2).startsWith(settings.unknown),
        note: cells.at(-2),
        error: cells.at(-1),
        scores,
      };
    });
    shown = PAGE_ROWS;
    sorted = { by: "number", down: false };
    $("results").hidden = false;
    table();
    $("summary").focus();
  }),
);

/** The rows of a csv as table.py writes it. */
function parse(csv) {
  const lines = [[]];
  for (const [, quoted, bare, end] of csv.matchAll(/(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n|$)/g)) {
    lines.at(-1).push(quoted === undefined ? bare : quoted.replaceAll('""', '"'));
    if (end === "\n") lines.push([]);
  }
  return lines.filter((line) => line.length > 1);
}

function table() {
  const good = rows.filter(({ error }) => !error);
  const doubtful = good.filter(isDoubtful);
  const shares = settings.labels.map((look) => [look.name, good.filter(({ labels }) => labels.includes(look)).length / Math.max(1, good.length)]);
  const failed = rows.length - good.length;
  $("summary").textContent = `${good.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} row${rows.length === 1 ? "" : "s"} classified; ${doubtful.length.toLocaleString("en")} not sure (below ${percent(bar())}${good.every(({ known }) => known) ? "" : ", or not known to the model"})${failed ? `; ${failed.toLocaleString("en")} could not be classified, see the error in the row` : ""}.`;
  $("shares").replaceChildren(...bars(shares.filter(([, share]) => share).sort((a, b) => b[1] - a[1])));
  const compare = { number: (a, b) => a.number - b.number, label: (a, b) => a.label.localeCompare(b.label), score: (a, b) => a.score - b.score, text: (a, b) => a.text.localeCompare(b.text) }[sorted.by];
  const listed = rows.filter((row) => !$("unsure").checked || row.error || isDoubtful(row)).sort((a, b) => (sorted.down ? -1 : 1) * compare(a, b));
  const head = [["label", "Label"], ["score", "Prob."], ["text", "Text"]].map(([by, name]) => {
    const button = make("button", by === "score" ? { ariaLabel: "Prob. (probability)" } : {}, name, make("span", { ariaHidden: "true" }, sorted.by === by ? (sorted.down ? " ▼" : " ▲") : ""));
    button.addEventListener("click", () => {
      sorted = { by, down: sorted.by === by ? !sorted.down : by === "score" };
      table();
      $("results").querySelector(`th[aria-sort] button`)?.focus();
    });
    const cell = make("th", { scope: "col" }, button);
    if (sorted.by === by) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    return cell;
  });
  $("results").querySelector("thead tr").replaceChildren(...head);
  $("results").querySelector("tbody").replaceChildren(...listed.slice(0, shown).map(line));
  $("further").hidden = listed.length <= shown;
}

const isDoubtful = ({ error, known, score, scores }) => !error && (!known || !isSure(score, scores));

function line(row) {
  const { labels, score, text, note, error, known } = row;
  const answer = () => (isDoubtful(row) ? named(labels.map(({ name }) => ({ ...unsure, name })), "?") : named(labels));
  const first = error ? make("span", { className: "error" }, "error") : make("span", { className: "label" }, ...answer());
  const cut = make("div", { className: text.length > 90 ? "cut" : "", dir: "auto" }, text);
  const whole = text.length > 90 ? make("button", { ariaExpanded: "false" }, "Show all") : null;
  whole?.addEventListener("click", () => {
    whole.ariaExpanded = String(!cut.classList.toggle("cut"));
    whole.textContent = cut.classList.contains("cut") ? "Show all" : "Show less";
  });
  const told = error ? make("p", { className: "error" }, error) : note ? make("p", { className: known ? "note" : "warning" }, note) : null;
  return make("tr", {}, make("td", {}, first), make("td", {}, error ? "" : percent(score)), make("td", {}, cut, whole, told));
}

$("unsure").addEventListener("change", table);
$("bar").addEventListener("change", () => rows.length && table());
$("further").addEventListener("click", () => {
  shown += PAGE_ROWS;
  table();
});
$("download").addEventListener("click", () => download("emotions.csv", content));
