// What the service is doing now, from its own metrics; the page is the only one that remembers.

import { badge, bytes, count, failure, h, percent, put, rate, seconds, table } from "./dom.js";
import { lines } from "./charts.js";
import { Span, follow } from "./metrics.js";

const EVERY_MS = 2000,
  TABLE_LOOKS = 15,
  MOST_ADAPTERS = 12;
const STAGES = ["queue", "tokenise", "forward"];
const canHover = matchMedia("(hover: hover)");
const asks = (labels) => labels.adapter !== "" && labels.adapter !== undefined;

export async function open(room, { signal }) {
  const tiles = h("div", { class: "tiles" }),
    charts = h("div", { class: "columns" }),
    busiest = h("div"),
    workers = h("div");
  const trouble = h("div", { role: "status" });
  put(
    room,
    h("h1", null, "Live"),
    trouble,
    tiles,
    charts,
    h(
      "div",
      { class: "columns" },
      h("section", { class: "card" }, h("h2", null, "Busiest adapters"), busiest),
      h("section", { class: "card" }, h("h2", null, "Workers"), workers),
    ),
  );
  put(tiles, h("p", { class: "dim" }, "The first figures come with the second look."));
  const known = new WeakMap(); // a look's figures, worked out once
  follow(EVERY_MS, signal, (looks, error) => {
    put(trouble, error ? failure(error) : null);
    if (looks.length < 2 || document.hidden) return;
    const points = looks.slice(1).map((look, at) => {
      if (!known.has(look)) known.set(look, figuresOf(new Span(looks[at], look)));
      return known.get(look);
    });
    const lately = new Span(looks[Math.max(0, looks.length - TABLE_LOOKS)], looks.at(-1));
    put(tiles, tilesOf(lately, looks.at(-1)));
    // Under the pointer they stand still, to be read.
    if (!(canHover.matches && charts.matches(":hover"))) put(charts, chartsOf(points));
    put(busiest, busiestOf(lately));
    put(workers, workersOf(looks.at(-1)));
  });
}

const padding = (span) => {
  const computed = span.count("tonearm_padded_tokens_total");
  return computed ? 1 - span.count("tonearm_batch_tokens_total") / computed : null;
};
const refused = (labels) => asks(labels) && labels.status.startsWith("4");
const broke = (labels) => asks(labels) && labels.status.startsWith("5");
const classified = (labels) => labels.route === "/classify";

function tilesOf(span, look) {
  const limit = look.sum("tonearm_queued_rows_limit"),
    queued = look.sum("tonearm_queued_rows");
  const states = look.by("tonearm_adapters", "state");
  const tile = (name, value, more) =>
    h(
      "div",
      { class: "card tile" },
      h("p", { class: "dim" }, name),
      h("p", { class: "big" }, value),
      h("p", { class: "dim" }, more || " "),
    );
  return [
    tile(
      "Requests",
      `${rate(span.rate("tonearm_requests_total", asks))}/s`,
      `${rate(span.rate("tonearm_texts_total"))} texts/s`,
    ),
    tile(
      "Refused, failed",
      `${rate(span.rate("tonearm_requests_total", refused))}, ${rate(span.rate("tonearm_requests_total", broke))}/s`,
      "4xx and 5xx",
    ),
    tile(
      "Latency",
      seconds(span.quantile(0.5, "tonearm_request_seconds", classified)),
      `p99 ${seconds(span.quantile(0.99, "tonearm_request_seconds", classified))}`,
    ),
    tile("Queue", count(queued), `${count(look.sum("tonearm_queued_tokens"))} tokens; at most ${count(limit)} texts`),
    tile("Padding", percent(padding(span)), `${rate(span.mean("tonearm_batch_rows"))} texts a batch`),
    tile(
      "Resident",
      count(states.get("resident")),
      `of ${count(look.sum("tonearm_adapters_registered"))} names; ${count(states.get("failed"))} failed`,
    ),
  ];
}

