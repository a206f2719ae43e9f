// The tabs, the examples of calls and the links.

import "./one.js";
import "./many.js";
import { $, make, settings } from "./parts.js";

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
