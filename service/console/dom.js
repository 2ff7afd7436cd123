// Elements and numbers. Nothing here, or anywhere in the console, makes markup of text.

const SVG = "http://www.w3.org/2000/svg";

/** Children as one list, without those that are left out. */
const shown = (children) =>
  children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...shown(children));
  return element;
}

/** h("p", {class: "note"}, "text", child, [children]) */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const put = (element, ...children) => {
  element.replaceChildren(...shown(children));
  return element;
};

export const percent = (share, digits = 1) =>
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;
export const points = (share) => {
  const text = Math.abs(100 * share).toFixed(1);
  return text === "0.0" ? "0.0" : `${share < 0 ? "−" : "+"}${text}`;
};
export const count = (number) =>
  number === null || number === undefined ? "–" : Math.round(number).toLocaleString("en");
export const seconds = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value < 0.0995) return `${(1e3 * value).toFixed(1)} ms`;
  return value < 1 ? `${Math.round(1e3 * value)} ms` : `${value.toFixed(2)} s`;
};
export const rate = (value) =>
  value === null || Number.isNaN(value) ? "–" : value >= 100 ? count(value) : value.toFixed(1);
export const bytes = (value) =>
  value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GiB` : `${Math.round(value / 2 ** 20)} MiB`;
export const day = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** What went wrong, where it can be seen and is read out. */
export const failure = (error) =>
  h("p", { class: "notice bad", role: "alert" }, h("b", null, error.title || "Error"), ": ", error.message);

/** Names like the one that there is not, each as it is to be offered. */
export const nearest = (error, offer) =>
  error.nearest?.length
    ? h(
        "p",
        null,
        "Near: ",
        error.nearest.map((name) => [offer(name), " "]),
      )
    : null;

export const badge = (state, text = state) => h("span", { class: `badge ${state}` }, text);

/** A button that cannot be pressed twice while what it does is being done. */
export function button(text, act, attributes = {}) {
  const made = h(
    "button",
    {
      type: "button",
      ...attributes,
      onclick: async () => {
        made.disabled = true;
        try {
          await act(made);
        } finally {
          made.disabled = false;
        }
      },
    },
    text,
  );
  return made;
}

/** Copy, where the browser lets a page; otherwise the text is selected, for the reader to copy. */
export function copyButton(text, say, source) {
  return button(
    text,
    async (made) => {
      try {
        await navigator.clipboard.writeText(say());
        made.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source());
        made.textContent = "Selected: press Ctrl+C";
      }
      setTimeout(() => {
        made.textContent = text;
      }, 1500);
    },
    { class: "quiet" },
  );
}

/** Call at most once in so many milliseconds, with what came last. */
export function calm(act, ms) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), ms);
  };
}

/** A table that scrolls sideways by itself; a heading with a # before it stands over numbers. */
export const table = (label, heads, rows) =>
  h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    h(
      "table",
      { class: "list" },
      heads.length
        ? h(
            "thead",
            null,
            h(
              "tr",
              null,
              heads.map((text) =>
                h("th", { scope: "col", class: text[0] === "#" ? "number" : null }, text.replace(/^#/, "")),
              ),
            ),
          )
        : null,
      rows instanceof Element ? rows : h("tbody", null, rows),
    ),
  );

/** A value with its 95 % interval on a scale from 0 to 1, as a dot and whiskers. */
export function whiskers(metric, label) {
  if (!metric) return h("span", { class: "dim" }, "–");
  const at = (share) => 4 + 112 * Math.min(1, Math.max(0, share));
  return h(
    "span",
    { class: "whiskers" },
    s(
      "svg",
      { viewBox: "0 0 120 14", width: 120, height: 14, "aria-hidden": "true" },
      s("line", { x1: 4, x2: 116, y1: 7, y2: 7, class: "rail" }),
      s("line", { x1: at(metric.low), x2: at(metric.high), y1: 7, y2: 7, class: "span" }),
      s("circle", { cx: at(metric.value), cy: 7, r: 3.5, class: "dot" }),
    ),
    h(
      "span",
      { title: label },
      `${percent(metric.value)} `,
      h("small", null, `${(100 * metric.low).toFixed(1)}–${(100 * metric.high).toFixed(1)}`),
    ),
  );
}
