// Keys: made, changed, rotated, switched off and on, revoked.

import { badge, button, card, checks, confirm, copyButton, dialog, empty, failed, form, formField, h, menu, skeleton, table, toast } from "../dom.js";
import { ago, limitName, limitValue, time } from "../format.js";

const PAGES = 10;
const SCOPES = [["chat", "chat: call models"], ["usage", "usage: see all figures"], ["keys", "keys: make keys"], ["billing", "billing: buy credits"]];
const WINDOWS = ["requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day", "spend_usd_per_day", "spend_usd_per_month"];

/** All keys that the caller sees of the customer that is looked at; a thousand at most. */
export async function allKeys({ api, customer, signal }) {
  const found = [];
  let cursor = null;
  for (let page = 0; page < PAGES; page++) {
    const told = await api.get("/v1/keys", { customer_id: customer?.id, limit: 100, cursor }, { signal });
    found.push(...told.data);
    cursor = told.next_cursor;
    if (cursor === null) break;
  }
  return found;
}

/** A choice of one of the keys; they come when they are there, and their place is kept till then. */
export function keyField(context, { none, value, ...props }) {
  const field = formField({ ...props, options: [["", none], ...(value ? [[value, `Key ${value}`]] : [])], value });
  const select = field.querySelector("select");
  allKeys(context).then((keys) => {
    select.replaceChildren(h("option", { value: "" }, none), ...keys.map((key) => h("option", { value: key.id }, `${key.name} (${key.prefix})`)));
    select.value = value;
  }, () => {});
  return field;
}

/** Shows a secret, this once. */
const reveal = (title, key, note) => dialog(title, (close) => h("div", { class: "form" }, h("p", {}, note), h("div", { class: "secret" }, h("code", {}, key), copyButton(key)), h("footer", {}, button("Done", () => close(), { kind: "primary" }))));

const state = (key) => (key.revoked_at ? ["revoked", "bad"] : key.expires_at && new Date(key.expires_at) < new Date() ? ["expired", "bad"] : key.active ? ["active", "good"] : ["off", "warn"]);

/** Windows as the API takes them: numbers of requests and tokens, decimal text of USD; null where nothing stands. */
const limitsOf = (values) => Object.fromEntries(WINDOWS.map((name) => [name, values[`limits.${name}`].trim()]).map(([name, text]) => [name, text === "" ? null : name.startsWith("spend") || !/^\d{1,15}$/.test(text) ? text : Number(text)]));

