// The log of requests: what was called, what came of it, what it cost. Never what was said.

import { badge, button, card, copyButton, dialog, empty, failed, formField, h, skeleton, table } from "../dom.js";
import { ago, columnMoney, count, duration, exactMoney, money, time } from "../format.js";
import { keyField } from "./keys.js";

const OUTCOMES = { succeeded: "good", failed: "bad", cut: "warn", cancelled: "warn", refused: "bad", expired: "bad" };
const outcome = (row) => row.outcome ?? (row.state === "held" ? "running" : row.state);
const all = (tokens) => ["input", "cached_input", "cache_write", "audio_input", "image_input", "output", "audio_output", "image_output"].reduce((sum, name) => sum + (tokens[name] ?? 0), 0);

/** Whether the rows may be anybody's: then they say whose. */
const ofAll = ({ caller, customer }) => caller.is_admin && customer === null;

export function requestTable(rows, context, { brief = false } = {}) {
  const more = [
    { label: "Tokens", kind: "number wide-only", cell: (row) => count(all(row.tokens)) },
    { label: "First token", kind: "number wide-only", cell: (row) => duration(row.time_to_first_token_ms) },
    { label: "Time", kind: "number wide-only", cell: (row) => duration(row.latency_ms) },
  ];
  return table({
    caption: "Requests",
    rows,
    open: (row) => detail(row, context),
    columns: [
      { label: "Model", cell: (row) => row.model ?? row.requested_model },
      ...(ofAll(context) ? [{ label: "Customer", kind: "wide-only", cell: (row) => (row.customer_id === null ? "–" : h("a", { href: `#/admin/customers?id=${row.customer_id}`, "aria-label": `Customer ${row.customer_id}` }, `#${row.customer_id}`)) }] : []),
      { label: "Outcome", cell: (row) => badge(row.error_code ?? outcome(row), OUTCOMES[outcome(row)]) },
      ...(brief ? [] : more),
      { label: "Charge", kind: "number", cell: (row) => (row.charge_usd === null && row.hold_usd ? `≤ ${money(row.hold_usd)}` : columnMoney(row.charge_usd, 6)) },
      { label: "When", kind: "number", cell: (row) => h("time", { datetime: row.created_at, title: time(row.created_at) }, ago(row.created_at)) },
    ],
  });
}

function detail(row, context) {
  const { caller } = context;
  const usd = (text) => (text === null ? "–" : h("span", {}, exactMoney(text)));
  const tokens = Object.entries(row.tokens).filter(([, number]) => number !== null);
  const pairs = [
    ["Request", h("div", { class: "prose" }, h("code", {}, row.id), h("span", {}, copyButton(row.id)))],
    ["Made", time(row.created_at)],
    ["Endpoint", row.endpoint],
    ["Model", row.requested_model === row.model ? row.model : `${row.model}, asked for as ${row.requested_model}`],
    ["Provider", row.provider ?? "nobody answered"],
    ofAll(context) ? ["Customer", row.customer_id === null ? "–" : `#${row.customer_id}`] : null,
    ["Key", `#${row.key_id}`],
    ["Outcome", h("span", {}, badge(outcome(row), OUTCOMES[outcome(row)]), row.status ? ` HTTP ${row.status}` : "")],
    row.error_code ? ["Error", h("code", {}, row.error_code)] : null,
    ["Ended by", row.finish_reason ?? "–"],
    ["Streamed", row.streamed ? "yes" : "no"],
    ["Latency", duration(row.latency_ms)],
    ["First token", duration(row.time_to_first_token_ms)],
    ...tokens.map(([name, number]) => [`${name[0].toUpperCase()}${name.slice(1).replaceAll("_", " ")}${name === "images" ? "" : " tokens"}`, `${count(number)}${row.usage_estimated ? " (counted here)" : ""}`]),
    ["Charge", usd(row.charge_usd)],
    row.cost_usd === null || row.cost_usd === undefined ? null : ["Provider's cost", usd(row.cost_usd)],
    caller.is_admin && row.uncollected_usd ? ["Uncollected", usd(row.uncollected_usd)] : null,
    row.hold_usd && row.charge_usd === null ? ["Held", usd(row.hold_usd)] : null,
  ];
  return dialog("Request", () => h("dl", { class: "pairs" }, pairs.filter(Boolean).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])), { kind: "pane" });
}

export default {
  async render(root, context) {
    const { api, scoped, signal, params, keep, poll, caller } = context;
    const filters = Object.fromEntries(["model", "status", "key_id", "from", "to"].map((name) => [name, params.get(name) ?? ""]));
    const list = card(null, skeleton(480));
    let rows = null, cursor = null, paged = false, poller;
    const changed = (event) => ((filters[event.target.name] = event.target.value.trim()), keep(filters), (rows = null), (paged = false), poller.now());
    const field = (name, label, more) => formField({ name, label, value: filters[name], onchange: changed, ...more });
    const outcomes = [["", "All"], ...[...Object.keys(OUTCOMES), "running"].map((name) => [name, name])];
    const bar = h("div", { class: "filters", role: "search" }, field("model", "Model", { placeholder: "All", list: "models" }), field("status", "Outcome", { options: outcomes }));
    root.append(bar, list);
    if (context.may("keys") && !caller.own_requests_only) bar.append(keyField(context, { name: "key_id", label: "Key", value: filters.key_id, none: "All", onchange: changed }));
    bar.append(field("from", "From", { type: "date" }), field("to", "To", { type: "date" }));

    const page = (after, during) => api.get("/v1/requests", scoped({ ...filters, limit: 25, cursor: after }), { signal: during });

    function draw() {
      const filtered = Object.values(filters).some(Boolean);
      const more = cursor ? h("p", {}, button("Show older", older, { kind: "small" })) : null;
      const nothing = filtered ? empty("Nothing fits", cursor ? "Nothing fits among the latest; older ones may." : "No request has all of this.") : empty("No requests yet", "They show here as they are made.", h("a", { class: "button primary", href: "#/start" }, "Make the first call"));
      list.replaceChildren(rows.length ? requestTable(rows, context) : nothing, more ?? "");
    }

    async function older(event) {
      event.currentTarget.disabled = true;
      try {
        const told = await page(cursor, signal);
        rows = [...rows, ...told.data];
        cursor = told.next_cursor;
        paged = true; // The polling would take it away again.
        draw();
      } catch (error) {
        if (!signal.aborted) list.append(failed(error));
      }
    }

    let drawn = "";
    poller = poll(async (during) => {
      if (paged) return;
      try {
        const told = await page(null, during);
        if (paged) return;
        const state = JSON.stringify(told);
        const first = rows === null;
        [rows, cursor] = [told.data, told.next_cursor];
        if (first || state !== drawn) draw();
        drawn = state;
      } catch (error) {
        if (!signal.aborted && rows === null) list.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    });
  },
};
