// The whole system: what is used, what it brings, who uses it, and what fails.

import { chart } from "../../chart.js";
import { badge, card, empty, failed, h, skeleton, table, tabs } from "../../dom.js";
import { columnDigits, columnMoney, compare, count, exactMoney, interval, limitName, limitValue, minus, money, percent, shortMoney, sum, time } from "../../format.js";
import { stat } from "../overview.js";
import { drawn, groups, MEASURES as OF_USAGE, query, RANGES, total } from "../series.js";
import { healthColumns } from "./services.js";

const MOST_DAYS = 92;
const cost = (point) => point.cost_usd ?? "0";
const margin = (point) => minus(minus(point.charge_usd, point.uncollected_usd), cost(point));
const dollars = (label, of) => ({ label, value: (point) => Number(of(point)), shown: (point) => money(of(point)), total: (points) => sum(points.map(of)), text: (usd) => money(String(usd)), axis: shortMoney });
const { spend, requests, tokens, errors, latency } = OF_USAGE;
const MEASURES = { spend: { ...spend, label: "Charged" }, cost: dollars("Cost", cost), margin: { ...dollars("Margin", margin), line: true }, requests, tokens, errors, latency };
const BY = [["", "Together"], ["model", "By model"], ["provider", "By provider"]];

export default {
  async render(root, context) {
    const { api, signal, poll, params, keep, go } = context;
    const pick = (name, allowed, otherwise) => (allowed.includes(params.get(name)) ? params.get(name) : otherwise);
    const chosen = { range: pick("range", RANGES.map(([name]) => name), "30d"), by: pick("by", BY.map(([name]) => name), "model"), measure: pick("measure", Object.keys(MEASURES), "spend") };
    const stats = { charge: stat("Charged today"), margin: stat("Margin today"), requests: stat("Requests today"), held: stat("Held now"), people: stat("Customers") };
    const measure = () => MEASURES[chosen.measure];
    const plots = ["bars", "lines"].map((kind) => chart({ title: "The system over time", kind, format: (value) => measure().text(value), axis: (value) => measure().axis(value) }));
    const heading = h("h2", {}, "\u00a0"), body = h("div", {}, plots[0].node), attention = h("div", { class: "view" });
    const models = card(null), spenders = card(null), providers = card(null), crossed = card(null);
    // All that is below the figures comes at once: nothing is pushed down by what comes before it.
    const rest = h("div", { class: "view" }, skeleton(480));
    let told = null, poller;
    const choice = (name, label, options) => tabs(label, options, chosen[name], (value) => {
      chosen[name] = value;
      keep(chosen);
      if (name === "measure") draw();
      else poller.now();
    });
    root.append(h("dl", { class: "stats five" }, Object.values(stats).map(({ node }) => node)), rest);
    const below = [attention,
      h("section", { class: "card" }, h("div", { class: "card-head" }, choice("range", "Time", RANGES.map(([name, label]) => [name, label])), choice("by", "Groups", BY)), h("div", { class: "card-head" }, heading, choice("measure", "What is drawn", Object.entries(MEASURES).map(([name, { label }]) => [name, label]))), body),
      h("div", { class: "two" }, spenders, crossed), providers, models];

    function draw() {
      if (!told) return;
      const shown = plots[Number(Boolean(measure().of || measure().line))];
      heading.textContent = measure().of ? measure().label : `${measure().label}: ${measure().text(total(told, measure()))}`;
      if (!told.data.some((point) => point.requests > 0)) return void body.replaceChildren(empty("Nothing was used in this time", "Choose a longer time. Calls show here once they have ended."));
      if (!shown.node.isConnected) body.replaceChildren(shown.node);
      shown.update(drawn(told, measure()));
    }

    function showModels() {
      const name = { model: "Model", provider: "Provider" }[told.group_by] ?? "Interval";
      const rows = told.group_by ? groups(told, MEASURES.spend) : told.data.filter((point) => point.requests > 0).map((point) => ({ name: interval(point.start, told.interval, told.time_zone), points: [point] })).reverse();
      const digits = columnDigits(rows.map(({ points }) => total({ data: points }, MEASURES.spend)));
      const part = (usd) => ({ points }) => columnMoney(total({ data: points }, MEASURES[usd]), digits);
      models.replaceChildren(h("h2", {}, `Margin by ${name.toLowerCase()}`), table({
        caption: "Margin",
        rows: rows.slice(0, 31),
        empty: h("p", { class: "muted" }, "Nothing."),
        columns: [
          { label: name, cell: (row) => row.name },
          { label: "Requests", kind: "number", cell: ({ points }) => count(total({ data: points }, requests)) },
          { label: "Errors", kind: "number", cell: ({ points }) => count(total({ data: points }, errors)) },
          { label: "Charged", kind: "number", cell: part("spend") },
          { label: "Cost", kind: "number", cell: part("cost") },
          { label: "Margin", kind: "number", cell: part("margin") },
          { label: "Of the charge", kind: "number", cell: ({ points }) => percent(Number(total({ data: points }, MEASURES.margin)), Number(total({ data: points }, MEASURES.spend))) },
        ],
      }));
    }

    function warn({ providers: all, webhook, uncollected_today_usd: uncollected }) {
      const aside = all.filter((row) => row.active && row.set_aside_until);
      const lines = [
        aside.length ? [`Set aside, because they fail: ${aside.map((row) => `${row.service} (until ${time(row.set_aside_until)})`).join(", ")}.`, "bad", "admin/services", "Services"] : null,
        webhook.given_up + webhook.topic.given_up ? [`${count(webhook.given_up + webhook.topic.given_up)} events were given up: ${webhook.given_up ? "the webhook's receiver" : "the SNS topic"} does not take them.`, "bad", "admin/events", "Events"] : null,
        compare(uncollected, "0") > 0 ? [`${exactMoney(uncollected)} could not be collected today.`, "", "admin/ledger", "Ledger"] : null,
      ].filter(Boolean);
      attention.hidden = !lines.length;
      attention.replaceChildren(...lines.map(([text, kind, to, label]) => h("div", { class: `banner ${kind}` }, text, h("a", { class: "button small", href: `#/${to}` }, label))));
    }

    poller = poll(async (during) => {
      const asked = JSON.stringify([chosen.range, chosen.by]);
      const stop = { signal: during };
      try {
        const [, , , days] = RANGES.find(([name]) => name === chosen.range);
        const from = new Date(Date.now() - (Math.min(days, MOST_DAYS) - 1) * 86_400_000).toISOString().slice(0, 10);
        const [{ data }, usage, top] = await Promise.all([api.get("/admin/monitor", {}, stop), api.get("/v1/usage", { ...query(chosen.range), group_by: chosen.by }, stop), api.get("/admin/top_customers", { from, limit: 8 }, stop)]);
        if (asked !== JSON.stringify([chosen.range, chosen.by])) return;
        if (!told) rest.replaceChildren(...below);
        told = usage;
        warn(data);
        const charged = String(data.total_cost_today);
        stats.charge.set(money(charged), `cost ${money(data.cost_today_usd)}`, charged);
        stats.margin.set(money(data.margin_today_usd), `${percent(Number(data.margin_today_usd), data.total_cost_today)} of the charge`, exactMoney(data.margin_today_usd));
        stats.requests.set(count(data.total_requests_today), `${count(data.errors_today)} failed, ${count(data.refusals_today)} refused`);
        stats.held.set(money(data.held.usd), `by ${count(data.held.requests)} running calls`, exactMoney(data.held.usd));
        stats.people.set(count(data.total_users), `${count(data.active_users_today)} active today`);
        draw();
        showModels();
        spenders.replaceChildren(h("h2", {}, `Who spends most, ${days > MOST_DAYS ? `${MOST_DAYS} days` : RANGES.find(([name]) => name === chosen.range)[1]}`), table({
          caption: "Who spends most",
          rows: top.data,
          open: (row) => go("admin/customers", { id: row.customer_id }),
          empty: h("p", { class: "muted" }, "Nobody in this time."),
          columns: [
            { label: "Customer", cell: (row) => [row.name, row.active ? "" : [" ", badge("suspended", "bad")]].flat() },
            { label: "Requests", kind: "number", cell: (row) => count(row.requests) },
            { label: "Charged", kind: "number", cell: (row) => columnMoney(row.charge_usd, columnDigits(top.data.map((each) => each.charge_usd))) },
          ],
        }));
        providers.replaceChildren(h("div", { class: "card-head" }, h("h2", {}, "Providers"), h("a", { href: "#/admin/services" }, "Services")), table({
          caption: "Providers",
          stack: true,
          rows: data.providers,
          open: (row) => go("admin/services", { id: row.service_id }),
          empty: empty("No services yet", "A service is a connection to a provider.", h("a", { class: "button", href: "#/admin/services" }, "Add one")),
          columns: [{ label: "Service", cell: (row) => row.service }, { label: "Provider", kind: "wide-only", cell: (row) => row.provider }, ...healthColumns],
        }));
        crossed.replaceChildren(h("h2", {}, "Soft marks crossed"), ...(data.soft_limits_crossed.length ? data.soft_limits_crossed.slice(0, 8).map((each) => h("p", {}, badge(each.subject, "warn"), ` ${each.name ?? (each.subject === "customer" ? each.id : "")} ${limitName(each.limit)}: ${limitValue(each.limit, each.used)}, mark ${limitValue(each.limit, each.mark)} `, h("time", { class: "muted", datetime: each.crossed_at }, time(each.crossed_at)))) : [h("p", { class: "muted" }, "None.")]));
      } catch (error) {
        if (!signal.aborted && !told) rest.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    });
    return () => plots.forEach((plot) => plot.destroy());
  },
};
