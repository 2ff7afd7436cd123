// A text, some adapters, what each says of it.

import { badge, button, calm, copyButton, count, failure, h, nearest, percent, put, seconds } from "./dom.js";
import { ask, hasKey, pathOf, read } from "./http.js";

const MOST_BARS = 8,
  MOST_MATCHES = 12,
  MOST_ADAPTERS = 16,
  MOST_EXAMPLES = 6,
  USUAL_ADAPTERS = 5;
// What was on screen outlives a look at another view.
let kept = null;

export async function open(room, { query, signal }) {
  const chosen = new Set();
  const text = h("textarea", {
    id: "text",
    rows: 5,
    placeholder: "A text to classify",
    onkeydown: (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) classify();
    },
    oninput: () => remember(),
  });
  const long = h(
    "select",
    { id: "long", onchange: () => remember() },
    h("option", { value: "truncate" }, "cut it"),
    h("option", { value: "windows" }, "read it in windows"),
  );
  const chips = h("ul", { class: "chips", "aria-label": "Chosen adapters" });
  const examples = h("div", { class: "examples" });
  const answers = h("div", { class: "answers", role: "status" });
  const curl = h("code", { id: "curl" });
  const timing = h("p", { class: "timing" });
  const picker = makePicker((name) => choose(name), signal);
  const go = h("button", { type: "submit", class: "primary" }, "Classify");

  put(
    room,
    h("h1", null, "Playground"),
    h(
      "div",
      { class: "columns" },
      h(
        "form",
        {
          class: "card",
          onsubmit: (event) => {
            event.preventDefault();
            classify();
          },
        },
        h("label", { for: "text" }, "Text"),
        text,
        examples,
        h("fieldset", null, h("legend", null, "Adapters"), chips, picker),
        h(
          "div",
          { class: "buttons" },
          go,
          h("label", { class: "inline", for: "long" }, "A text that is too long:"),
          long,
        ),
      ),
      h("section", { "aria-label": "Answers" }, answers, timing),
    ),
    h(
      "section",
      { class: "card" },
      h("h2", null, "The same from the shell"),
      h("pre", { class: "scroll", tabindex: 0, "aria-label": "curl command" }, curl),
      h(
        "div",
        { class: "buttons" },
        copyButton(
          "Copy the command",
          () => curl.textContent,
          () => curl,
        ),
        copyButton(
          "Copy a link to this",
          () => location.href,
          () => curl,
        ),
      ),
    ),
  );

  const state = () => ({ text: text.value, adapters: [...chosen], long: long.value });
  function remember() {
    kept = state();
    const shared = new URLSearchParams({ text: kept.text, adapters: kept.adapters.join(",") });
    if (kept.long !== "truncate") shared.set("long", kept.long);
    // After the hash: it is not sent to anybody.
    history.replaceState(null, "", `#/playground?${shared}`);
    curl.textContent = command(kept);
  }

  function choose(name) {
    if (chosen.size >= MOST_ADAPTERS) return;
    chosen.add(name);
    showChosen();
  }
  function showChosen() {
    put(
      chips,
      [...chosen].map((name) =>
        h(
          "li",
          { class: "chip" },
          name,
          h(
            "button",
            {
              type: "button",
              "aria-label": `Remove ${name}`,
              onclick: () => {
                chosen.delete(name);
                showChosen();
                picker.querySelector("input").focus();
              },
            },
            "×",
          ),
        ),
      ),
    );
    go.disabled = !chosen.size;
    remember();
    showExamples();
  }
  const showExamples = calm(async () => {
    const found = await Promise.all(
      [...chosen].slice(0, 4).map((name) => read(pathOf("adapters", name), { signal }).catch(() => null)),
    );
    const lists = found.filter(Boolean).map((each) => each.examples);
    const texts = [];
    for (let at = 0; texts.length < MOST_EXAMPLES && lists.some((list) => at < list.length); at += 1) {
      for (const list of lists) if (list[at] && !texts.includes(list[at])) texts.push(list[at]);
    }
    put(
      examples,
      texts.length ? h("span", { class: "dim" }, "Try: ") : null,
      texts.slice(0, MOST_EXAMPLES).map((example) =>
        h(
          "button",
          {
            type: "button",
            class: "quiet example",
            onclick: () => {
              text.value = example;
              remember();
              classify();
            },
          },
          example,
        ),
      ),
    );
  }, 60);

  let running = new AbortController();
  async function classify() {
    const asked = state();
    remember();
    if (!asked.text.trim()) {
      put(answers, h("p", { class: "notice" }, "Type a text first, or take one of the examples."));
      text.focus();
      return;
    }
    running.abort();
    running = new AbortController();
    signal.addEventListener("abort", () => running.abort());
    answers.setAttribute("aria-busy", "true");
    go.disabled = true;
    const began = performance.now();
    try {
      const response = await ask("/classify", {
        method: "POST",
        body: bodyOf(asked),
        headers: { "X-Adapter": asked.adapters.join(",") },
        signal: running.signal,
      });
      const took = (performance.now() - began) / 1e3;
      const found = await response.json();
      put(
        answers,
        (found.results || [found]).map((item, at) => answerCard(item, asked.adapters[at], asked.text)),
      );
      put(timing, timed(response.headers.get("Server-Timing") || "", took));
    } catch (error) {
      if (error.name === "AbortError") return;
      put(timing);
      put(
        answers,
        failure(error),
        nearest(error, (name) => button(name, () => choose(name), { class: "quiet" })),
      );
    } finally {
      answers.removeAttribute("aria-busy");
      go.disabled = !chosen.size;
    }
  }

  const shared = query.has("text") || query.has("adapters");
  const before = shared
    ? {
        text: query.get("text") || "",
        adapters: (query.get("adapters") || "").split(",").filter(Boolean),
        long: query.get("long") || "truncate",
      }
    : kept;
  if (before) {
    text.value = before.text;
    long.value = before.long === "windows" ? "windows" : "truncate";
    before.adapters.slice(0, MOST_ADAPTERS).forEach((name) => chosen.add(name));
  } else {
    try {
      const listed = await read("/adapters?limit=6", { signal });
      const serving = listed.adapters
        .filter((entry) => entry.versions[0].state !== "failed")
        .map((entry) => entry.name);
      for (const name of new Set([listed.default_adapter, ...serving]))
        if (chosen.size < USUAL_ADAPTERS) chosen.add(name);
    } catch (error) {
      if (error.name !== "AbortError") put(answers, failure(error));
      return;
    }
  }
  showChosen();
  put(answers, h("p", { class: "dim" }, "Every adapter answers in one pass over the encoder: the text is read once."));
  if (shared && text.value) classify();
}

