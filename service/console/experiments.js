// Experiments: who takes part, what is known so far, what may be said of it, and how it ends.

import { badge, button, count, day, failure, h, percent, points, put, seconds, table, whiskers } from "./dom.js";
import { lines } from "./charts.js";
import { pathOf, read } from "./http.js";

const AGAIN_EVERY_MS = 10000;
const STATES = { running: "resident", stopped: "failed", promoted: "resident", "taken-back": "failed" };

export const open = (room, place) => (place.name ? one(room, place) : all(room, place));

async function all(room, { signal }) {
  put(room, h("h1", null, "Experiments"));
  try {
    const { experiments, error } = await read("/experiments", { signal });
    put(
      room,
      h("h1", null, "Experiments"),
      error ? h("p", { class: "notice bad" }, `The file as it is now is not in force: ${error}`) : null,
      experiments.length
        ? h(
            "section",
            { class: "card" },
            table(
              "Experiments",
              ["Experiment", "State", "Takes", "Arms"],
              experiments.map((each) =>
                h(
                  "tr",
                  null,
                  h(
                    "th",
                    { scope: "row" },
                    h("a", { href: `#/experiments/${encodeURIComponent(each.name)}` }, each.name),
                  ),
                  h("td", null, badge(STATES[each.state] || "plain", each.state)),
                  h("td", null, takes(each)),
                  h(
                    "td",
                    null,
                    each.arms.map((arm) => h("div", null, `${arm.name}: ${arm.adapter}, ${percent(arm.share)}`)),
                    each.shadow ? h("div", { class: "dim" }, `shadow: ${each.shadow}`) : null,
                  ),
                ),
              ),
            ),
          )
        : h(
            "p",
            null,
            "No experiment is in the file. One is a few lines of experiments.yaml, which is read again when it changes.",
          ),
    );
  } catch (error) {
    if (error.name !== "AbortError") room.append(failure(error));
  }
}

function takes(each) {
  const parts = [`${each.coverage} % of the units`];
  if (each.layer) parts.push(`layer ${each.layer}`);
  for (const [header, values] of Object.entries(each.match)) parts.push(`${header}: ${values.join(" or ")}`);
  return parts.join(", ");
}