export default {
  async render(root, context) {
    const { api, signal, poll, actions, caller, customer, session } = context;
    const list = card(null, skeleton(320));
    let drawn = "", poller;
    const models = api.get("/models/simple").then(({ models: names }) => names, () => []);
    root.append(list);
    actions.append(button("New key", () => edit(null), { kind: "primary" }));
    const grantable = SCOPES.filter(([scope]) => caller.is_admin || caller.scopes.includes(scope) || (scope === "chat" && caller.key === null));

    async function edit(key) {
      const names = await models;
      const local = key?.expires_at ? new Date(new Date(key.expires_at) - new Date().getTimezoneOffset() * 60_000).toISOString().slice(0, 16) : "";
      const soft = key ? "" : "A soft mark is set at 80 % of each.";
      return dialog(key ? `Change ${key.name}` : "New key", (close) => form({
        fields: [
          formField({ name: "name", label: "Name", value: key?.name ?? "", placeholder: "production", maxlength: 200 }),
          checks({ name: "scopes", label: "It may", options: grantable, chosen: key?.scopes ?? ["chat", "usage"] }),
          key ? null : checks({ name: "allowed_models", label: "Models", hint: "None ticked: all that you may use.", options: names.map((name) => [name, name]) }),
          formField({ name: "expires_at", label: "Expires", type: "datetime-local", value: local, hint: "Empty: never." }),
          h("fieldset", { class: "field", "aria-label": "Limits" }, h("legend", {}, "Limits"), h("p", { class: "hint" }, `Empty: none. ${soft}`),
            h("div", { class: "pair" }, WINDOWS.map((name) => formField({ name: `limits.${name}`, label: `${limitName(name)}${name.startsWith("spend") ? ", USD" : ""}`, inputmode: "decimal", value: String(key?.limits[name] ?? "") })))),
        ],
        submit: key ? "Save" : "Make key",
        cancel: close,
        async act(values) {
          const limits = limitsOf(values);
          const body = { name: values.name, scopes: values.scopes, limits, expires_at: values.expires_at ? new Date(values.expires_at).toISOString() : null };
          if (key) {
            await api.patch(`/v1/keys/${key.id}`, body);
            toast(`${values.name} is changed.`);
          } else {
            body.limits = Object.fromEntries(Object.entries(limits).filter(([, limit]) => limit !== null));
            const made = await api.post("/v1/keys", { ...body, ...(values.allowed_models.length ? { allowed_models: values.allowed_models } : {}), ...(caller.is_admin ? { customer_id: customer.id } : {}) });
            if (made.scopes.includes("chat") && !context.customerId) session.useKey(made.key);
            close();
            await reveal("Your new key", made.key, "Copy it now. It is shown this once: only its hash is kept.");
          }
          close();
          poller.now();
        },
      }));
    }

    const rotate = (key) => dialog(`Rotate ${key.name}`, (close) => form({
      fields: [h("p", {}, "It gets a new secret. Programs that have the old one need the new one before its grace is over."), formField({ name: "grace_seconds", label: "The old secret works on for", value: "3600", options: [["0", "no longer: it stops at once"], ["3600", "an hour"], ["86400", "a day"], ["604800", "a week"]] })],
      submit: "Rotate",
      cancel: close,
      async act(values) {
        const own = key.id === caller.key?.id;
        const told = await api.post(`/v1/keys/${key.id}/rotate`, { grace_seconds: Number(values.grace_seconds) });
        if (own) session.replaceKey(told.key);
        close();
        await reveal(`The new secret of ${key.name}`, told.key, told.previous_expires_at ? `Copy it now. The old one works until ${time(told.previous_expires_at)}.` : "Copy it now. The old one has stopped.");
        poller.now();
      },
    }));

    const toggle = async (key) => {
      const own = key.id === caller.key?.id;
      const act = async () => {
        const told = await api.post(`/v1/keys/${key.id}/toggle`, {});
        toast(`${key.name} is ${told.active ? "on" : "off"}.`);
        await poller.now();
        return true;
      };
      if (key.active) return confirm({ title: `Switch ${key.name} off?`, text: `Calls with it are refused until it is on again.${own ? " It is the key that you have signed in with: this ends your session." : ""}`, label: "Switch off", act });
      return act().catch((error) => toast(error.message, "bad"));
    };

    const revoke = (key) => confirm({ title: `Revoke ${key.name}?`, text: `It stops at once and for good. Its requests stay in the log.${key.id === caller.key?.id ? " It is the key that you have signed in with: this ends your session." : ""}`, label: "Revoke", act: async () => (await api.delete(`/v1/keys/${key.id}`), toast(`${key.name} is revoked.`), poller.now(), true) });

    function draw(keys) {
      list.replaceChildren(table({
        caption: "Keys",
        stack: true,
        rows: keys,
        empty: empty("No keys yet", "A key lets a program call models on this account.", button("Make the first key", () => edit(null), { kind: "primary" })),
        columns: [
          { label: "Name", cell: (key) => h("span", {}, h("strong", {}, key.name), " ", key.id === caller.key?.id ? badge("yours") : "") },
          { label: "Key", cell: (key) => h("code", {}, key.prefix) },
          { label: "State", cell: (key) => badge(...state(key)) },
          { label: "Scopes", cell: (key) => key.scopes.join(", ") },
          { label: "Limits", kind: "wide", cell: (key) => Object.entries(key.limits).map(([name, limit]) => `${limitValue(name, limit)} ${limitName(name).toLowerCase().replace("spend ", "")}`).join(", ") || "–" },
          { label: "Last used", cell: (key) => h("span", { title: time(key.last_used_at) }, ago(key.last_used_at)) },
          { label: "Expires", cell: (key) => (key.expires_at ? h("span", { title: time(key.expires_at) }, ago(key.expires_at)) : "never") },
          { label: "", kind: "end", cell: (key) => (key.revoked_at ? "" : menu(`More about ${key.name}`, [["Change", () => edit(key)], ["Rotate", () => rotate(key)], [key.active ? "Switch off" : "Switch on", () => toggle(key)], ["Its limits", () => context.go("limits", { key: key.id })], ["Its requests", () => context.go("requests", { key_id: key.id })], ["Revoke", () => revoke(key), "danger"]])) },
        ],
      }));
    }

    poller = poll(async (during) => {
      try {
        const keys = await allKeys({ ...context, signal: during });
        keys.sort((one, other) => Boolean(one.revoked_at) - Boolean(other.revoked_at) || other.id - one.id);
        // An open menu or a focused row is not taken away for nothing.
        const now = JSON.stringify(keys);
        if (now !== drawn && !list.querySelector(":popover-open")) draw(keys), (drawn = now);
      } catch (error) {
        if (!signal.aborted && !drawn) list.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    });
  },
};
