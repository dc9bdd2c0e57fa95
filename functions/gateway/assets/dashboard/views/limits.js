// How much of each limit is used, when it starts anew, and where its soft mark is.

import { badge, card, empty, failed, h, skeleton } from "../dom.js";
import { ago, limitName, limitValue, time } from "../format.js";
import { keyField } from "./keys.js";

/** A limit as a bar, of what GET /user/limit told. */
export function meter(name, told) {
  const limit = told.current_limits[name], used = told.current_usage[name] ?? 0, mark = told.soft_limits[name];
  const share = Number(limit) > 0 ? Math.min(1, Number(used) / Number(limit)) : 1;
  const over = mark !== undefined && Number(used) >= Number(mark);
  const reset = told.reset_times[name.split("_per_")[1]];
  const label = limitName(name);
  return h("div", { class: `meter ${share >= 1 ? "bad" : over ? "warn" : ""}` },
    h("div", { class: "meter-head" }, h("span", {}, label, " ", share >= 1 ? badge("reached", "bad") : over ? badge("past its soft mark", "warn") : ""), h("span", {}, `${limitValue(name, used)} of ${limitValue(name, limit)}`)),
    h("div", { class: "meter-track", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(share * 100), "aria-valuetext": `${limitValue(name, used)} of ${limitValue(name, limit)}` },
      h("div", { class: "meter-fill", style: { width: `${share * 100}%` } }),
      mark === undefined || Number(limit) === 0 ? null : h("div", { class: "meter-mark", title: `Soft mark: ${limitValue(name, mark)}`, style: { left: `${Math.min(100, (Number(mark) / Number(limit)) * 100)}%` } })),
    h("p", { class: "hint" }, `Starts anew ${ago(reset)}`, mark === undefined ? "" : `, soft mark at ${limitValue(name, mark)}`));
}

export default {
  async render(root, context) {
    const { api, scoped, poll, signal, params, keep, caller } = context;
    const shown = card(null, skeleton(360)), crossed = card(null);
    let key = params.get("key") ?? "", poller;
    if (context.may("keys") && !caller.own_requests_only) root.append(h("div", { class: "filters" }, keyField(context, { name: "key", label: "Whose", value: key, none: caller.key && !context.customerId ? "This key" : "The customer", onchange: (event) => ((key = event.target.value), keep({ key }), poller.now()) })));
    root.append(shown);

    function show(told, monitor) {
      const names = Object.keys(told.current_limits).filter((name) => told.current_limits[name] !== null);
      shown.replaceChildren(
        h("p", {}, told.current_usage.allowed ? badge("within limits", "good") : badge("refusing", "bad"), " ", told.current_usage.allowed ? "" : told.current_usage.reason),
        ...(names.length ? names.map((name) => meter(name, told)) : [empty("No limits are set", "Nothing but the balance bounds these calls. A key's own limits are set under Keys.")]),
        h("p", { class: "hint" }, `Hours, days and months begin by the clock of ${told.time_zone}; times here are yours. Running calls count at the most that they may use.`));
      const list = monitor.soft_limits_crossed;
      crossed.replaceChildren(h("h2", {}, "Soft marks that were crossed"), ...(list.length ? list.map((each) =>
        h("p", {}, badge(each.subject, "warn"), ` ${each.name ?? ""} ${limitName(each.limit)}${each.model ? ` of ${each.model}` : ""}: ${limitValue(each.limit, each.used)}, mark ${limitValue(each.limit, each.mark)} `, h("time", { class: "muted", datetime: each.crossed_at, title: time(each.crossed_at) }, ago(each.crossed_at)))) : [h("p", { class: "muted" }, "None. When one is crossed, calls are still served, with a warning in a header.")]));
    }

    let loaded = false;
    poller = poll(async (during) => {
      try {
        const [told, monitor] = await Promise.all([
          api.get("/user/limit", scoped({ key_id: key }), { signal: during }),
          context.may("usage") || context.may("chat") ? api.get("/user/monitor", scoped(), { signal: during }) : { soft_limits_crossed: [] },
        ]);
        loaded = true;
        show(told, monitor);
        root.append(crossed);
      } catch (error) {
        if (!signal.aborted && !loaded) shown.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    });
  },
};
