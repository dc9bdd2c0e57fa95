// Series over time on uPlot: stacked bars or lines, read by pointer, by arrow keys, or as a table.

import { announce, h } from "./dom.js";

const HEIGHT = 248;
const COLOURS = 7;
let library = null;
const load = () => (library ??= import("./vendor/uplot.js").then((module) => module.default));

/** The value of a CSS token, as a canvas takes it. */
function colour(host, token) {
  host.style.setProperty("color", `var(--${token})`);
  const found = getComputedStyle(host).color;
  host.style.removeProperty("color");
  return found;
}

/**
 * Data: {labels: [text], series: [{name, values: [number|null], shown?: [text]}]}; `shown` are exact texts.
 * Options: {title, kind: "bars" | "lines", format: number → text for values, axis: number → text}.
 */
export function chart({ title, kind = "bars", format, axis = format }) {
  const canvas = h("div", { class: "chart-canvas" });
  const tip = h("div", { class: "chart-tip", hidden: true });
  const probe = h("span", { hidden: true });
  const focus = h("div", { class: "chart-focus", tabindex: 0, role: "group", "aria-label": `${title}. A chart: the arrow keys go through it.`, onkeydown: step, onblur: () => point(null) }, canvas, tip);
  const legend = h("ul", { class: "legend", "aria-hidden": "true" });
  const rows = h("div", {});
  const details = h("details", { class: "chart-table", ontoggle: () => fill() }, h("summary", {}, "Show as a table"), rows);
  const node = h("figure", { class: "chart", "aria-label": title }, focus, probe);
  const bars = kind === "bars";
  let plot = null, data = null, at = null, gone = false;

  const text = (series, index) => series.shown?.[index] ?? (series.values[index] === null ? "–" : format(series.values[index]));
  const describe = (index) => `${data.labels[index]}: ${data.series.map((series) => `${series.name} ${text(series, index)}`).join(", ")}`;

  function point(index, { keyboard = false } = {}) {
    at = index;
    tip.hidden = index === null || index === undefined;
    if (tip.hidden) return plot?.setCursor({ left: -10, top: -10 }, false);
    const seen = data.series.map((series, place) => [series, place]).filter(([series]) => series.values[index] || data.series.length <= 2);
    tip.replaceChildren(h("strong", {}, data.labels[index]), ...(seen.length ? seen : []).map(([series, place]) =>
      h("span", {}, h("i", { class: `swatch s${place % COLOURS}` }), h("span", {}, series.name), h("b", {}, text(series, index)))), seen.length ? "" : h("span", {}, "Nothing"));
    const left = plot.valToPos(index, "x") + plot.bbox.left / devicePixelRatio;
    const width = tip.offsetWidth;
    tip.style.setProperty("left", `${Math.max(0, Math.min(focus.clientWidth - width, left + (left + width + 16 > focus.clientWidth ? -width - 12 : 12)))}px`);
    if (keyboard) {
      plot.setCursor({ left: plot.valToPos(index, "x"), top: 8 }, false);
      announce(describe(index));
    }
  }

  function step(event) {
    const last = (data?.labels.length ?? 0) - 1;
    const to = { ArrowLeft: (at ?? last + 1) - 1, ArrowRight: (at ?? -1) + 1, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined || !plot || last < 0) return;
    event.preventDefault();
    point(to === null ? null : Math.max(0, Math.min(last, to)), { keyboard: true });
  }

  function fill() {
    if (!details.open || !data) return;
    rows.replaceChildren(h("div", { class: "table-wrap", tabindex: 0, role: "region", "aria-label": title }, h("table", { class: "table" }, h("caption", { class: "unseen" }, title),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Time"), data.series.map((series) => h("th", { scope: "col", class: "number" }, series.name)))),
      h("tbody", {}, data.labels.map((label, index) => h("tr", {}, h("th", { scope: "row" }, label), data.series.map((series) => h("td", { class: "number" }, text(series, index)))))))));
  }

  function values() {
    const x = data.labels.map((_, index) => index);
    if (!bars) return [x, ...data.series.map((series) => series.values)];
    // A stack is drawn from its top: each bar hides the lower part of the one behind it.
    const totals = x.map(() => 0);
    const stacked = data.series.map((series) => series.values.map((value, index) => (totals[index] += value ?? 0)));
    return [x, ...stacked.reverse()];
  }

  function options(Plot, width) {
    const ink = colour(probe, "muted"), line = colour(probe, "line");
    const count = data.series.length;
    const path = bars ? Plot.paths.bars({ size: [0.72, 44, 1], radius: 0.12 }) : Plot.paths.spline?.() ?? Plot.paths.linear();
    const style = (place) => {
      const tint = colour(probe, `s${place % COLOURS}`);
      return { paths: path, points: { show: !bars && data.labels.length < 3 }, stroke: bars ? null : tint, fill: bars ? tint : null, width: bars ? 0 : 2 };
    };
    const series = data.series.map((_, place) => style(bars ? count - 1 - place : place));
    const font = "12px system-ui, sans-serif";
    const fits = Math.max(1, Math.ceil(data.labels.length / Math.max(2, Math.floor(width / 88))));
    return {
      width, height: HEIGHT, padding: [8, 24, 0, 0], legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { show: !bars, size: 7 } },
      scales: {
        x: { time: false, range: (_, from, to) => [(from ?? 0) - 0.6, (to ?? 1) + 0.6] },
        y: { range: (_, from, to) => [from < 0 ? from * 1.1 : 0, to > 0 ? to * 1.1 : from < 0 ? 0 : 1] },
      },
      axes: [
        { stroke: ink, font, grid: { show: false }, ticks: { show: false }, size: 32, splits: () => data.labels.map((_, index) => index).filter((index) => (data.labels.length - 1 - index) % fits === 0), values: (_, splits) => splits.map((index) => data.labels[index]) },
        { stroke: ink, font, size: 60, grid: { stroke: line, width: 1 }, ticks: { show: false }, values: (_, splits) => splits.map((value) => axis(value)) },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [({ cursor }) => cursor.left >= 0 && cursor.idx !== null && cursor.event && point(cursor.idx)] },
    };
  }

  async function draw() {
    const Plot = await load();
    if (gone || !data || !node.isConnected) return;
    const index = at;
    plot?.destroy();
    plot = new Plot(options(Plot, focus.clientWidth), values(), canvas);
    point(index !== null && index < data.labels.length ? index : null);
  }

  focus.addEventListener("pointerleave", () => point(null));
  const sized = new ResizeObserver(() => plot && plot.width !== focus.clientWidth && draw());
  sized.observe(focus);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", draw);
  document.addEventListener("scheme", draw);

  return {
    node,
    update(told) {
      if (JSON.stringify(told) === JSON.stringify(data)) return;
      // What comes below comes with the figures: it is as high as they are many.
      if (!data) focus.after(legend, details);
      data = told;
      legend.replaceChildren(...told.series.map((series, place) => h("li", {}, h("i", { class: `swatch s${place % COLOURS}` }), series.name)));
      fill();
      draw();
    },
    destroy() {
      gone = true;
      sized.disconnect();
      dark.removeEventListener("change", draw);
      document.removeEventListener("scheme", draw);
      plot?.destroy();
    },
  };
}
