// One text: the answer while it is typed, why, and whether it is wrong.

import { $, bar, bars, call, colored, csvOf, download, face, failure, given, isSure, legend, looks, make, named, percent, ranked, settings, stack, unsure } from "./page.js";

const WAIT = 400; // milliseconds after the last key
const MARKED = 0.05; // a smaller change of the probability is not marked
const THICKEST = 0.5; // and this one or a larger has the thickest line

const text = $("text");
const names = new Intl.DisplayNames(["en"], { type: "language" });
const languages = settings.languages.map((code) => names.of(code));
if (languages.length && languages.length < 4) $("languages").textContent = `, in ${languages.join(" or ")}`;
let answer = null; // the last one, with its text
let explained = null; // the text that "Why?" is about
let timer = 0;
let running = new AbortController();

async function classify(moves) {
  clearTimeout(timer);
  running.abort();
  const mine = (running = new AbortController());
  const asked = text.value;
  $("answer").setAttribute("aria-busy", "true");
  try {
    answer = { ...(await call("classify", [asked], mine.signal)), text: asked };
  } catch (error) {
    if (mine.signal.aborted) return;
    answer = { error: failure(error), text: asked };
  }
  if (mine.signal.aborted) return;
  $("answer").removeAttribute("aria-busy");
  render();
  if (moves) {
    $("answer").focus({ preventScroll: true });
    $("said").scrollIntoView({ block: "nearest" });
  }
}

function render() {
  $("more").hidden = "error" in answer;
  if ("error" in answer) return $("said").replaceChildren(make("p", { className: "error" }, answer.error));
  const order = ranked(answer.scores);
  const [[best, score], [second, next]] = order;
  const scores = settings.labels.map(({ name }) => answer.scores[name]);
  const sure = isSure(score, scores) && !answer.warning;
  const told = settings.several ? percent(score) : `${percent(score)}, then ${second} ${percent(next)}`;
  const shown = [
    answer.warning ? make("p", { className: "warning" }, answer.warning) : null,
    make("p", { className: settings.several && sure ? "headline several" : "headline" }, ...named(sure ? given(scores) : [unsure])),
    settings.several && sure ? null : make("p", { className: "second" }, sure ? told : `most likely ${best} ${told}`),
    settings.several ? null : stack(order, order.map(([name, share]) => `${name} ${percent(share)}`).join(", ")),
    settings.several ? make("ul", { className: "bars" }, ...bars(order.slice(0, 4))) : legend(order.slice(0, 4)),
    answer.note ? make("p", { className: "note" }, answer.note) : null,
  ];
  $("said").replaceChildren(...shown.filter(Boolean));
  $("all").querySelector("ul").replaceChildren(...bars(order));
  members();
  if (explained !== answer.text) $("why").querySelector("div").replaceChildren();
  if ($("why").open) explain();
  $("noted").textContent = "";
  $("right").replaceChildren(make("option", { value: "" }, "choose one"), ...settings.labels.filter(({ name }) => name !== answer.label).map(({ name }) => make("option", {}, name)));
}

function members() {
  const said = Object.entries(answer.members ?? {});
  const against = Math.round((answer.disagreement ?? 0) * said.length);
  const told = against ? `${against} of ${said.length} members say otherwise.` : `All ${said.length} members agree.`;
  const item = ([name, { label, score }]) =>
    colored(make("li", {}, name, make("b", {}, face(looks.get(label)), `${label} ${percent(score)}`)), looks.get(label));
  $("members").replaceChildren(...(said.length ? [make("p", { className: "note" }, told), make("ul", { className: "strip" }, ...said.map(item))] : []));
}

/** "Why?": the text again, its words underlined by what they weigh, or its sentences by what they say. */
async function explain() {
  const asked = answer.text;
  if (explained === asked) return;
  const place = $("why").querySelector("div");
  place.replaceChildren(make("p", { className: "hint", role: "status" }, "Reading it again without each word…"));
  let found;
  try {
    found = await call("explain", [asked], running.signal);
    if ("error" in found) throw new Error(found.error);
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(make("p", { className: "error", role: "alert" }, failure(error)));
    return;
  }
  if (answer.text !== asked) return;
  explained = asked;
  place.replaceChildren(...(found.unit === "word" ? words(found) : sentences(found)));
}

