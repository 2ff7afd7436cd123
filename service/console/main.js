// Which view is shown, whether the service is well, and the key.

import { h, put } from "./dom.js";
import { ask, hasKey, setKey, whenRefused } from "./http.js";

const TITLES = { playground: "Playground", adapters: "Adapters", experiments: "Experiments", live: "Live" };
const HEALTH_EVERY_MS = 5000;
const main = document.getElementById("main");
let leave = () => {};
let shown = 0;

/** `#/adapters/movies@1?x=y` is view adapters, of movies@1, with x = y. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/").map(decodeURIComponent);
  return { view: view in TITLES ? view : "playground", name: rest.join("/"), query: new URLSearchParams(query) };
}

async function show() {
  const { view, name, query } = place();
  const turn = ++shown;
  leave();
  leave = () => {};
  document.title = `${name || TITLES[view]} – Tonearm`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const { open } = await import(`./${view}.js`);
  if (turn !== shown) return;
  const room = put(main, h("div", { class: `view ${view}` })).firstChild;
  const ending = new AbortController();
  leave = () => ending.abort();
  await open(room, { name, query, signal: ending.signal });
}

window.addEventListener("hashchange", async () => {
  await show();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});

const health = document.getElementById("health");
async function look() {
  try {
    const response = await fetch("/readyz");
    const document = await response.json().catch(() => ({}));
    health.className = `health ${response.ok ? "good" : "bad"}`;
    say(response.ok ? "ready" : document.detail || "not ready");
  } catch {
    health.className = "health bad";
    say("no connection");
  }
}
// Only what changed is said: the place is read out.
function say(text) {
  if (health.textContent !== text) health.textContent = text;
}

const dialog = document.getElementById("key-dialog"),
  input = document.getElementById("key-input");
const why = document.getElementById("key-why"),
  usual = why.textContent;
const keyButton = document.getElementById("key-button");
keyButton.addEventListener("click", () => {
  why.textContent = usual;
  dialog.showModal();
});
dialog.addEventListener("close", () => {
  if (dialog.returnValue === "use") {
    setKey(input.value.trim());
    keyButton.classList.toggle("held", hasKey());
    keyButton.textContent = hasKey() ? "Key held" : "Key";
    start();
  }
  input.value = "";
  dialog.returnValue = "";
});
whenRefused((problem) => {
  if (dialog.open) return;
  why.textContent = `${problem.title}: ${problem.message}. ${usual}`;
  dialog.showModal();
});

async function start() {
  await show();
  try {
    const response = await ask("/adapters?limit=1");
    put(document.getElementById("base-model"), (await response.json()).base_model);
  } catch {
    /* the view has said so */
  }
}

look();
setInterval(look, HEALTH_EVERY_MS);
start();
