// What both tabs are made of, and the page around them. Text from visitors, files and models reaches the page as text
// nodes, never as HTML.

export const settings = JSON.parse(document.getElementById("settings").textContent);
export const looks = new Map(settings.labels.map((label) => [label.name, label]));
export const unsure = { name: "Not sure", face: settings.unsure };

export const $ = (id) => document.getElementById(id);
export const percent = (share) => (share > 0 && share < 0.005 ? "<1%" : `${Math.round(100 * share)}%`);
const scheme = new URLSearchParams(location.search).get("__theme"); // a Space is told its theme
if (scheme === "dark" || scheme === "light") document.documentElement.style.colorScheme = scheme;

export function make(tag, properties = {}, ...children) {
  const { style, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(style ?? {})) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An element in a label's colours. The one for "not sure" has those of the page. */
export function colored(element, look) {
  element.classList.add("look");
  for (const theme of ["light", "dark"]) {
    for (const use of ["ink", "fill"]) element.style.setProperty(`--${use}-${theme}`, look?.[theme]?.[use] ?? { ink: "var(--text)", fill: "var(--line)" }[use]);
  }
  return element;
}

export function face(look) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "face");
  svg.setAttribute("aria-hidden", "true");
  for (const outline of ["M12 2a10 10 0 1 0 .01 0z", look?.face ?? ""]) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", outline);
    svg.append(path);
  }
  return svg;
}

/** Call an endpoint, and return what it gives or throw what it says. `classify` answers at once, the others queue. */
export async function call(name, data, signal) {
  const direct = name === "classify";
  const base = `gradio_api/${direct ? "run" : "call"}/${name}`;
  const sent = await fetch(base, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ data }), signal });
  const reply = await sent.json().catch(() => ({}));
  const told = reply.detail ?? reply.error;
  if (!sent.ok) throw new Error(typeof told === "string" ? told : "The server did not take this. Please try again.");
  if (direct) return reply.data[0];
  const stream = await (await fetch(`${base}/${reply.event_id}`, { signal })).text();
  const events = [...stream.matchAll(/^event: (.*)\ndata: (.*)$/gm)].filter(([, event]) => event !== "heartbeat");
  const [, event, content] = events.at(-1) ?? [];
  if (event === "complete") return JSON.parse(content)[0];
  throw new Error(JSON.parse(content ?? "null")?.error ?? "The server did not answer. Please try again.");
}

export const failure = (error) => (error instanceof TypeError ? "The server cannot be reached. Please try again." : error.message);

export const bar = () => Number($("bar").value);
/** Whether an answer is sure: its best score is not under the bar, and one of several labels reaches its threshold. */
export const isSure = (score, scores) =>
  score >= bar() && (!settings.several || scores.some((each, index) => each >= settings.thresholds[index]));
/** The labels of an answer, most probable first: the best, or of several all that reach their thresholds. */
export function given(scores) {
  const order = settings.labels.map((look, index) => [look, scores[index], settings.thresholds[index]]).sort((a, b) => b[1] - a[1]);
  const reached = order.filter(([, score, threshold]) => settings.several && score >= threshold);
  return (reached.length ? reached : order.slice(0, 1)).map(([look]) => look);
}

/** The first three labels, each in its colours with its symbol, and how many more there are. */
export function named(labels, after = "") {
  const shown = labels.slice(0, 3).map((look) => colored(make("span", { className: "named" }, face(look), make("span", {}, look.name + after)), look));
  return [...shown, labels.length > 3 ? make("span", { className: "rest" }, `and ${labels.length - 3} more`) : null];
}

export const ranked = (scores) => Object.entries(scores).sort((a, b) => b[1] - a[1]);

export function legend(entries) {
  const item = ([name, score]) => colored(make("li", {}, face(looks.get(name)), `${name} ${percent(score)}`), looks.get(name));
  return make("ul", { className: "legend", ariaHidden: "true" }, ...entries.map(item));
}

/** One bar of coloured parts; `told` says the same in words. */
export function stack(entries, told, kind = "") {
  const part = ([name, size]) => colored(make("span", { style: { flex: `${size} 1 0` } }), looks.get(name));
  const element = make("div", { className: `stack ${kind}` }, ...entries.map(part));
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", told);
  return element;
}

export function bars(entries) {
  return entries.map(([name, share]) =>
    colored(
      make("li", {}, make("span", {}, face(looks.get(name)), name), make("span", {}, share ? make("div", { className: "bar", style: { width: `${100 * share}%` } }) : ""), make("span", {}, percent(share))),
      looks.get(name),
    ),
  );
}

/** As csv whose cells no spreadsheet takes for formulas, by the rule of table.py. */
export function csvOf(lines) {
  const plain = (cell) => (/^\s*[=+\-@＝＋－＠]/.test(cell) && !/^\s*[-+]?[0-9]+([.,][0-9]+)*(e[-+]?[0-9]+)?\s*$/i.test(cell) ? `'${cell}` : cell);
  return lines.map((line) => line.map((cell) => `"${plain(cell).replaceAll('"', '""')}"`).join(",")).join("\r\n") + "\r\n";
}

export function download(name, content) {
  const link = make("a", { href: URL.createObjectURL(new Blob([content], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- The tabs, the examples of calls and the links

const tabs = [...document.querySelectorAll("[role=tab]")];
function show(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    const panel = $(each.getAttribute("aria-controls"));
    panel.hidden = !chosen;
    if (chosen) panel.querySelector(".threshold")?.append($("bar").parentElement); // one setting for both tabs
  }
}
for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(index + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
}

const here = location.origin + location.pathname;
$("python").textContent = `from gradio_client import Client, handle_file

client = Client("${here}")
client.predict("I am so happy today!", api_name="/classify")
client.predict(handle_file("comments.csv"), "text", api_name="/classify_batch")  # path of a csv`;
$("shell").textContent = `curl -s ${here}gradio_api/run/classify -H "Content-Type: application/json" \\
  -d '{"data": ["I am so happy today!"]}'`;
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const copying = navigator.clipboard?.writeText($(button.dataset.copy).textContent) ?? Promise.reject();
    const refused = "Your browser does not let this page copy. Please select the text.";
    $("copied").textContent = await copying.then(() => "Copied.", () => refused);
  });
}
if (settings.card) {
  $("links").prepend(make("a", { href: settings.card }, "Model card"), " ", make("a", { href: `${settings.card}/tree/main` }, "Model and code"), " ");
}
