// The service's own metrics, read by the page: what two looks differ in is what happened between them.

import { ask } from "./http.js";

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Prometheus' text format as [{name, labels, value}]. */
export function parse(text) {
  const found = [];
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const match = LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(LABEL))
      labels[name] = value.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
    found.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return found;
}

/** One look at /metrics. */
export class Look {
  constructor(text, at) {
    this.at = at;
    this.byName = new Map();
    for (const sample of parse(text)) {
      if (!this.byName.has(sample.name)) this.byName.set(sample.name, []);
      this.byName.get(sample.name).push(sample);
    }
  }

  of(name) {
    return this.byName.get(name) || [];
  }

  /** Sum over the samples that a test lets through; null where there is no such metric. */
  sum(name, keep = () => true) {
    const found = this.of(name).filter((sample) => keep(sample.labels));
    return found.length ? found.reduce((total, sample) => total + sample.value, 0) : null;
  }

  /** Sums by the value of a label. */
  by(name, label) {
    const sums = new Map();
    for (const sample of this.of(name))
      sums.set(sample.labels[label], (sums.get(sample.labels[label]) || 0) + sample.value);
    return sums;
  }
}

/** What happened between two looks. A counter that fell began anew: the service was started again. */
export class Span {
  constructor(before, after) {
    this.before = before;
    this.after = after;
    this.seconds = (after.at - before.at) / 1e3;
  }

  count(name, keep) {
    const now = this.after.sum(name, keep) || 0,
      then = this.before.sum(name, keep) || 0;
    return now >= then ? now - then : now;
  }

  rate(name, keep) {
    return this.count(name, keep) / this.seconds;
  }

  mean(name, keep) {
    const times = this.count(`${name}_count`, keep);
    return times ? this.count(`${name}_sum`, keep) / times : null;
  }

  /** By linear interpolation within the histogram's buckets, as Prometheus' histogram_quantile does. */
  quantile(share, name, keep = () => true) {
    const bounds = [...new Set(this.after.of(`${name}_bucket`).map((sample) => sample.labels.le))]
      .map((le) => [le === "+Inf" ? Infinity : Number(le), le])
      .sort((one, other) => one[0] - other[0]);
    const below = bounds.map(([, le]) => this.count(`${name}_bucket`, (labels) => labels.le === le && keep(labels)));
    const total = below.at(-1);
    if (!total) return null;
    const at = below.findIndex((number) => number >= share * total);
    const low = at ? bounds[at - 1][0] : 0,
      under = at ? below[at - 1] : 0;
    if (bounds[at][0] === Infinity) return low;
    return low + (bounds[at][0] - low) * ((share * total - under) / (below[at] - under || 1));
  }
}

/** Looks every so often until the signal ends it, and tells of each with those before it. */
export async function follow(every_ms, signal, tell, keep = 151) {
  const looks = [];
  while (!signal.aborted) {
    try {
      const response = await ask("/metrics", { headers: { Accept: "text/plain" }, signal });
      looks.push(new Look(await response.text(), Date.now()));
      if (looks.length > keep) looks.shift();
      tell(looks, null);
    } catch (error) {
      if (signal.aborted) return;
      tell(looks, error);
    }
    await new Promise((done) => {
      const timer = setTimeout(done, every_ms);
      signal.addEventListener(
        "abort",
        () => {
          clearTimeout(timer);
          done();
        },
        { once: true },
      );
    });
  }
}