function figuresOf(span) {
  const stage = (name) => span.mean("tonearm_stage_seconds", (labels) => labels.stage === name);
  return {
    at: span.after.at,
    answered: span.rate("tonearm_requests_total", (labels) => asks(labels) && labels.status.startsWith("2")),
    refused: span.rate("tonearm_requests_total", refused),
    failed: span.rate("tonearm_requests_total", broke),
    p50: span.quantile(0.5, "tonearm_request_seconds", classified),
    p99: span.quantile(0.99, "tonearm_request_seconds", classified),
    ...Object.fromEntries(STAGES.map((name) => [name, stage(name)])),
    texts: span.after.sum("tonearm_queued_rows"),
    padding: padding(span),
    loads: span.rate("tonearm_adapter_loads_total"),
    evictions: span.rate("tonearm_adapter_evictions_total"),
  };
}

function chartsOf(points) {
  const now = points.at(-1).at;
  const line = (name, dashed = false) => ({
    name,
    points: points.map((point) => [(point.at - now) / 1e3, point[name]]),
    dashed,
  });
  const axis = { x: (value) => (value ? `−${Math.round(-value)} s` : "now") };
  return [
    lines([line("answered"), line("refused", true), line("failed", true)], [], {
      ...axis,
      label: "Requests a second",
      y: rate,
      floor: 0,
    }),
    lines([line("p50"), line("p99", true)], [], { ...axis, label: "Time to answer /classify", y: seconds, floor: 0 }),
    lines(
      STAGES.map((name, at) => line(name, at === 0)),
      [],
      { ...axis, label: "Mean time in a stage, of a batch", y: seconds, floor: 0 },
    ),
    lines([line("texts")], [], {
      ...axis,
      label: "Queue",
      y: count,
      floor: 0,
      whole: true,
    }),
    lines([line("padding")], [], {
      ...axis,
      label: "Share of the tokens computed that was padding",
      y: (value) => percent(value),
      floor: 0,
    }),
    lines([line("loads"), line("evictions", true)], [], {
      ...axis,
      label: "Adapters loaded and evicted, a second",
      y: rate,
      floor: 0,
    }),
  ].map((figure) => h("section", { class: "card" }, figure));
}

function busiestOf(span) {
  const adapters = [...span.after.by("tonearm_texts_total", "adapter").keys()].map((adapter) => [
    adapter,
    span.rate("tonearm_texts_total", (labels) => labels.adapter === adapter),
  ]);
  const busy = adapters
    .filter(([, texts]) => texts > 0)
    .sort((one, other) => other[1] - one[1])
    .slice(0, MOST_ADAPTERS);
  if (!busy.length) return h("p", { class: "dim" }, "No text in the last half minute.");
  return table(
    "Busiest adapters",
    ["Adapter", "#Texts/s", "#Mean confidence"],
    busy.map(([adapter, texts]) =>
      h(
        "tr",
        null,
        h("th", { scope: "row" }, adapter === "other" ? adapter : h("a", { href: `#/adapters/${adapter}` }, adapter)),
        h("td", { class: "number" }, rate(texts)),
        h("td", { class: "number" }, percent(span.mean("tonearm_confidence", (labels) => labels.adapter === adapter))),
      ),
    ),
  );
}

function workersOf(look) {
  const memory = look.by("tonearm_process_resident_bytes", "process");
  const rows = [["api", null, null, memory.get("api")]];
  for (const { labels, value } of look.of("tonearm_worker_up")) {
    const mine = (other) => other.worker === labels.worker;
    rows.push([
      `worker ${labels.worker}`,
      value,
      look.sum("tonearm_worker_heartbeat_age_seconds", mine),
      memory.get(`worker-${labels.worker}`),
    ]);
  }
  const lost = look.sum("tonearm_workers_lost_total") || 0;
  return [
    table(
      "Workers",
      ["Process", "State", "#Last sign of life", "#Memory"],
      rows.map(([name, up, age, held]) =>
        h(
          "tr",
          null,
          h("th", { scope: "row" }, name),
          h("td", null, up === null ? badge("resident", "up") : badge(up ? "resident" : "failed", up ? "up" : "down")),
          h("td", { class: "number" }, age === null ? "–" : seconds(age)),
          h("td", { class: "number" }, held === undefined ? "–" : bytes(held)),
        ),
      ),
    ),
    lost ? h("p", { class: "notice" }, `${count(lost)} workers were lost and replaced in this run.`) : null,
  ];
}
