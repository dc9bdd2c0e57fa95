// The catalogue: models, who sells them, for how much since when.

import { badge, button, card, confirm, dialog, empty, form, formField, h, menu, table, toast } from "../../dom.js";
import { count, exactMoney, time } from "../../format.js";
import { headline, listing, page, pairs } from "./listing.js";

const CLASSES = ["input", "cached_input", "cache_write", "cache_write_1h", "output", "audio_input", "audio_output", "image_input", "image_output"];
const EACH = ["per_request", "per_image"];
const word = (name) => ({ cache_write_1h: "cache write, 1 hour" })[name] ?? name.replaceAll("_", " ");
const inOrder = (prices) => [...CLASSES, ...EACH].filter((name) => prices[name] !== undefined && prices[name] !== null);

/** The prices of a version: a row for each class, a column for each tier. */
function priceTable(prices) {
  const tiers = prices.tiers ?? [];
  return h("div", { class: "table-wrap", tabindex: 0, role: "region", "aria-label": "Prices" }, h("table", { class: "table" }, h("caption", { class: "unseen" }, "Prices, USD per million tokens"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Per million tokens"), h("th", { scope: "col", class: "number" }, "Price"), tiers.map((tier) => h("th", { scope: "col", class: "number" }, `Above ${count(tier.above_input_tokens)} in`)))),
    h("tbody", {}, inOrder(prices).map((name) => h("tr", {}, h("th", { scope: "row" }, word(name)), h("td", { class: "number" }, exactMoney(prices[name])), tiers.map((tier) => h("td", { class: "number" }, EACH.includes(name) ? exactMoney(prices[name]) : exactMoney(tier[name]))))))));
}

const inForce = (offer) => (offer.prices ? `${exactMoney(offer.prices.input)} / ${exactMoney(offer.prices.output)}${offer.prices.tiers?.length ? " and tiers" : ""}` : "no price");
const usdField = (prefix, name, value) => formField({ name: `${prefix}${name}`, label: word(name), value: value ?? "", inputmode: "decimal", autocomplete: "off" });

/** A new version of an offer's price: what the last one was, to be changed. */
const setPrice = ({ api }, model, offer) => dialog(`New price of ${model.name}`, (close) => {
  const now = offer.prices ?? {};
  const tiers = h("div", { class: "form" });
  let made = 0;
  const addTier = (tier = {}) => {
    const prefix = `tiers.${made++}.`;
    const set = h("fieldset", { class: "field tier" }, h("legend", {}, "For longer prompts"), h("div", { class: "pair" }, formField({ name: `${prefix}above_input_tokens`, label: "above input tokens", value: String(tier.above_input_tokens ?? ""), inputmode: "numeric", autocomplete: "off" }), CLASSES.map((name) => usdField(prefix, name, tier[name]))), h("p", {}, button("Remove this tier", () => set.remove(), { kind: "small" })));
    set.dataset.tier = prefix;
    tiers.append(set);
  };
  for (const tier of now.tiers ?? []) addTier(tier);
  return form({
    fields: [
      h("p", {}, `From ${offer.provider}. What was admitted before keeps its price. Empty classes cost what input or output costs.`),
      h("div", { class: "pair" }, CLASSES.map((name) => usdField("", name, now[name])), EACH.map((name) => usdField("", name, now[name]))),
      tiers, h("p", {}, button("Add a tier", () => addTier(), { kind: "small" })),
      formField({ name: "effective_from", label: "In force from", type: "datetime-local", hint: "Empty: now. By your clock." }),
      h("div", { class: "pair" }, formField({ name: "source", label: "Source", value: now.source ?? "", inputmode: "url" }), formField({ name: "source_date", label: "Read there on", type: "date" })),
    ],
    submit: "Set the price",
    cancel: close,
    async act(values) {
      const given = (names, prefix = "") => Object.fromEntries(names.map((name) => [name, values[`${prefix}${name}`]?.trim()]).filter(([, text]) => text));
      const shown = [...tiers.children].map((set) => set.dataset.tier);
      const body = { model: model.name, provider: offer.provider, ...given([...CLASSES, ...EACH, "source", "source_date"]) };
      if (values.effective_from) body.effective_from = new Date(values.effective_from).toISOString();
      if (shown.length) body.tiers = shown.map((prefix) => ({ ...given(CLASSES, prefix), above_input_tokens: Number(values[`${prefix}above_input_tokens`]) }));
      try {
        await api.post("/admin/prices", body);
      } catch (error) {
        // It counts the tiers that it was sent; some may have been removed here.
        const [, place] = /^tiers\.(\d+)\./.exec(error.param ?? "") ?? [];
        if (place) error.param = error.param.replace(/^tiers\.\d+\./, shown[place]);
        throw error;
      }
      toast("The price is set.");
      close(true);
    },
  });
}, { kind: "wide" });

const hide = ({ api }, model) => confirm({
  title: `${model.active ? "Hide" : "Show"} ${model.name}?`,
  text: model.active ? "It goes from the list of models, and calls of it are refused. Its prices and history stay." : "It is listed and can be called again.",
  label: model.active ? "Hide" : "Show",
  kind: model.active ? "danger" : "primary",
  act: async () => (await api.patch(`/admin/models/${model.id}`, { active: !model.active }), toast(`${model.name} is ${model.active ? "hidden" : "shown"}.`), true),
});

/** What a list would change, before it does. */
function difference(told) {
  const lists = [["Models added", told.models_added], ["Offers added", told.offers_added.map(({ model, provider }) => `${model} from ${provider}`)], ["Worth a look", told.warnings]];
  const steps = told.prices_changed.flatMap(({ model, provider, changes }) => Object.entries(changes).map(([name, step]) => ({ model, provider, name, ...step })));
  return [
    h("p", {}, badge(`${count(told.prices_changed.length)} changed`, told.prices_changed.length ? "warn" : ""), badge(`${count(told.offers_added.length)} new`, told.offers_added.length ? "good" : ""), badge(`${count(told.unchanged)} unchanged`), ` of ${count(told.lines)} lines`),
    steps.length ? table({
      caption: "Prices that change",
      rows: steps,
      columns: [{ label: "Model", cell: (row) => row.model }, { label: "From", cell: (row) => row.provider }, { label: "Class", cell: (row) => word(row.name) }, { label: "Is", kind: "number", cell: (row) => exactMoney(row.old) }, { label: "Becomes", kind: "number", cell: (row) => exactMoney(row.new) }],
    }) : null,
    lists.filter(([, all]) => all.length).map(([title, all]) => h("details", { open: all.length < 12 }, h("summary", {}, `${title}: ${count(all.length)}`), h("ul", {}, all.map((line) => h("li", {}, line))))),
  ];
}

const importList = ({ api }) => dialog("Import a price list", (close, node) => {
  const file = h("input", { type: "file", accept: ".csv,text/csv", "aria-label": "A file", onchange: async () => (lines.querySelector("textarea").value = (await file.files[0]?.text()) ?? "") });
  const lines = formField({ name: "lines", label: "Price list, CSV", rows: 8, spellcheck: "false", placeholder: "model,provider,input,cached_input,output\ngpt-4o-mini,openai,0.15,0.075,0.60", hint: "The first line names the columns. Prices are USD per million tokens." });
  const send = async (body, from, dryRun) => (await api.send("POST", "/admin/prices/import", { params: { dry_run: dryRun, effective_from: from }, body: new Blob([body]), headers: { "content-type": "text/csv" } })).json();
  const begin = form({
    fields: [h("p", {}, file), lines, formField({ name: "effective_from", label: "In force from", type: "datetime-local", hint: "Empty: now. By your clock." })],
    submit: "Show the difference",
    cancel: close,
    async act({ lines: text, effective_from: at }) {
      const from = at ? new Date(at).toISOString() : null;
      const told = await send(text, from, true);
      const nothing = told.prices_changed.length + told.offers_added.length === 0;
      begin.replaceWith(form({
        fields: [h("p", {}, nothing ? "The list says what is in force already." : "Nothing is changed yet. This is what the list changes:"), difference(told)],
        submit: nothing ? "Close" : "Apply it",
        cancel: close,
        async act() {
          if (!nothing) {
            const done = await send(text, from, false);
            toast(`Prices changed: ${count(done.prices_changed.length)}. Offers added: ${count(done.offers_added.length)}.`);
          }
          close(!nothing);
        },
      }));
      node.querySelector("h2").focus();
    },
  });
  return begin;
}, { kind: "wide" });

function draw(context, { model, history }, reload) {
  const { go } = context;
  const then = (asked) => asked.then((done) => done && reload());
  const more = menu(`More about ${model.name}`, [[model.active ? "Hide" : "Show", () => then(hide(context, model)), model.active ? "danger" : ""], ["Who changed it", () => go("admin/audit", { entity: "models", entity_id: model.id })]]);
  return [
    headline(model.name, model.active ? badge("shown", "good") : badge("hidden", "warn"), more),
    card("Model", pairs([model.display_name ? ["Called", model.display_name] : null, ["Context", model.context_length ? `${count(model.context_length)} tokens` : null], ["Longest answer", model.max_output_tokens ? `${count(model.max_output_tokens)} tokens` : null], ["Takes", model.input_modalities.join(", ")], ["Gives", model.output_modalities.join(", ")], ["Since", time(model.created_at)]])),
    ...(model.offers.length ? model.offers.map((offer) => h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, offer.provider), button("New price", () => then(setPrice(context, model, offer)))),
      h("p", { class: "hint" }, `Called ${offer.upstream_model} there. `, offer.prices ? `In force since ${time(offer.prices.effective_from)}.` : "It has no price, so it can't be called."), offer.prices ? priceTable(offer.prices) : "")) : [card(null, empty("Nobody sells it", "A price list, or PATCH /admin/models, adds an offer."))]),
    card("History of its prices", table({
      caption: "History of its prices",
      rows: history.data,
      open: (row) => dialog(`${row.model}, ${row.provider}`, () => h("div", { class: "form" }, pairs([["In force from", time(row.effective_from)], row.service_id ? ["For service", String(row.service_id)] : null, ["Source", row.source], ["Read there on", row.source_date]]), priceTable(row)), { kind: "wide" }),
      empty: h("p", { class: "muted" }, "It never had one."),
      columns: [
        { label: "In force from", cell: (row) => h("span", {}, time(row.effective_from), " ", new Date(row.effective_from) > new Date() ? badge("to come", "warn") : "") },
        { label: "Provider", cell: (row) => `${row.provider}${row.service_id ? `, service ${row.service_id}` : ""}` },
        { label: "Input", kind: "number", cell: (row) => exactMoney(row.input) },
        { label: "Output", kind: "number", cell: (row) => exactMoney(row.output) },
        { label: "Tiers", kind: "number", cell: (row) => count(row.tiers?.length ?? 0) },
      ],
    }), history.next_cursor ? h("p", { class: "hint" }, "The latest hundred.") : ""),
  ];
}

