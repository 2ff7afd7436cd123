// All adapters, a page at a time; and one of them, with its report, its traffic, and what an administrator may do.

import { badge, button, calm, count, day, failure, h, nearest, percent, put, rate, table, whiskers } from "./dom.js";
import { confusion, lines } from "./charts.js";
import { ask, pathOf, read } from "./http.js";
import { Span, follow } from "./metrics.js";

const PAGE = 50,
  TRAFFIC_EVERY_MS = 4000,
  MOST_LABELS = 4;

export const open = (room, place) => (place.name ? one(room, place) : all(room, place));

async function all(room, { query, signal }) {
  const search = h("input", {
    type: "search",
    id: "search",
    value: query.get("search") || "",
    autocomplete: "off",
    oninput: calm(() => list(0), 150),
  });
  const state = h(
    "select",
    { id: "state", onchange: () => list(0) },
    ["", "resident", "registered", "failed"].map((each) => h("option", { value: each }, each || "any")),
  );
  state.value = query.get("state") || "";
  const found = h("p", { role: "status", class: "dim" });
  const rows = h("tbody");
  const pages = h("div", { class: "buttons" });
  put(
    room,
    h("h1", null, "Adapters"),
    h(
      "form",
      { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      h("label", { for: "search" }, "Search"),
      search,
      h("label", { for: "state" }, "State"),
      state,
    ),
    found,
    h(
      "section",
      { class: "card" },
      table("Adapters", ["Adapter", "State", "Labels", "Accuracy, 95 % interval", "#Texts/s", "#Versions"], rows),
    ),
    pages,
  );
  let traffic = null;
  let running = new AbortController();

  async function list(offset) {
    running.abort();
    running = new AbortController();
    const asked = new URLSearchParams({ limit: PAGE, offset });
    const shown = new URLSearchParams();
    for (const [name, field] of [
      ["search", search],
      ["state", state],
    ]) {
      if (field.value.trim()) {
        asked.set(name, field.value.trim());
        shown.set(name, field.value.trim());
      }
    }
    if (offset) shown.set("offset", offset);
    history.replaceState(null, "", `#/adapters${shown.size ? `?${shown}` : ""}`);
    let listed;
    try {
      listed = await read(`/adapters?${asked}`, { signal: running.signal });
    } catch (error) {
      if (error.name !== "AbortError") put(found, failure(error));
      return;
    }
    if (signal.aborted) return;
    const last = Math.min(offset + PAGE, listed.total);
    put(
      found,
      listed.total ? `${count(offset + 1)} to ${count(last)} of ${count(listed.total)}` : "No adapter is like that.",
    );
    put(
      rows,
      listed.adapters.map((entry) => row(entry, listed.default_adapter)),
    );
    put(
      pages,
      offset ? button("Back", () => list(Math.max(0, offset - PAGE))) : null,
      last < listed.total ? button("Next", () => list(offset + PAGE)) : null,
    );
    showTraffic();
  }
  function row(entry, byDefault) {
    const newest = entry.versions[0],
      labels = newest.labels || [];
    const failed = entry.versions.filter((version) => version.state === "failed").length;
    return h(
      "tr",
      { "data-name": entry.name },
      h(
        "th",
        { scope: "row" },
        h("a", { href: `#/adapters/${entry.name}` }, entry.name),
        entry.name === byDefault ? [" ", badge("plain", "default")] : null,
        h("div", { class: "dim" }, newest.description || ""),
      ),
      h(
        "td",
        null,
        badge(newest.state),
        newest.pinned ? [" ", badge("plain", "pinned")] : null,
        failed && newest.state !== "failed" ? h("div", { class: "dim" }, `${failed} failed`) : null,
        newest.reason ? h("div", { class: "reason" }, newest.reason) : null,
      ),
      h(
        "td",
        null,
        labels.length
          ? labels.slice(0, MOST_LABELS).join(", ") +
              (labels.length > MOST_LABELS ? ` and ${labels.length - MOST_LABELS} more` : "")
          : h("span", { class: "dim" }, "not known yet"),
      ),
      h("td", null, whiskers(newest.metrics.accuracy, "accuracy on validation")),
      h("td", { class: "number traffic" }, "–"),
      h("td", { class: "number" }, entry.versions.length),
    );
  }
  function showTraffic() {
    if (!traffic) return;
    const rates = perName(traffic);
    for (const tr of rows.children)
      tr.querySelector(".traffic").textContent = rates.has(tr.dataset.name) ? rate(rates.get(tr.dataset.name)) : "–";
  }
  follow(
    TRAFFIC_EVERY_MS,
    signal,
    (looks) => {
      if (looks.length < 2) return;
      traffic = new Span(looks.at(-2), looks.at(-1));
      showTraffic();
    },
    2,
  );
  await list(Number(query.get("offset")) || 0);
}

/** Texts a second, by adapter's name without its version. */
function perName(span) {
  const rates = new Map();
  for (const adapter of span.after.by("tonearm_texts_total", "adapter").keys()) {
    const name = adapter.split("@")[0];
    rates.set(name, (rates.get(name) || 0) + span.rate("tonearm_texts_total", (labels) => labels.adapter === adapter));
  }
  return rates;
}

async function one(room, { name, signal }) {
  let found;
  try {
    found = await read(pathOf("adapters", name), { signal });
  } catch (error) {
    if (error.name === "AbortError") return;
    put(
      room,
      h("h1", null, name),
      failure(error),
      nearest(error, (near) => h("a", { href: `#/adapters/${near}` }, near)),
    );
    return;
  }
  const report = h(
    "section",
    { class: "card" },
    h("h2", null, "Report"),
    h("p", { class: "dim" }, found.report.length ? "…" : "It came without one."),
  );
  const now = h("p", { class: "dim" }, "No text since this page was opened.");
  const head = h("div");
  const done = h("div", { role: "status" });
  const again = async () => {
    found = await read(pathOf("adapters", name), { signal });
    showHead();
  };

  function showHead() {
    put(
      head,
      h(
        "p",
        { class: "badges" },
        badge(found.state),
        found.pinned ? badge("plain", "pinned") : null,
        badge("plain", found.verified || found.training ? "with a manifest" : "no manifest"),
        Object.entries(found.aliases)
          .filter(([, version]) => version === found.version)
          .map(([alias]) => badge("plain", `@${alias}`)),
      ),
      found.reason ? h("p", { class: "notice bad" }, found.reason) : null,
      found.description ? h("p", null, found.description) : null,
      found.versions.length > 1
        ? h(
            "p",
            null,
            "Versions: ",
            found.versions.map((version) => [
              version === found.version
                ? h("b", { "aria-current": "true" }, version)
                : h("a", { href: `#/adapters/${found.name}@${version}` }, version),
              " ",
            ]),
          )
        : null,
    );
  }
  showHead();
  put(
    room,
    h("p", { class: "crumb" }, h("a", { href: "#/adapters" }, "Adapters")),
    h("h1", null, found.adapter),
    head,
    h(
      "div",
      { class: "columns" },
      h(
        "section",
        { class: "card" },
        h("h2", null, "What it is"),
        facts(found),
        found.examples.length
          ? [
              h("h3", null, "Texts to try"),
              h(
                "ul",
                null,
                found.examples
                  .slice(0, 6)
                  .map((text) =>
                    h(
                      "li",
                      null,
                      h("a", { href: `#/playground?${new URLSearchParams({ text, adapters: found.adapter })}` }, text),
                    ),
                  ),
              ),
            ]
          : null,
        h("h3", null, "Traffic now"),
        now,
      ),
      h(
        "section",
        { class: "card" },
        h("h2", null, "Administration"),
        verbs(found, again, done),
        aliases(found, again, done),
        done,
      ),
    ),
    report,
  );
  follow(
    TRAFFIC_EVERY_MS,
    signal,
    (looks) => {
      if (looks.length < 2) return;
      const span = new Span(looks[0], looks.at(-1)),
        mine = (labels) => labels.adapter === found.adapter;
      const texts = span.count("tonearm_texts_total", mine);
      if (texts)
        put(
          now,
          `${rate(texts / span.seconds)} texts/s, `,
          sharesOf(span, found.adapter),
          `mean confidence ${percent(span.mean("tonearm_confidence", mine))}.`,
        );
    },
    16,
  );
  if (found.report.includes("metrics.json")) await showReport(report, found, signal);
}

function sharesOf(span, adapter) {
  const labels = [...span.after.of("tonearm_answers_total")]
    .filter((sample) => sample.labels.adapter === adapter)
    .map((sample) => sample.labels.label);
  const counts = labels
    .map((label) => [
      label,
      span.count("tonearm_answers_total", (found) => found.adapter === adapter && found.label === label),
    ])
    .filter(([, number]) => number);
  const total = counts.reduce((sum, [, number]) => sum + number, 0);
  return counts
    .sort((first, second) => second[1] - first[1])
    .slice(0, 5)
    .map(([label, number]) => `${label} ${percent(number / total, 0)}, `);
}

function facts(found) {
  const pairs = [["Labels", (found.labels || []).join(", ") || "not known before it is loaded"]];
  if (found.training) {
    const { training } = found;
    pairs.push(
      ["Task", training.task === "multi_label" ? "any number of labels a text" : "one label a text"],
      ["Trained on", training.data ? `${training.data}, ${count(training.examples)} texts` : "not said"],
      ["Base", training.base],
      ["LoRA", training.rank ? `rank ${training.rank}` : "none: a head alone"],
      [
        "Reads",
        `${training.max_tokens} tokens; a longer text loses its ${training.truncation_side === "left" ? "beginning" : "end"}`,
      ],
      ["Temperature", training.temperature.toFixed(3)],
      ["Published", day(training.created)],
    );
  }
  const measured = Object.entries(found.metrics);
  return [
    h(
      "dl",
      { class: "facts" },
      pairs.map(([term, text]) => [h("dt", null, term), h("dd", null, text)]),
    ),
    measured.length
      ? table(
          "Metrics",
          ["On validation texts", "95 % interval", "#Texts"],
          measured.map(([metric, value]) =>
            h(
              "tr",
              null,
              h("th", { scope: "row" }, metric.replaceAll("_", " ")),
              h("td", null, whiskers(value, metric)),
              h("td", { class: "number dim" }, count(value.n)),
            ),
          ),
        )
      : null,
  ];
}

/** Does something as an administrator; what comes of it is said. */
async function order(done, what, act) {
  put(done, h("p", { class: "dim" }, `${what} …`));
  try {
    await act();
    put(done, h("p", { class: "notice good" }, `${what}: done.`));
  } catch (error) {
    if (error.name !== "AbortError") put(done, failure(error));
  }
}

function verbs(found, again, done) {
  const verb = (path, text, title) =>
    button(
      text,
      () =>
        order(done, text, async () => {
          const state = await read(pathOf("adapters", found.adapter, path), { method: "POST" });
          await again();
          if (state.reason) throw Object.assign(new Error(state.reason), { title: "It is refused" });
        }),
      { title },
    );
  return h(
    "div",
    { class: "buttons" },
    verb("load", "Load", "Make it resident now, before its first request pays for it"),
    verb("unload", "Unload", "Free its slot, and unpin it"),
    verb("pin", "Pin", "Make it resident, and never let it make room"),
    verb("verify", "Verify", "Read it again and run every check"),
  );
}

function aliases(found, again, done) {
  const list = h("div");
  const alias = h("input", {
    id: "alias",
    required: true,
    placeholder: "champion",
    autocomplete: "off",
    pattern: "[a-z0-9][a-z0-9._\\-]{0,62}",
  });
  const set = (to, version) =>
    order(done, `${found.name}@${to} to version ${version}`, async () => {
      found.aliases = (
        await read(pathOf("adapters", found.name, "aliases", to), { method: "PUT", body: { version } })
      ).aliases;
      await again();
      show();
    });
  const forget = (which) =>
    order(done, `Forget ${found.name}@${which}`, async () => {
      found.aliases = (await read(pathOf("adapters", found.name, "aliases", which), { method: "DELETE" })).aliases;
      await again();
      show();
    });
  function show() {
    const all = Object.entries(found.aliases);
    put(
      list,
      all.length
        ? h(
            "table",
            { class: "list" },
            h(
              "tbody",
              null,
              all.map(([each, version]) =>
                h(
                  "tr",
                  null,
                  h("th", { scope: "row" }, `${found.name}@${each}`),
                  h("td", null, `version ${version}`),
                  h(
                    "td",
                    null,
                    h(
                      "div",
                      { class: "buttons" },
                      version === found.version
                        ? null
                        : button(`Move to ${found.version}`, () => set(each, found.version)),
                      button("Forget", () => forget(each), { "aria-label": `Forget ${found.name}@${each}` }),
                    ),
                  ),
                ),
              ),
            ),
          )
        : h("p", { class: "dim" }, "No alias."),
    );
  }
  show();
  return [
    h("h3", null, "Aliases"),
    list,
    h(
      "form",
      {
        class: "filters",
        onsubmit: (event) => {
          event.preventDefault();
          set(alias.value.trim(), found.version);
          alias.value = "";
        },
      },
      h("label", { for: "alias" }, `New alias of version ${found.version}`),
      alias,
      h("button", { type: "submit" }, "Set"),
    ),
  ];
}

async function showReport(place, found, signal) {
  const file = (name) => pathOf("adapters", found.adapter, "report", name);
  let said;
  try {
    said = await read(file("metrics.json"), { signal });
  } catch (error) {
    if (error.name !== "AbortError") put(place, h("h2", null, "Report"), failure(error));
    return;
  }
  const parts = [h("h2", null, "Report")];
  try {
    parts.push(...drawn(said));
  } catch {
    // It came with the adapter, and may be of any form.
    parts.push(h("p", { class: "notice" }, "Its metrics.json has another form than the one drawn here."));
  }
  if (found.report.includes("index.html")) {
    parts.push(
      h(
        "p",
        null,
        button(
          "The whole report",
          async () => {
            const page = await (await ask(file("index.html"), { signal })).blob();
            const link = h("a", { href: URL.createObjectURL(page), download: `${found.adapter}.html` });
            link.click();
            URL.revokeObjectURL(link.href);
          },
          { title: "Downloads one page that needs no service" },
        ),
        " ",
        h("small", { class: "dim" }, "one page, to keep"),
      ),
    );
  }
  put(place, parts);
}

function drawn(said) {
  const parts = [];
  const epochs = Array.isArray(said.epochs) ? said.epochs : [];
  if (said.overfitting) parts.push(h("p", null, said.overfitting));
  const charts = [];
  const line = (key) => epochs.map((epoch) => [epoch.number, epoch[key]]);
  const best = said.best_epoch ? [{ x: said.best_epoch, text: "best" }] : [];
  const axis = { x: (value) => `epoch ${value}`, ticks: epochs.map((epoch) => epoch.number) };
  if (epochs.length) {
    charts.push(
      lines(
        [
          { name: "train", points: line("train_loss") },
          { name: "validation", points: line("validation_loss"), dashed: true },
        ],
        best,
        { ...axis, label: "Loss", y: (value) => value.toFixed(2), floor: 0 },
      ),
    );
    charts.push(
      lines(
        [
          { name: "accuracy", points: line("accuracy") },
          { name: "macro-F1", points: line("macro_f1"), dashed: true },
        ],
        best,
        { ...axis, label: "On validation texts", y: (value) => percent(value) },
      ),
    );
  }
  parts.push(h("div", { class: "columns" }, charts));
  const { calibration, base_against_tuned: against, tuned } = said;
  const sentences = [];
  if (against)
    sentences.push(
      `Against the untrained base it gained ${count(against.gained)} texts and lost ${count(against.lost)} (McNemar p = ${against.p_value.toPrecision(2)}).`,
    );
  if (calibration)
    sentences.push(
      `Expected calibration error ${percent(calibration.error_before)} before and ${percent(calibration.error_after)} after its temperature.`,
    );
  if (sentences.length) parts.push(h("p", null, sentences.join(" ")));
  if (tuned?.confusion && said.labels.length <= 40) parts.push(confusion(tuned.confusion, said.labels));
  return parts;
}
