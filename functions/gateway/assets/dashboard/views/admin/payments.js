// What was paid by Stripe, and what of it went back.

import { badge, button, copyButton, dialog, empty, form, formField, h, toast } from "../../dom.js";
import { columnMoney, compare, count, exactMoney, time } from "../../format.js";
import { listing, pairs } from "./listing.js";

const STATES = { pending: "warn", paid: "good", failed: "bad", not_credited: "bad", partially_refunded: "warn", refunded: "warn", disputed: "bad" };
const DAYS = [["1", "the last day"], ["7", "the last 7 days"], ["30", "the last 30 days"]];

export default {
  async render(root, context) {
    const { api, actions } = context;
    const code = (text) => (text ? h("span", {}, h("code", {}, text), " ", copyButton(text)) : "–");
    const some = (label, usd) => (compare(usd, "0") ? [label, exactMoney(usd)] : null);

    const detail = (row) => dialog(`Payment ${row.id}`, (close) => pairs([
      ["Customer", row.customer_id ? h("a", { href: `#/admin/customers?id=${row.customer_id}`, onclick: () => close() }, String(row.customer_id)) : "nobody who is a customer"],
      ["State", badge(row.status.replace("_", " "), STATES[row.status])], ["Asked for", exactMoney(row.asked_usd)], ["Credited", exactMoney(row.credited_usd)], some("Refunded", row.refunded_usd), some("Disputed", row.disputed_usd),
      ["Paid", row.paid_at ? time(row.paid_at) : "not yet"], ["Heard of", time(row.created_at)], row.paid_minor === null ? null : ["Paid, in the smallest unit", `${count(row.paid_minor)} ${row.currency ?? ""}`], ["Money", row.livemode ? "real" : "of a test"], ["Payment intent", code(row.payment_intent)], ["Checkout", code(row.checkout_session)],
    ]), { kind: "pane" });

    const replay = () => dialog("Fetch what was missed", (close) => form({
      fields: [h("p", {}, "Asks Stripe for its events and takes each in as the webhook would. What is known already changes nothing."), formField({ name: "since", label: "Since", options: DAYS, value: "7" })],
      submit: "Fetch",
      cancel: close,
      async act({ since }) {
        const total = { recorded: 0, duplicate: 0, ignored: 0 };
        let asked = { since: new Date(Date.now() - since * 86_400_000).toISOString() };
        for (;;) {
          const told = await api.post("/admin/payments/replay", asked);
          for (const name of Object.keys(total)) total[name] += told[name];
          if (told.next === null) break;
          asked = { ...asked, after: told.next };
        }
        close();
        toast(`${count(total.recorded)} new, ${count(total.duplicate)} known, ${count(total.ignored)} of no concern.`);
        list.reload();
      },
    }));
    actions.append(button("Fetch what was missed", replay));

    const list = listing(root, context, {
      path: "/admin/payments",
      caption: "Payments",
      stack: true,
      fields: [{ name: "customer_id", label: "Customer's id", inputmode: "numeric", type: "search" }],
      query: ({ customer_id: id }) => ({ customer_id: /^\d{1,18}$/.test(id) ? id : "" }),
      open: detail,
      empty: empty("No payments", "Top-ups by Stripe show here as soon as Stripe tells of them."),
      columns: [
        { label: "Payment", cell: (row) => String(row.id) },
        { label: "Customer", cell: (row) => String(row.customer_id ?? "–") },
        { label: "State", cell: (row) => badge(row.status.replace("_", " "), STATES[row.status]) },
        { label: "Credited", kind: "number", cell: (row) => columnMoney(row.credited_usd, 2) },
        { label: "Taken back", kind: "number", cell: (row) => (compare(row.refunded_usd, "0") || compare(row.disputed_usd, "0") ? columnMoney(compare(row.disputed_usd, row.refunded_usd) > 0 ? row.disputed_usd : row.refunded_usd, 2) : "–") },
        { label: "When", kind: "number", cell: (row) => time(row.paid_at ?? row.created_at) },
      ],
    });
  },
};
