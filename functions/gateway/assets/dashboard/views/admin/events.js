// What happened that an operator wants to hear of, and whether the webhook was told.

import { badge, button, card, copyButton, dialog, empty, failed, h, skeleton, toast } from "../../dom.js";
import { ago, count, duration, time } from "../../format.js";
import { listing, pairs } from "./listing.js";

const STATES = { unsent: "", waiting: "warn", delivered: "good", given_up: "bad" };
const words = (state) => state.replace("_", " ");

export default {
  async render(root, context) {
    const { api, signal, actions } = context;
    const health = card("Webhook", skeleton(44));
    root.append(health);

    async function look() {
      try {
        const { webhook, webhook: { topic } } = (await api.get("/admin/monitor", {}, { signal })).data;
        health.replaceChildren(h("h2", {}, "Webhook ", badge(webhook.webhook_set ? (webhook.given_up ? "gave some up" : "set") : "not set", webhook.webhook_set ? (webhook.given_up ? "bad" : "good") : "warn")),
          webhook.webhook_set || webhook.waiting ? h("p", {}, `${count(webhook.waiting)} waiting${webhook.waiting_since ? ` since ${time(webhook.waiting_since)}` : ""}, ${count(webhook.given_up)} given up. ${webhook.last_delivered_at ? `The last was delivered ${ago(webhook.last_delivered_at)}` : "None was delivered yet"}.`) : h("p", { class: "muted" }, "Events are kept here for 90 days. To have them sent, set webhook_url in ", h("a", { href: "#/admin/settings" }, "the settings"), "."),
          topic.topic_set || topic.waiting ? h("p", {}, `SNS topic: ${count(topic.waiting)} waiting, ${count(topic.given_up)} given up. ${topic.last_delivered_at ? `The last was taken ${ago(topic.last_delivered_at)}` : "None was taken yet"}.`) : "");
      } catch (error) {
        if (!signal.aborted) health.replaceChildren(failed(error, look));
      }
    }

    const ping = button("Send a ping", async () => {
      ping.disabled = true;
      try {
        const told = await api.post("/admin/webhook/test", {}, { signal });
        toast(told.delivered ? `The receiver took it in ${duration(told.duration_ms)}.` : `The ping was not taken: ${told.error}`, told.delivered ? "" : "bad");
      } catch (error) {
        if (!signal.aborted) toast(error.message, "bad");
      }
      ping.disabled = false;
    });
    actions.append(ping);

    const again = async (row) => {
      try {
        await api.post(`/admin/events/${row.id}/resend`, {});
        toast("It is in line, and goes out within a minute.");
        list.reload();
        look();
        return true;
      } catch (error) {
        return toast(error.message, "bad");
      }
    };

    const detail = (row) => dialog(row.type, (close) => h("div", { class: "form" },
      pairs([["Event", h("span", {}, h("code", {}, row.id), " ", copyButton(row.id))], ["When", time(row.created_at)], ["About", row.subject], row.customer_id ? ["Customer", h("a", { href: `#/admin/customers?id=${row.customer_id}`, onclick: () => close() }, String(row.customer_id))] : null, ["Webhook", badge(words(row.state), STATES[row.state])], ["SNS topic", badge(words(row.topic_state), STATES[row.topic_state])], ["Attempts", count(row.attempts)], row.next_attempt_at ? ["Next attempt", time(row.next_attempt_at)] : null, row.delivered_at ? ["Delivered", time(row.delivered_at)] : null, row.last_status ? ["Last status", `HTTP ${row.last_status}`] : null, row.last_error ? ["Last error", row.last_error] : null]),
      h("div", { class: "code" }, h("pre", { tabindex: 0, role: "region", "aria-label": "Data" }, h("code", {}, JSON.stringify(row.data, null, 2)))),
      h("footer", {}, button(row.state === "delivered" ? "Send again" : "Send now", async () => (await again(row)) && close(), { kind: "primary" }))), { kind: "pane" });

    await look();
    const list = listing(root, context, {
      path: "/admin/events",
      caption: "Events",
      fields: [{ name: "state", label: "State", options: [["", "All"], ...Object.keys(STATES).map((state) => [state, words(state)])] }, { name: "type", label: "Type", placeholder: "limit.soft_crossed" }],
      query: (filters) => ({ ...filters, type: /^[a-z_]+(\.[a-z_]+)+$/.test(filters.type) ? filters.type : "" }),
      open: detail,
      empty: empty("No events", "What an operator should hear of shows here: soft limits, failing providers, money that could not be collected."),
      columns: [
        { label: "Type", cell: (row) => row.type },
        { label: "About", kind: "wide", cell: (row) => row.subject },
        { label: "State", cell: (row) => badge(words(row.state), STATES[row.state]) },
        { label: "When", kind: "number", cell: (row) => h("time", { datetime: row.created_at, title: time(row.created_at) }, ago(row.created_at)) },
      ],
    });
  },
};