function words({ label, pieces }) {
  const marked = pieces.map(({ text, weight }) => {
    if (Math.abs(weight) < MARKED) return text;
    const width = 1 + Math.round((5 * Math.min(Math.abs(weight), THICKEST)) / THICKEST);
    const [, before, word, after] = text.match(/^(\s*)([^]*?)(\s*)$/u);
    const mark = make("span", { className: weight > 0 ? "for" : "against", style: { "text-decoration-thickness": `${width}px` } }, word);
    return make("span", {}, before, mark, after);
  });
  const listed = (sign) =>
    pieces
      .filter(({ weight }) => sign * weight >= MARKED)
      .sort((a, b) => sign * (b.weight - a.weight))
      .slice(0, 3)
      .map(({ text, weight }) => `“\u2068${text.trim().replace(/^([^]{40})[^]+$/u, "$1…")}\u2069” (${percent(Math.abs(weight))})`)
      .join(", ");
  const told = [
    listed(1) ? `Most for ${label}, by what its probability loses without them: ${listed(1)}.` : `No single word carries ${label}: leaving one out changes almost nothing.`,
    listed(-1) ? `Most against it, by what it gains without them (wavy): ${listed(-1)}.` : "",
  ];
  const tall = pieces.reduce((size, { text }) => size + text.length, 0) > 500 ? { className: "again tall", tabIndex: 0 } : { className: "again" };
  return [colored(make("p", { ...tall, dir: "auto" }, ...marked), looks.get(label)), make("p", { className: "note" }, told.join(" ").trim())];
}

function sentences({ pieces }) {
  const isClear = ({ label, score }) => label !== null && score >= bar();
  const marked = pieces.map((piece) => {
    const look = looks.get(piece.label);
    if (!isClear(piece)) return piece.text;
    const width = 1 + Math.round(4 * piece.score);
    return colored(make("span", { title: `${piece.label} ${percent(piece.score)}` }, face(look), make("span", { className: "for", style: { "text-decoration-thickness": `${width}px` } }, piece.text.trim()), " "), look);
  });
  const named = pieces.map((piece) => [isClear(piece) ? piece.label : "", Math.max(1, piece.text.length)]);
  const present = ranked(Object.fromEntries([...looks.keys()].map((name) => [name, named.filter(([label]) => label === name).reduce((sum, [, size]) => sum + size, 0)])));
  const total = named.reduce((sum, [, size]) => sum + size, 0);
  return [
    make("p", { className: "hint" }, `Each of its ${pieces.length} parts by itself, from beginning to end. Parts that are not sure are not marked.`),
    stack(named, `From beginning to end: ${named.map(([label]) => label || "not sure").join(", ")}`, "fine"),
    legend(present.filter(([, size]) => size).map(([name, size]) => [name, size / total])),
    make("p", { className: "again tall long", dir: "auto", tabIndex: 0 }, ...marked),
  ];
}

text.addEventListener("input", () => {
  clearTimeout(timer);
  running.abort();
  if (text.value.trim()) timer = setTimeout(classify, WAIT, false);
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.shiftKey || event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    classify(true);
  }
});
$("go").addEventListener("click", () => classify(true));
const hint = $("said").firstElementChild;
$("clear").addEventListener("click", () => {
  clearTimeout(timer);
  running.abort();
  text.value = "";
  answer = explained = null;
  $("more").hidden = true;
  $("said").replaceChildren(hint);
  text.focus();
});
$("why").addEventListener("toggle", () => $("why").open && answer && explain());
$("bar").append(...[...new Set([0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, settings.abstainBelow])].sort().map((value) => make("option", { value, selected: value === settings.abstainBelow }, percent(value))));
$("bar").addEventListener("change", () => {
  explained = null;
  if (answer) render();
});
$("examples").hidden = !settings.examples.length;
$("examples").append(
  ...settings.examples.map((example) => {
    const chip = make("button", {}, example);
    chip.addEventListener("click", () => {
      text.value = example;
      classify(true);
    });
    return make("li", {}, chip);
  }),
);

// ---- "Is this wrong?" ---------------------------------------------------------------------------------------------
const notes = [];
$("correct").addEventListener("click", () => {
  if (!$("right").value) return ($("noted").textContent = "Please choose the right label first.");
  notes.push([answer.text, answer.label, answer.score.toFixed(6), $("right").value]);
  $("noted").textContent = `Noted: ${$("right").value}. ${notes.length} note${notes.length > 1 ? "s" : ""} so far.`;
  $("save").hidden = false;
});
$("save").addEventListener("click", () => download("corrections.csv", csvOf([["text", "predicted_label", "predicted_score", "right_label"], ...notes])));