async function one(room, { name, signal }) {
  const verdict = h("div"),
    arms = h("div"),
    differences = h("div"),
    course = h("section", { class: "card" }),
    decided = h("div"),
    done = h("div", { role: "status" });
  const reason = h("input", { id: "reason", required: true, maxlength: 1000, autocomplete: "off" });
  const arm = h("select", { id: "arm" }),
    alias = h("input", { id: "new-alias", placeholder: "none", autocomplete: "off" });
  put(
    room,
    h("p", { class: "crumb" }, h("a", { href: "#/experiments" }, "Experiments")),
    h("h1", null, name),
    verdict,
    h("section", { class: "card" }, h("h2", null, "Arms"), arms),
    course,
    h("section", { class: "card" }, h("h2", null, "Differences"), differences),
    h(
      "div",
      { class: "columns" },
      h("section", { class: "card" }, h("h2", null, "How much feedback it takes"), planner(name, signal)),
      h(
        "section",
        { class: "card" },
        h("h2", null, "End it"),
        decided,
        h(
          "form",
          { class: "stack", onsubmit: (event) => event.preventDefault() },
          h("label", { for: "reason" }, "Reason, written down with the results"),
          reason,
          h("label", { for: "arm" }, "Arm to promote"),
          arm,
          h("label", { for: "new-alias" }, "Alias moved to its adapter"),
          alias,
          h(
            "div",
            { class: "buttons" },
            button(
              "Promote",
              () =>
                end("promote", () => ({
                  arm: arm.value,
                  ...(alias.value.trim() ? { alias: alias.value.trim() } : {}),
                })),
              { class: "primary" },
            ),
            button("Stop", () => end("stop", () => ({}))),
          ),
        ),
        done,
      ),
    ),
  );

  async function end(verb, more) {
    if (!reason.reportValidity()) return;
    try {
      await read(pathOf("experiments", name, verb), { method: "POST", body: { reason: reason.value, ...more() } });
      put(
        done,
        h("p", { class: "notice good" }, verb === "stop" ? "Stopped." : `Promoted: all units get ${arm.value}.`),
      );
      reason.value = "";
      await look();
    } catch (error) {
      put(done, failure(error));
    }
  }
  async function look() {
    const found = await read(pathOf("experiments", name), { signal });
    put(
      verdict,
      h(
        "p",
        {
          class: `verdict-line ${found.void ? "bad" : found.differences.some((each) => each.verdict !== "undecided") ? "good" : ""}`,
        },
        badge(STATES[found.state] || "plain", found.state),
        " ",
        found.summary,
      ),
      found.warnings.map((warning) => h("p", { class: "notice bad" }, warning)),
      found.waiting ? h("p", { class: "notice" }, `A promotion waits: ${found.waiting}`) : null,
    );
    put(arms, armTable(found), h("p", { class: "dim" }, sampleRatio(found)));
    put(differences, differenceTable(found), shadow(found));
    if (!arm.options.length)
      put(
        arm,
        found.arms.map((each) => h("option", { value: each.name }, each.name)),
      );
    if (arm.selectedIndex <= 0 && found.arms.length === 2 && !arm.dataset.touched) {
      arm.value = found.arms[1].name;
      arm.dataset.touched = "1";
    }
    put(
      decided,
      h(
        "ul",
        { class: "decisions" },
        found.decisions.map((each) =>
          h(
            "li",
            null,
            h("b", null, each.kind),
            ` ${day(each.at)}: ${each.reason} `,
            h(
              "span",
              { class: "dim" },
              Object.entries(each.shares)
                .map(([which, share]) => `${which} ${percent(share, 0)}`)
                .join(", "),
            ),
          ),
        ),
      ),
    );
  }
  async function lookBack() {
    const { looks } = await read(pathOf("experiments", name, "history"), { signal });
    put(course, h("h2", null, "What a look would have said"), sequence(looks));
  }
  try {
    await Promise.all([look(), lookBack()]);
  } catch (error) {
    if (error.name !== "AbortError") put(room, h("h1", null, name), failure(error));
    return;
  }
  const timer = setInterval(() => Promise.all([look(), lookBack()]).catch(() => {}), AGAIN_EVERY_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function armTable(found) {
  const heads = [
    "Arm",
    "#Ordered",
    "#Units",
    "#Texts",
    "#Labelled",
    "Accuracy, 95 % at every look",
    "#Macro-F1",
    "#Calibration error",
    "#Errors",
    "#p50",
    "#p99",
  ];
  const units = found.arms.reduce((sum, arm) => sum + arm.units, 0);
  return table(
    "Arms",
    heads,
    found.arms.map((arm) =>
      h(
        "tr",
        null,
        h(
          "th",
          { scope: "row" },
          arm.name,
          h("div", { class: "dim" }, h("a", { href: `#/adapters/${arm.adapter}` }, arm.adapter)),
        ),
        h("td", { class: "number" }, percent(arm.share)),
        h(
          "td",
          { class: "number" },
          count(arm.units),
          h("div", { class: "dim" }, units ? percent(arm.units / units) : ""),
        ),
        h("td", { class: "number" }, count(arm.texts)),
        h("td", { class: "number" }, count(arm.labelled), h("div", { class: "dim" }, percent(arm.coverage, 0))),
        h(
          "td",
          null,
          arm.accuracy_interval
            ? whiskers({ value: arm.accuracy, ...arm.accuracy_interval }, "accuracy")
            : percent(arm.accuracy),
        ),
        h("td", { class: "number" }, arm.macro_f1 === null ? "–" : arm.macro_f1.toFixed(3)),
        h("td", { class: "number" }, percent(arm.calibration_error)),
        h("td", { class: "number" }, count(arm.errors)),
        h("td", { class: "number" }, arm.p50_ms === null ? "–" : seconds(arm.p50_ms / 1e3)),
        h("td", { class: "number" }, arm.p99_ms === null ? "–" : seconds(arm.p99_ms / 1e3)),
      ),
    ),
  );
}

function sampleRatio(found) {
  if (found.sample_ratio_p === null) return "No unit has been assigned yet.";
  const p = found.sample_ratio_p < 0.001 ? found.sample_ratio_p.toExponential(1) : found.sample_ratio_p.toFixed(3);
  return found.void
    ? `Sample-ratio check failed: a split like this has p = ${p} under the weights; below 0.001 nothing else here can be believed.`
    : `Sample-ratio check passed: a split at least this far from the weights has p = ${p}.`;
}

const bounds = (interval) => `${points(interval.low)} to ${points(interval.high)}`;
const verdictBadge = (verdict) => badge({ better: "resident", worse: "failed" }[verdict] || "plain", verdict);

function differenceTable(found) {
  if (!found.differences.length)
    return h(
      "p",
      { class: "dim" },
      found.void ? "None: the results are void." : "None yet: each arm needs labelled texts of 30 units.",
    );
  const heads = [
    "Arm",
    `#Accuracy less ${found.arms[0].name}'s, points`,
    "#95 % at every look",
    "#95 % at one look",
    "Verdict",
  ];
  return table(
    "Differences",
    heads,
    found.differences.map((each) =>
      h(
        "tr",
        null,
        h("th", { scope: "row" }, each.arm),
        h("td", { class: "number" }, points(each.accuracy)),
        h("td", { class: "number" }, bounds(each.anytime)),
        h("td", { class: "number dim" }, bounds(each.fixed)),
        h("td", null, verdictBadge(each.verdict)),
      ),
    ),
  );
}

function shadow({ pairs }) {
  if (!pairs) return null;
  const said = [`Shadow ${pairs.adapter}: ${count(pairs.pairs)} texts read beside what was answered`];
  if (pairs.agreement !== null) said.push(`the same label in ${percent(pairs.agreement)} of them`);
  if (pairs.labelled)
    said.push(
      `of ${count(pairs.labelled)} with feedback it alone was right in ${count(pairs.only_shadow)}, the answer alone in ${count(pairs.only_arm)}`,
    );
  if (pairs.anytime) said.push(`accuracy ${points(pairs.accuracy)} points (${bounds(pairs.anytime)} at every look)`);
  return h("p", null, said.join(", "), ". ", verdictBadge(pairs.verdict));
}

function sequence(looks) {
  const seen = looks.filter((look) => look.differences.length);
  if (!seen.length)
    return h("p", { class: "dim" }, "No difference could be seen yet: each arm needs labelled texts of 30 units.");
  const total = (look) => Object.values(look.labelled).reduce((sum, each) => sum + each, 0);
  const names = [...new Set(seen.flatMap((look) => look.differences.map((each) => each.arm)))];
  const series = names.map((name, at) => {
    const of = seen
      .map((look) => [total(look), look.differences.find((each) => each.arm === name)])
      .filter(([, found]) => found);
    return {
      name,
      points: of.map(([x, found]) => [x, found.accuracy]),
      band: of.map(([x, found]) => [x, found.anytime.low, found.anytime.high]),
      dashed: at > 0,
    };
  });
  const decided = seen.find((look) => look.differences.some((each) => each.verdict !== "undecided"));
  const last = seen.at(-1);
  return [
    lines(series, decided ? [{ x: total(decided), text: "zero left" }] : [], {
      label: `Accuracy less ${Object.keys(last.labelled)[0]}'s, in points, with its 95 % confidence sequence`,
      x: (value) => count(value),
      y: points,
      zero: true,
      height: 240,
    }),
    h(
      "p",
      { class: "dim" },
      `Over ${count(total(last))} labels, the last of ${day(last.at)}. The band holds at all looks at once: looking daily, or now, is harmless.`,
    ),
  ];
}

function planner(name, signal) {
  const difference = h("input", {
    id: "difference",
    type: "number",
    step: "0.5",
    min: "-99",
    max: "99",
    value: "2",
    required: true,
  });
  const power = h("input", {
    id: "power",
    type: "number",
    step: "1",
    min: "50",
    max: "99",
    value: "80",
    required: true,
  });
  const accuracy = h("input", {
    id: "accuracy",
    type: "number",
    step: "0.5",
    min: "1",
    max: "99",
    placeholder: "as seen",
  });
  const answer = h("div", { role: "status" });
  return h(
    "form",
    {
      class: "stack",
      onsubmit: async (event) => {
        event.preventDefault();
        const asked = new URLSearchParams({ difference: difference.value / 100, power: power.value / 100 });
        if (accuracy.value) asked.set("accuracy", accuracy.value / 100);
        try {
          const found = await read(`${pathOf("experiments", name, "plan")}?${asked}`, { signal });
          const have = Object.entries(found.labelled_units)
            .map(([arm, units]) => `${arm} has ${count(units)}`)
            .join(", ");
          put(
            answer,
            h(
              "p",
              null,
              h("b", null, count(found.anytime)),
              " labelled units an arm for a verdict that holds at every look, ",
              h("b", null, count(found.fixed)),
              ` for one look settled before. Now ${have}.`,
            ),
          );
        } catch (error) {
          if (error.name !== "AbortError") put(answer, failure(error));
        }
      },
    },
    h("label", { for: "difference" }, "Smallest difference to be seen, points"),
    difference,
    h("label", { for: "power" }, "Chance of seeing it, %"),
    power,
    h("label", { for: "accuracy" }, "Accuracy of the first arm, %"),
    accuracy,
    h("div", { class: "buttons" }, h("button", { type: "submit" }, "Plan")),
    answer,
  );
}
