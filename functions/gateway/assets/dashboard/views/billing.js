// Credits: buying them, what was paid, and what a month came to.

import { badge, button, card, dialog, empty, failed, form, formField, h, skeleton, table, toast } from "../dom.js";
import { compare, exactMoney, minus, money, time } from "../format.js";

const STATES = { paid: "good", pending: "warn", failed: "bad", not_credited: "bad", partially_refunded: "warn", refunded: "warn", disputed: "bad" };
const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];
const month = (text) => new Date(`${text}-01T12:00:00Z`).toLocaleDateString(undefined, { month: "long", year: "numeric", timeZone: "UTC" });

/** A payment page's address, which must not be a script or a page without TLS. */
function payable(address) {
  const url = new URL(address);
  if (url.protocol !== "https:" && !(url.protocol === "http:" && LOOPBACK.includes(url.hostname))) throw new Error("The payment page's address is not one to follow.");
  return url.href;
}

export default {
  async render(root, context) {
    const { api, scoped, signal, poll, actions, customer } = context;
    const account = card(null, skeleton(104));
    const payments = card(null), statements = card(null);
    let drawn = "", poller;
    root.append(account);

    const topUp = (told) => dialog("Buy credits", (close) => {
      const amount = formField({ name: "usd", label: "Amount, USD", inputmode: "decimal", value: told.amounts_usd[0] ?? told.minimum_usd, hint: `From ${money(told.minimum_usd)} to ${money(told.maximum_usd)}.${compare(told.debt_usd, "0") > 0 ? ` The debt of ${exactMoney(told.debt_usd)} is paid first.` : ""}` });
      const input = amount.querySelector("input");
      const node = form({
        fields: [h("div", { class: "actions" }, told.amounts_usd.map((usd) => button(money(usd), () => (input.value = usd), { kind: "small" }))), amount],
        submit: "Go on to payment",
        cancel: close,
        async act({ usd }) {
          const { url } = await api.post("/v1/billing/checkout", scoped({ usd: usd.trim() }));
          // In a tab of its own: this page would forget who is signed in.
          const link = h("a", { class: "button primary", href: payable(url), target: "_blank", rel: "noopener noreferrer", onclick: () => setTimeout(close) }, `Pay ${money(usd.trim())}`);
          node.replaceWith(h("div", { class: "form" }, h("p", {}, "Stripe's page opens in another tab. The credits show here as soon as they are paid."), h("footer", {}, button("Cancel", () => close()), link)));
          link.focus();
        },
      });
      return node;
    });

    async function download(name, format) {
      try {
        const response = await api.send("GET", `/v1/billing/statements/${name}`, { params: scoped({ format }), signal });
        const url = URL.createObjectURL(await response.blob());
        h("a", { href: url, download: `statement-${customer.id}-${name}.${format}` }).click();
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
      } catch (error) {
        if (!signal.aborted) toast(error.message, "bad");
      }
    }

    const view = (name) => dialog(month(name), (close) => {
      const body = h("div", { class: "form" }, skeleton(320));
      api.get(`/v1/billing/statements/${name}`, scoped(), { signal }).then((told) => {
        const lines = [["Opening balance", told.opening_balance_usd], ["Credits", told.credits_usd], ["Corrections", told.corrections_usd], ["Refunds and disputes", told.reversals_usd], ["Debt paid", told.debt_payments_usd], ["Charges", `-${told.charges_usd}`.replace(/^--/, "")], [told.closed ? "Closing balance" : "Balance so far", told.closing_balance_usd]];
        body.replaceChildren(
          h("dl", { class: "pairs sums" }, lines.map(([label, usd]) => [h("dt", {}, label), h("dd", {}, exactMoney(usd))])),
          table({ caption: "Charges", rows: told.charges, empty: h("p", { class: "muted" }, "No charges."), columns: [
            { label: "Model", cell: (row) => row.model ?? "from the sums that are kept" },
            { label: "Requests", kind: "number", cell: (row) => String(row.requests) },
            { label: "Charge", kind: "number", cell: (row) => exactMoney(row.charge_usd) },
          ] }),
          h("p", { class: "hint" }, told.check.source === "sums" ? "The month's log is gone: these are the sums that are kept of it." : told.check.differing ? `${told.check.differing} charges are not what their prices make of them.` : "Each charge was worked out anew from the prices that were pinned, and agrees."),
          h("footer", {}, button("CSV", () => download(name, "csv")), button("To print", () => download(name, "html")), button("Close", () => close(), { kind: "primary" })));
      }, (error) => body.replaceChildren(failed(error)));
      return body;
    }, { kind: "wide" });

    function draw(told, months) {
      const debt = compare(told.debt_usd, "0") > 0;
      const figure = (label, value, beside) => h("div", {}, h("dt", { class: "muted" }, label), h("dd", { class: "figure" }, value), h("dd", { class: "hint" }, beside));
      account.replaceChildren(
        h("dl", { class: "figures" }, figure("Balance", money(told.balance_usd), exactMoney(told.balance_usd)), figure("Held", money(told.held_usd), "for running calls"), figure("Free", money(minus(told.balance_usd, told.held_usd)), "for new ones"), debt ? figure("Debt", money(told.debt_usd), "paid by the next credits") : null),
        debt ? h("div", { class: "banner bad" }, "A payment was taken back, and more of it was spent than is left. Calls are refused until the debt is paid.") : "",
        told.configured ? "" : h("p", { class: "hint" }, "Credits are not sold here: the operator adds them."));
      actions.replaceChildren(told.configured ? button("Buy credits", () => topUp(told), { kind: "primary" }) : "");
      payments.replaceChildren(h("h2", {}, "Payments"), table({
        caption: "Payments",
        rows: told.data,
        empty: h("p", { class: "muted" }, "None yet."),
        columns: [
          { label: "When", cell: (row) => time(row.paid_at ?? row.created_at) },
          { label: "State", cell: (row) => badge(row.status.replaceAll("_", " "), STATES[row.status]) },
          { label: "Credited", kind: "number", cell: (row) => exactMoney(row.credited_usd) },
          { label: "Taken back", kind: "number", cell: (row) => exactMoney(minus(row.refunded_usd, `-${row.disputed_usd}`)) },
        ],
      }));
      statements.replaceChildren(h("h2", {}, "Statements"), table({
        caption: "Statements",
        rows: months.data,
        open: (row) => view(row.month),
        empty: empty("No statement yet", "The first is there with the first credit or charge."),
        columns: [
          { label: "Month", cell: (row) => month(row.month) },
          { label: "State", cell: (row) => (row.closed ? badge("closed", "good") : badge("so far")) },
          { label: "", kind: "end", cell: (row) => button("CSV", () => download(row.month, "csv"), { kind: "small", "aria-label": `${month(row.month)} as CSV` }) },
        ],
      }));
      root.append(payments, statements);
    }

    poller = poll(async (during) => {
      try {
        const told = await Promise.all([api.get("/v1/billing", scoped(), { signal: during }), api.get("/v1/billing/statements", scoped({ limit: 24 }), { signal: during })]);
        context.balance(told[0]);
        if (JSON.stringify(told) !== drawn) draw(...told), (drawn = JSON.stringify(told));
      } catch (error) {
        if (!signal.aborted && !drawn) account.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    });
  },
};