const bodyOf = (asked) => ({ text: asked.text, ...(asked.long === "windows" ? { long_text: "windows" } : {}) });
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function command(asked) {
  const parts = [
    `curl -s ${location.origin}/classify`,
    "-H 'Content-Type: application/json'",
    `-H ${quoted(`X-Adapter: ${asked.adapters.join(",")}`)}`,
  ];
  if (hasKey()) parts.push(`-H "Authorization: Bearer $TONEARM_KEY"`);
  return [...parts, `-d ${quoted(JSON.stringify(bodyOf(asked)))}`].join(" \\\n  ");
}

function answerCard(item, asked, text) {
  if (item.error)
    return h(
      "article",
      { class: "card answer" },
      h("h2", null, asked),
      failure({ title: item.error.title, message: item.error.detail }),
    );
  const scores = Object.entries(item.scores).sort((one, other) => other[1] - one[1]);
  const bars = (some) =>
    h(
      "ul",
      { class: "bars" },
      some.map(([label, score]) => {
        const bar = h("span", { class: `bar${label === item.label ? " top" : ""}`, "aria-hidden": "true" });
        bar.style.setProperty("--share", score);
        return h("li", null, h("span", { class: "name" }, label), bar, h("span", { class: "number" }, percent(score)));
      }),
    );
  const read =
    item.windows > 1 ? `${count(item.tokens)} tokens in ${item.windows} windows` : `${count(item.tokens)} tokens`;
  return h(
    "article",
    { class: "card answer" },
    h("h2", null, h("a", { href: `#/adapters/${item.adapter}` }, item.adapter)),
    h("p", { class: "verdict" }, item.label, " ", h("small", null, percent(item.score))),
    bars(scores.slice(0, MOST_BARS)),
    scores.length > MOST_BARS
      ? h(
          "details",
          null,
          h("summary", null, `${scores.length - MOST_BARS} more labels`),
          bars(scores.slice(MOST_BARS)),
        )
      : null,
    h("p", { class: "dim" }, read, item.truncated ? [" ", badge("cut", "cut off")] : null),
    item.truncated ? cutOff(item, text) : null,
  );
}

