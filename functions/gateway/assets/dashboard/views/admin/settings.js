// The settings of the whole: what each one does, and a look at the changes before they are made.

import { button, card, dialog, failed, form, formField, h, skeleton, table, toast } from "../../dom.js";

// Name: [label, what it does, kind]. A kind is "usd", "number", "text", "list", "secret" or the values that there are; "?" after it: it may be empty.
const SECTIONS = [
  ["Prices", {
    billing_mode: ["Billing mode", "markup: the provider's cost and the commission. flat: one price for every token; the cost is then hidden from customers.", ["markup", "flat"]],
    commission_percent: ["Commission, percent", "What is added to the provider's cost.", "usd"],
    flat_usd_per_1k_tokens: ["Flat price, USD per 1,000 tokens", "In flat mode, whatever the model.", "usd"],
    credit_value_usd: ["Value of a credit, USD", "How balances are shown in credits. Money is always kept in USD.", "usd"],
  }],
  ["Calls", {
    default_max_output_tokens: ["Longest answer, tokens", "Where a call names no bound: at most so much is held and generated.", "number"],
    default_requests_per_minute: ["Requests per minute of new keys", "For each model. Empty: no limit.", "number?"],
    default_tokens_per_minute: ["Tokens per minute of new keys", "For each model. Empty: no limit.", "number?"],
    unsupported_parameters: ["Parameters that a provider can't be told", "refuse: 422. drop: left out, and named in a header.", ["refuse", "drop"]],
    expired_hold_policy: ["Holds that nobody settled", "release: given back, at your loss. charge: taken in full.", ["release", "charge"]],
  }],
  ["People", { auth_sign_up: ["Who signs in and is no customer yet", "off: refused. link: becomes the customer with the same address. create: becomes a new customer.", ["off", "link", "create"]] }],
  ["Top-ups", {
    top_up_amounts_usd: ["Amounts that are offered, USD", "With commas between.", "list"],
    top_up_minimum_usd: ["Least, USD", "", "usd"],
    top_up_maximum_usd: ["Most, USD", "", "usd"],
    low_balance_usd: ["Low balance, USD", "A balance that falls below it raises an event.", "usd?"],
  }],
  ["Webhook", {
    webhook_url: ["URL", "Where events are sent: HTTPS. Empty: nowhere.", "text?"],
    webhook_secret: ["Secret", "What they are signed with: whsec_ and base64, or a text of 24 to 64 characters. Kept sealed.", "secret"],
  }],
  ["How long figures are kept", {
    log_retention_months: ["Log of calls, months", "Empty: for ever.", "number?"],
    usage_detail_days: ["Usage by the quarter of an hour, days", "Days and months are kept for ever. Empty: this, too.", "number?"],
  }],
];
const shown = (value) => (value === null || value === undefined ? "" : Array.isArray(value) ? value.join(", ") : String(value));

/** A setting that this page has no words for, with the ones that the API's own document has. */
async function others(names, { api, signal }) {
  if (!names.length) return [];
  const document = await api.get("/openapi.json", {}, { signal }).catch(() => ({}));
  const told = document.components?.schemas?.SettingsAnswer?.properties ?? {};
  return [["Others", Object.fromEntries(names.map((name) => [name, [name.replaceAll("_", " "), told[name]?.description ?? "", told[name]?.enum ?? told[name]?.anyOf?.find((one) => one.enum)?.enum ?? "any?"]]))]];
}

function read(kind, text, before) {
  if (text === "") return null;
  if (kind === "list") return text.split(",").map((part) => part.trim()).filter(Boolean);
  const number = String(kind).startsWith("number") || (kind === "any?" && typeof before === "number");
  if (kind === "any?" && typeof before === "boolean") return text === "true";
  return number && /^-?\d{1,15}$/.test(text) ? Number(text) : text;
}

export default {
  async render(root, context) {
    const { api, signal, actions } = context;
    let settings, kinds = {}, node = null;
    const holder = h("div", { class: "view" }, skeleton(240), skeleton(240));
    root.append(holder);

    function field(name, [label, hint, kind]) {
      const secret = kind === "secret";
      const value = secret ? "" : shown(settings[name]);
      const told = secret ? `${hint} ${settings.webhook_secret_set ? "One is set; empty: it stays." : "None is set."}` : hint;
      return formField({ name, label, hint: told, value, autocomplete: "off", ...(Array.isArray(kind) ? { options: kind.map((each) => [each, each]) } : { type: secret ? "password" : "text", inputmode: String(kind).startsWith("number") ? "numeric" : kind.startsWith("usd") ? "decimal" : null, spellcheck: "false" }) });
    }

    function changes(values) {
      const found = Object.entries(kinds).filter(([name, [, , kind]]) => (kind === "secret" ? values[name] !== "" : values[name].trim() !== shown(settings[name])));
      return Object.fromEntries(found.map(([name, [, , kind]]) => [name, read(kind, values[name].trim(), settings[name])]));
    }

    /** Shows what changes; resolves when it is done, and rejects with what was refused, for the field that it names. */
    async function review(values) {
      const changed = changes(values);
      if (!Object.keys(changed).length) return toast("Nothing is changed.");
      let refused = null;
      const done = await dialog("Save these changes?", (close) => form({
        fields: [
          h("p", {}, "They hold for every call that is admitted from now on."),
          table({
            caption: "Changes",
            rows: Object.entries(changed),
            columns: [
              { label: "Setting", kind: "wide", cell: ([name]) => kinds[name][0] },
              { label: "Is", kind: "wide", cell: ([name]) => (kinds[name][2] === "secret" ? "secret" : shown(settings[name]) || "empty") },
              { label: "Becomes", kind: "wide", cell: ([name, value]) => h("strong", {}, kinds[name][2] === "secret" ? "another secret" : shown(value) || "empty") },
            ],
          }),
        ],
        submit: "Save",
        cancel: close,
        async act() {
          try {
            settings = await api.patch("/admin/settings", changed);
            close(true);
          } catch (error) {
            // Under its field, where it can be mended.
            if (!error.param) throw error;
            refused = error;
            close();
          }
        },
      }), { kind: "wide" });
      if (refused) throw refused;
      if (!done) return;
      toast("The settings are saved.");
      draw();
    }

    function draw() {
      node = form({
        fields: sections.map(([title, of]) => card(title, h("div", { class: "pair" }, Object.entries(of).map(([name, told]) => field(name, told))))),
        submit: "Review changes",
        act: review,
      });
      node.classList.add("settings");
      holder.replaceChildren(node);
    }

    let sections;
    async function load() {
      try {
        settings = await api.get("/admin/settings", {}, { signal });
        const known = SECTIONS.map(([title, of]) => [title, Object.fromEntries(Object.entries(of).filter(([name]) => name in settings || name === "webhook_secret"))]).filter(([, of]) => Object.keys(of).length);
        const named = new Set(known.flatMap(([, of]) => Object.keys(of)));
        sections = [...known, ...(await others(Object.keys(settings).filter((name) => !named.has(name) && name !== "webhook_secret_set"), context))];
        kinds = Object.assign({}, ...sections.map(([, of]) => of));
        draw();
      } catch (error) {
        if (!signal.aborted) holder.replaceChildren(failed(error, load));
      }
    }
    actions.append(button("Who changed them", () => context.go("admin/audit", { entity: "settings" })));
    await load();
  },
};
