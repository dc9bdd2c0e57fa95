// How things stand: what is left, what was used, what went wrong.

import { chart } from "../chart.js";
import { badge, card, empty, failed, h, tabs } from "../dom.js";
import { compare, count, duration, exactMoney, minus, money, percent } from "../format.js";
import { drawn, MEASURES, query, total } from "./series.js";
import { requestTable } from "./requests.js";
import { meter } from "./limits.js";

const RANGE = "30d";

export function stat(label) {
  const figure = h("dd", { class: "figure" }, "–"), beside = h("dd", { class: "beside" }, "");
  return {
    node: h("div", { class: "stat" }, h("dt", {}, label), figure, beside),
    set(value, text, exact) {
      figure.textContent = value;
      figure.classList.toggle("long", value.length > 8);
      if (exact) figure.title = exact;
      beside.textContent = text;
    },
  };
}

export default {
  async render(root, context) {
    const { api, scoped, signal, poll, actions } = context;
    const stats = { balance: stat("Balance"), month: stat("Spend this month"), requests: stat("Requests, 30 days"), latency: stat("Median latency") };
    let banner = null;
    let measure = MEASURES.spend, usage = null, of = [];
    const plot = chart({ title: "The last 30 days by model", format: (value) => measure.text(value), axis: (value) => measure.axis(value) });
    const body = h("div", {}, plot.node);
    const sized = h("p", { class: "muted" }, "\u00a0");
    const recent = card(null), limits = card(null), below = h("div", { class: "two" }, recent, limits);
    const choose = tabs("What is drawn", ["spend", "requests", "tokens"].map((name) => [name, MEASURES[name].label]), "spend", (name) => ((measure = MEASURES[name]), draw()));
    root.append(h("dl", { class: "stats" }, Object.values(stats).map(({ node }) => node)),
      h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, "The last 30 days"), choose), sized, body));
    actions.append(h("a", { class: "button", href: "#/start" }, "Make a call"));

    function draw() {
      if (!usage) return;
      plot.update(drawn(usage, measure));
      const all = total(usage, measure);
      sized.textContent = `${measure.text(all)} in all. Days begin in ${usage.time_zone}.`;
    }

    async function load(during) {
      const stop = { signal: during };
      try {
        const [balance, monitor, byModel, whole, log, told] = await Promise.all([
          api.get("/user/balance", scoped(), stop),
          api.get("/user/monitor", scoped(), stop),
          api.get("/v1/usage", scoped({ ...query(RANGE), group_by: "model" }), stop),
          api.get("/v1/usage", scoped({ ...query(RANGE) }), stop),
          api.get("/v1/requests", scoped({ limit: 6 }), stop),
          api.get("/user/limit", scoped(), stop),
        ]);
        usage = byModel;
        context.balance(balance);
        const free = minus(balance.balance_usd, balance.held_usd);
        stats.balance.set(money(balance.balance_usd), compare(balance.held_usd, "0") ? `${money(balance.held_usd)} held for running calls` : "Nothing is held", exactMoney(balance.balance_usd));
        const metrics = monitor.usage_metrics;
        const today = whole.data.at(-1);
        stats.month.set(money(String(metrics.cost_this_month)), `${money(today?.charge_usd ?? "0")} today`);
        const requests = total(whole, MEASURES.requests), errors = total(whole, MEASURES.errors);
        stats.requests.set(count(requests), errors ? `${count(errors)} failed (${percent(errors, requests)})` : "None failed");
        const timed = whole.data.filter((point) => point.latency_ms.p50 !== null).at(-1);
        stats.latency.set(duration(timed?.latency_ms.p50), timed?.time_to_first_token_ms.p50 ? `${duration(timed.time_to_first_token_ms.p50)} to the first token` : timed ? "of the latest day that has any" : "of no call yet");
        banner?.remove();
        if (compare(free, "0") <= 0) root.prepend((banner = h("div", { class: "banner bad" }, "There are no credits left: calls are refused until there are.", context.may("billing") ? h("a", { class: "button small", href: "#/billing" }, "Billing") : null)));
        if (log.data.length === 0 && requests === 0) body.replaceChildren(empty("No calls yet", "What you use shows here within seconds of the first call.", h("a", { class: "button primary", href: "#/start" }, "Make the first call")));
        else if (!plot.node.isConnected) body.replaceChildren(plot.node);
        draw();
        root.append(below);
        recent.replaceChildren(h("div", { class: "card-head" }, h("h2", {}, "Latest requests"), h("a", { href: "#/requests" }, "All")), log.data.length ? requestTable(log.data, context, { brief: true }) : empty("Nothing yet", "Requests show here as they are made."));
        showLimits(told);
      } catch (error) {
        if (signal.aborted || during.aborted) return;
        if (!usage) body.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    }

    function showLimits(told) {
      of = Object.entries(told.current_limits).filter(([, limit]) => limit !== null);
      limits.replaceChildren(h("div", { class: "card-head" }, h("h2", {}, "Limits"), h("a", { href: "#/limits" }, "All")),
        told.current_usage.allowed ? "" : h("p", {}, badge("refusing", "bad"), " ", told.current_usage.reason),
        ...(of.length ? of.slice(0, 4).map(([name]) => meter(name, told)) : [empty("No limits", "Nothing but the balance bounds these calls.")]));
    }

    const poller = poll(load);
    return () => plot.destroy();
  },
};
