// The proof that the books add up.

import { badge, button, card, failed, h, skeleton, table } from "../../dom.js";
import { count, exactMoney, time } from "../../format.js";
import { pairs } from "./listing.js";

export default {
  async render(root, { api, signal, actions, go }) {
    const found = card(null, skeleton(240));
    const ways = [button("Check again", () => check(false)), button("Check from the first entry", () => check(true))];
    actions.append(...ways);
    root.append(h("p", { class: "muted" }, "Every balance is computed anew from its entries, every hold from the calls that run, every charge from its request."), found);

    function draw(told) {
      const amount = (label, of) => ({ label, kind: "number", cell: (row) => exactMoney(row[of]) });
      found.replaceChildren(
        h("h2", {}, told.ok ? "The books add up " : "The books do not add up ", badge(told.ok ? "ok" : "mismatch", told.ok ? "good" : "bad")),
        pairs([["Checked", time(new Date())], ["Accounts", count(told.accounts)], ["Read from", told.full || !told.closed_through ? "the first entry" : `the checkpoints at the end of ${told.closed_through}`], ["Misbooked requests", count(told.misbooked_requests)], ["Misbooked payments", count(told.misbooked_payments)], told.wrong_checkpoints === null ? null : ["Wrong checkpoints", count(told.wrong_checkpoints)], ["Holds that nobody ended", count(told.orphan_holds)]]),
        told.mismatches.length ? table({
          caption: "Accounts that do not add up",
          rows: told.mismatches,
          open: (row) => go("admin/customers", { id: row.customer_id }),
          columns: [{ label: "Customer", cell: (row) => String(row.customer_id) }, amount("Balance", "balance_usd"), amount("By the ledger", "ledger_usd"), amount("Held", "held_usd"), amount("By the calls", "requests_held_usd"), amount("Debt", "debt_usd"), amount("By the ledger", "ledger_debt_usd")],
        }) : "");
    }

    async function check(full) {
      for (const way of ways) way.disabled = true;
      found.setAttribute("aria-busy", "true");
      try {
        draw(await api.get("/admin/ledger/check", full ? { full } : {}, { signal }));
      } catch (error) {
        if (!signal.aborted) found.replaceChildren(failed(error, () => check(full)));
      }
      found.removeAttribute("aria-busy");
      for (const way of ways) way.disabled = false;
    }
    await check(false);
  },
};
