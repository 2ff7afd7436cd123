// Lines with bands, and a confusion matrix: all that the console draws. Charts are as wide as the place they stand in.

import { h, s } from "./dom.js";

const PAD = { left: 52, right: 12, top: 10, bottom: 26 };

function ticks(low, high, wanted, least = 0) {
  const rough = Math.max(least, (high - low) / wanted || 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step)
    found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

const finite = (value) => typeof value === "number" && Number.isFinite(value);

/**
 * Lines over one axis.
 *
 * series: [{name, points: [[x, y]], band: [[x, low, high]], dashed}], at most six; y may be null: the line is broken.
 * marks: [{x, text}]: vertical lines. options: {label, x, y: formats of values, floor, zero, whole, height}
 */
export function lines(series, marks = [], options = {}) {
  const { label, x: xText = String, y: yText = String, height = 190, zero = false } = options;
  const legend = h("ul", { class: "legend" });
  const place = h("div", { class: "plot" });
  const figure = h("figure", { class: "chart" }, h("figcaption", null, label), legend, place);
  const xs = series.flatMap((each) => [...each.points, ...(each.band || [])].map((point) => point[0]));
  const ys = series
    .flatMap((each) => [
      ...each.points.map((point) => point[1]),
      ...(each.band || []).flatMap((point) => point.slice(1)),
    ])
    .filter(finite);
  const values = series.map((each, at) => h("b", null, ""));
  const say = (index) =>
    series.forEach((each, at) => {
      const point = index === null ? each.points.findLast((one) => finite(one[1])) : each.points[index];
      values[at].textContent = point && finite(point[1]) ? yText(point[1]) : "–";
    });
  legend.append(
    ...series.map((each, at) =>
      h(
        "li",
        null,
        s(
          "svg",
          { viewBox: "0 0 18 8", width: 18, height: 8, "aria-hidden": "true" },
          s("line", { x1: 0, x2: 18, y1: 4, y2: 4, class: `line c${at}${each.dashed ? " dashed" : ""}` }),
        ),
        `${each.name} `,
        values[at],
      ),
    ),
  );
  say(null);
  if (!ys.length) {
    place.append(h("p", { class: "dim" }, "Nothing to draw yet."));
    return figure;
  }
  let low = options.floor ?? Math.min(...ys, ...(zero ? [0] : []));
  let high = Math.max(...ys, ...(zero ? [0] : []));
  if (high - low < 1e-9) {
    high += Math.abs(high) * 0.1 || 1;
    if (options.floor === undefined) low -= Math.abs(low) * 0.1;
  }
  const first = Math.min(...xs),
    last = Math.max(...xs);

  const draw = (width) => {
    const inner = { width: width - PAD.left - PAD.right, height: height - PAD.top - PAD.bottom };
    const px = (value) =>
      PAD.left + (last === first ? inner.width / 2 : ((value - first) / (last - first)) * inner.width);
    const py = (value) => PAD.top + (1 - (value - low) / (high - low)) * inner.height;
    const path = (points) => {
      let pen = "M";
      return points
        .map(([x, y]) => {
          if (!finite(y)) {
            pen = "M";
            return "";
          }
          const part = `${pen}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
          pen = "L";
          return part;
        })
        .join("");
    };
    const svg = s("svg", { width, height, role: "img", "aria-label": describe(label, series, yText) });
    for (const tick of ticks(low, high, 4, options.whole ? 1 : 0)) {
      svg.append(
        s("line", {
          x1: PAD.left,
          x2: width - PAD.right,
          y1: py(tick),
          y2: py(tick),
          class: tick === 0 && zero ? "axis" : "grid",
        }),
        s("text", { x: PAD.left - 6, y: py(tick) + 4, "text-anchor": "end" }, yText(tick)),
      );
    }
    const across = options.ticks || ticks(first, last, Math.max(2, Math.floor(inner.width / 110)));
    for (const tick of across) {
      const atEdge = px(tick) > width - 32;
      svg.append(
        s(
          "text",
          { x: atEdge ? width - 1 : px(tick), y: height - 8, "text-anchor": atEdge ? "end" : "middle" },
          xText(tick),
        ),
      );
    }
    for (const mark of marks) {
      const right = px(mark.x) > width - 110;
      svg.append(
        s("line", { x1: px(mark.x), x2: px(mark.x), y1: PAD.top, y2: height - PAD.bottom, class: "mark" }),
        s(
          "text",
          { x: px(mark.x) + (right ? -5 : 5), y: height - PAD.bottom - 6, "text-anchor": right ? "end" : "start" },
          mark.text,
        ),
      );
    }
    series.forEach((each, at) => {
      if (each.band?.length) {
        const outline = [
          ...each.band.map(([x, bottom]) => [x, bottom]),
          ...each.band.map(([x, , top]) => [x, top]).reverse(),
        ];
        svg.append(s("path", { d: `${path(outline)}Z`, class: `band c${at}` }));
      }
      svg.append(s("path", { d: path(each.points), class: `line c${at}${each.dashed ? " dashed" : ""}` }));
      if (each.points.length < 25) {
        for (const [x, y] of each.points)
          if (finite(y)) svg.append(s("circle", { cx: px(x), cy: py(y), r: 2.5, class: `dot c${at}` }));
      }
    });
    const cursor = s("line", { y1: PAD.top, y2: height - PAD.bottom, class: "cursor", visibility: "hidden" });
    svg.append(cursor);
    svg.addEventListener("pointermove", (event) => {
      const wanted = first + ((event.offsetX - PAD.left) / inner.width) * (last - first);
      const all = series[0].points;
      let nearest = 0;
      all.forEach(([x], index) => {
        if (Math.abs(x - wanted) < Math.abs(all[nearest][0] - wanted)) nearest = index;
      });
      if (!all.length) return;
      cursor.setAttribute("x1", px(all[nearest][0]));
      cursor.setAttribute("x2", px(all[nearest][0]));
      cursor.setAttribute("visibility", "visible");
      say(nearest);
    });
    svg.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      say(null);
    });
    return svg;
  };
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width < 80 || width === drawn) return;
    drawn = width;
    place.replaceChildren(draw(width));
  }).observe(place);
  return figure;
}

function describe(label, series, yText) {
  const said = series.map((each) => {
    const all = each.points.map((point) => point[1]).filter(finite);
    return all.length ? `${each.name} from ${yText(all[0])} to ${yText(all.at(-1))}` : `${each.name}: nothing yet`;
  });
  return `${label}: ${said.join("; ")}`;
}

/** Rows are what was true, columns what was said; a row's shades are shares of that row. */
export function confusion(matrix, labels) {
  const cell = (value, row, at, to) => {
    const share = row ? value / row : 0;
    return h(
      "td",
      {
        class: `heat h${Math.round(share * 8)}${at === to ? " right" : ""}`,
        title: `${labels[at]} taken for ${labels[to]}: ${value} of ${row}`,
      },
      value,
    );
  };
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Confusion matrix" },
    h(
      "table",
      { class: "confusion" },
      h("caption", null, "Confusion: rows are what was true, columns what was said"),
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          h("td"),
          labels.map((label) => h("th", { scope: "col" }, label)),
        ),
      ),
      h(
        "tbody",
        null,
        matrix.map((row, at) => {
          const total = row.reduce((sum, value) => sum + value, 0);
          return h(
            "tr",
            null,
            h("th", { scope: "row" }, labels[at]),
            row.map((value, to) => cell(value, total, at, to)),
          );
        }),
      ),
    ),
  );
}