export default {
  async render(root, context) {
    const { api, params, actions, go, signal } = context;
    const id = params.get("id");
    if (id) {
      return void (await page(root, context, h("a", { href: "#/admin/models" }, "All models"), async () => {
        const model = await api.get(`/admin/models/${encodeURIComponent(id)}`, {}, { signal });
        return { model, history: await api.get("/admin/prices", { model: model.name, limit: 100 }, { signal }) };
      }, (told, reload) => draw(context, told, reload)));
    }
    actions.append(button("Import a price list", () => importList(context).then((done) => done && list.reload())));
    const list = listing(root, context, {
      path: "/admin/models",
      caption: "Models",
      stack: true,
      fields: [{ name: "q", label: "Search", type: "search", placeholder: "Name, ours or a provider's" }, { name: "active", label: "State", options: [["", "All"], ["true", "Shown"], ["false", "Hidden"]] }],
      open: (row) => go("admin/models", { id: row.id }),
      empty: empty("No model", "None fits. A price list adds models and offers."),
      columns: [
        { label: "Model", cell: (row) => row.name },
        { label: "Sold by", kind: "wide", cell: (row) => row.offers.map((offer) => offer.provider).join(", ") || "–" },
        { label: "In / out per million", kind: "number", cell: (row) => h("span", {}, row.offers.slice(0, 1).map(inForce), row.offers.length > 1 ? ` +${row.offers.length - 1}` : "") },
        { label: "Context", kind: "number", cell: (row) => count(row.context_length) },
        { label: "State", cell: (row) => (row.active ? badge("shown", "good") : badge("hidden", "warn")) },
      ],
    });
  },
};