/** The text as this adapter read it: what was cut off is struck out. */
function cutOff(item, text) {
  if (!item.kept) return null;
  const letters = Array.from(text),
    [from, to] = item.kept;
  const part = (first, last) => letters.slice(first, last).join("");
  return h(
    "details",
    null,
    h("summary", null, `${count(letters.length - (to - from))} of ${count(letters.length)} characters were not read`),
    h(
      "p",
      { class: "read", tabindex: 0, role: "region", "aria-label": "The text as it was read" },
      from ? h("del", null, part(0, from)) : null,
      part(from, to),
      to < letters.length ? h("del", null, part(to)) : null,
    ),
  );
}

function timed(header, took) {
  const stages = header
    .split(",")
    .map((part) => part.trim().match(/^(\w+);dur=([\d.]+)/))
    .filter(Boolean);
  const said = stages.map(([, stage, ms]) => `${stage} ${seconds(ms / 1e3)}`);
  return [`There and back ${seconds(took)}`, said.length ? ` (in the service: ${said.join(", ")})` : ""];
}

/** A search field with its matches below it, whatever the registry's size: the service searches. */
function makePicker(pick, signal) {
  const matches = h("ul", { class: "matches", hidden: true, "aria-label": "Matching adapters" });
  const field = h("input", {
    type: "search",
    placeholder: "Add an adapter: name, name@3 or name@alias",
    "aria-label": "Add an adapter",
    autocomplete: "off",
    spellcheck: "false",
  });
  const close = () => {
    matches.hidden = true;
  };
  const take = (name) => {
    pick(name);
    field.value = "";
    close();
    field.focus();
  };
  const look = async () => {
    try {
      // What follows an @ is a version or an alias: the name is searched for.
      const wanted = field.value.trim().toLowerCase().split("@")[0];
      const found = await read(`/adapters?limit=${MOST_MATCHES}&search=${encodeURIComponent(wanted)}`, { signal });
      const exact = field.value.includes("@") ? [field.value.trim()] : [];
      const names = [...exact, ...found.adapters.map((entry) => entry.name)];
      put(
        matches,
        names.map((name) => h("li", null, h("button", { type: "button", onclick: () => take(name) }, name))),
        found.total > MOST_MATCHES ? h("li", { class: "dim" }, `${count(found.total - MOST_MATCHES)} more`) : null,
        names.length ? null : h("li", { class: "dim" }, "No adapter of that name."),
      );
      matches.hidden = false;
    } catch {
      close();
    }
  };
  const lookSoon = calm(look, 120);
  // What was found for fewer letters is not to be taken for these.
  field.addEventListener("input", () => {
    close();
    lookSoon();
  });
  field.addEventListener("click", look);
  const box = h(
    "div",
    {
      class: "picker",
      onfocusout: (event) => {
        if (!box.contains(event.relatedTarget)) close();
      },
      onkeydown: async (event) => {
        const stops = [field, ...matches.querySelectorAll("button")];
        const at = stops.indexOf(document.activeElement);
        if (event.key === "Escape") {
          close();
          field.focus();
        } else if (event.key === "Enter" && event.target === field) {
          event.preventDefault();
          if (!field.value.trim()) return;
          if (matches.hidden) await look();
          const first = matches.querySelector("button");
          if (first) take(first.textContent);
        } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
          event.preventDefault();
          if (matches.hidden) {
            look();
            return;
          }
          stops[(at + (event.key === "ArrowDown" ? 1 : stops.length - 1)) % stops.length].focus();
        }
      },
    },
    field,
    matches,
  );
  return box;
}
