// What was used over time, by model or key.

import { chart } from "../chart.js";
import { card, empty, failed, h, table, tabs } from "../dom.js";
import { columnDigits, columnMoney, count, percent } from "../format.js";
import { drawn, groups, MEASURES, query, RANGES, total } from "./series.js";

const BY = [["", "Together"], ["model", "By model"], ["key", "By key"]];

export default {
  async render(root, context) {
    const { api, scoped, signal, params, keep, poll, caller } = context;
    const pick = (name, allowed, otherwise) => (allowed.includes(params.get(name)) ? params.get(name) : otherwise);
    const chosen = { range: pick("range", RANGES.map(([name]) => name), "30d"), measure: pick("measure", Object.keys(MEASURES), "spend"), by: pick("by", BY.map(([name]) => name), "model") };
    let told = null, asked = "", poller;
    const measure = () => MEASURES[chosen.measure];
    const plot = chart({ title: "Usage over time", format: (value) => measure().text(value), axis: (value) => measure().axis(value) });
    const lines = chart({ title: "Latency over time", kind: "lines", format: (value) => measure().text(value), axis: (value) => measure().axis(value) });
    const body = h("div", {}, plot.node), heading = h("h2", {}, "\u00a0"), note = h("p", { class: "hint" }, "\u00a0");
    const totals = card(null);
    const choice = (name, label, options) => tabs(label, options, chosen[name], (value) => {
      chosen[name] = value;
      keep(chosen);
      draw();
      if (name !== "measure") poller.now();
    });
    const groupings = caller.own_requests_only ? BY.slice(0, 2) : BY;
    root.append(h("div", { class: "filters" }, choice("range", "Time", RANGES.map(([name, label]) => [name, label])), choice("by", "Groups", groupings)),
      h("section", { class: "card" }, h("div", { class: "card-head" }, heading, choice("measure", "What is drawn", Object.entries(MEASURES).map(([name, { label }]) => [name, label]))), note, body));

    function draw() {
      if (!told) return;
      const used = told.data.some((point) => point.requests > 0), shown = measure().of ? lines : plot;
      heading.textContent = measure().of ? measure().label : `${measure().label}: ${measure().text(total(told, measure()))}`;
      note.textContent = `${measure().of ? "The median of each group. " : ""}${told.interval === "hour" ? "Hours" : "Days and months"} by the clock of ${told.time_zone}.`;
      if (!used) body.replaceChildren(empty("Nothing was used in this time", "Choose a longer time, or make a call.", h("a", { class: "button", href: "#/start" }, "Make a call")));
      else if (!shown.node.isConnected) body.replaceChildren(shown.node);
      if (used) shown.update(drawn(told, measure()));
      root.append(totals);
      const all = total(told, MEASURES.requests);
      const rows = used ? groups(told, MEASURES.spend) : [];
      const spent = ({ points }) => total({ data: points }, MEASURES.spend), digits = columnDigits(rows.map(spent));
      totals.replaceChildren(h("h2", {}, "In all"), table({
        caption: "Totals",
        rows,
        empty: h("p", { class: "muted" }, "Nothing."),
        columns: [
          { label: { model: "Model", key: "Key" }[told.group_by] ?? "All", cell: ({ name }) => (told.group_by ? name : "All") },
          { label: "Spend", kind: "number", cell: (row) => columnMoney(spent(row), digits) },
          { label: "Requests", kind: "number", cell: ({ points }) => count(total({ data: points }, MEASURES.requests)) },
          { label: "Share", kind: "number", cell: ({ points }) => percent(total({ data: points }, MEASURES.requests), all) },
          { label: "Errors", kind: "number", cell: ({ points }) => count(total({ data: points }, MEASURES.errors)) },
          ...[["Input tokens", "input"], ["Cached", "cached_input"], ["Output tokens", "output"]].map(([label, name]) => ({ label, kind: "number", cell: ({ points }) => count(points.reduce((sum, point) => sum + (point.tokens[name] ?? 0), 0)) })),
        ],
      }));
    }

    poller = poll(async (during) => {
      const wanted = JSON.stringify([chosen.range, chosen.by]);
      try {
        const got = await api.get("/v1/usage", scoped({ ...query(chosen.range), group_by: chosen.by }), { signal: during });
        if (wanted !== JSON.stringify([chosen.range, chosen.by])) return;
        [told, asked] = [got, wanted];
        draw();
      } catch (error) {
        if (!signal.aborted && asked !== wanted) body.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    });
    return () => (plot.destroy(), lines.destroy());
  },
};
