// Connections to providers: how they do, whether they answer, what they sell.

import { badge, button, card, confirm, dialog, empty, failed, form, formField, h, menu, skeleton, table, toast } from "../../dom.js";
import { ago, count, duration, exactMoney, percent, time } from "../../format.js";
import { headline, page, pairs } from "./listing.js";
import { setLimits } from "./windows.js";

const PAGES = 15;

/** How a service is, of GET /admin/monitor's line about it. */
export function health(told) {
  if (!told?.active) return badge("off");
  if (told.set_aside_until) return h("span", { title: `Tried last until ${time(told.set_aside_until)}` }, badge("set aside", "bad"), h("span", { class: "hint" }, ` failing since ${ago(told.failing_since)}, until ${time(told.set_aside_until)}`));
  if (told.failing_since) return h("span", {}, badge("failing", "warn"), h("span", { class: "hint" }, ` since ${ago(told.failing_since)}`));
  return told.requests ? badge("well", "good") : badge("no calls today");
}

export const healthColumns = [
  { label: "State", kind: "wide", cell: health },
  { label: "Calls today", kind: "number", cell: (row) => count(row?.requests ?? 0) },
  { label: "Errors", kind: "number", cell: (row) => (row?.errors ? `${count(row.errors)} (${percent(row.errors, row.requests)})` : "0") },
  { label: "Median", kind: "number wide-only", cell: (row) => duration(row?.latency_ms.p50) },
];

/** Names of the catalogue's models that a provider offers. */
async function offered({ api, signal }, provider) {
  const names = [];
  let cursor = null;
  for (let turn = 0; turn < PAGES; turn++) {
    const told = await api.get("/admin/models", { active: true, limit: 200, cursor }, { signal });
    names.push(...told.data.filter((model) => model.offers.some((offer) => offer.provider === provider && offer.prices)).map(({ name }) => name));
    cursor = told.next_cursor;
    if (cursor === null) break;
  }
  return names;
}

async function edit(context, service) {
  const { api, signal } = context;
  const { data: providers } = await api.get("/admin/providers", {}, { signal });
  return dialog(service ? `Change ${service.name}` : "New service", (close) => {
    const known = () => providers.find(({ name }) => name === (service?.provider ?? provider.querySelector("select").value));
    const provider = formField({ name: "provider", label: "Provider", value: service?.provider ?? "openai", disabled: Boolean(service), options: providers.map(({ name, title }) => [name, title]), onchange: () => tell() });
    const url = formField({ name: "base_url", label: "Base URL", value: service?.base_url ?? "", inputmode: "url", autocomplete: "off", hint: "\u00a0" });
    const key = formField({ name: "provider_key", label: "Provider key", type: "password", autocomplete: "off", hint: "\u00a0" });
    const models = formField({ name: "enabled_models", label: "Models", rows: 5, spellcheck: "false", value: service?.enabled_models.join("\n") ?? "", hint: "One on a line: by our name or the provider's." });
    const tell = () => {
      const { base_url: own, key_needed: needed } = known();
      url.querySelector(".hint").textContent = own ? `Empty: ${own}. Another origin needs the key anew.` : "It has none of its own: say where it is.";
      key.querySelector(".hint").textContent = service?.provider_key_set ? `Empty: the one it has stays${service.provider_key_last4 ? `, which ends in ${service.provider_key_last4}` : ""}.` : `Kept sealed, and never shown again.${needed ? "" : " This provider needs none."}`;
    };
    tell();
    const fill = button("All that the catalogue has from it", async () => {
      fill.disabled = true;
      models.querySelector("textarea").value = (await offered(context, known().name).catch(() => [])).join("\n");
      fill.disabled = false;
    }, { kind: "small" });
    return form({
      fields: [
        h("div", { class: "pair" }, formField({ name: "name", label: "Name", value: service?.name ?? "", maxlength: 200, autocomplete: "off" }), provider),
        url, key, models, h("p", {}, fill),
        formField({ name: "priority", label: "Priority", value: String(service?.priority ?? 100), inputmode: "numeric", hint: "The lowest is tried first." }),
      ],
      submit: service ? "Save" : "Add service",
      cancel: close,
      async act(values) {
        const text = values.base_url.trim(), names = [...new Set(values.enabled_models.split("\n").map((line) => line.trim()).filter(Boolean))];
        const priority = /^-?\d{1,7}$/.test(values.priority.trim()) ? Number(values.priority) : values.priority;
        const body = { name: values.name.trim(), priority, ...(values.provider_key ? { provider_key: values.provider_key.trim() } : {}) };
        // Routes keep their own priority where their model is named as before.
        if (String(names) !== String(service?.enabled_models ?? [])) body.enabled_models = names;
        if (text !== (service?.base_url ?? "")) body.base_url = text || null;
        const told = service ? await api.patch(`/admin/services/${service.id}`, body) : await api.post("/admin/services", { ...body, provider: values.provider });
        toast(`${told.name} is ${service ? "changed" : "added"}.`);
        close(told);
      },
    });
  }, { kind: "wide" });
}

const test = ({ api, signal }, service) => dialog(`Test of ${service.name}`, (close) => {
  const found = h("div", { class: "form", "aria-live": "polite" }, h("p", {}, "Calling the provider with the stored key. This takes 15 seconds at most."), skeleton(64));
  const footer = h("footer", {}, button("Close", () => close(true), { kind: "primary" }));
  api.post(`/admin/services/${service.id}/test`, {}, { signal }).then((told) => found.replaceChildren(
    h("p", {}, badge(told.ok ? "It answers" : told.problem.replaceAll("_", " "), told.ok ? "good" : "bad"), ` ${told.status ? `HTTP ${told.status}, ` : ""}after ${duration(told.latency_ms)}`),
    told.message ? h("p", {}, told.message) : "",
    told.provider_said ? h("p", { class: "hint" }, "It said: ", h("q", {}, told.provider_said)) : "",
    told.models_missing?.length ? h("p", {}, badge("not there", "warn"), ` The provider does not list: ${told.models_missing.join(", ")}`) : "",
    footer,
  ), (error) => !signal.aborted && found.replaceChildren(failed(error), footer));
  return found;
});

const toggle = ({ api }, row) => {
  const act = async () => (await api.patch(`/admin/services/${row.id}`, { active: !row.active }), toast(`${row.name} is ${row.active ? "off" : "on"}.`), true);
  return confirm({ title: `Switch ${row.name} ${row.active ? "off" : "on"}?`, text: row.active ? "New calls go to other services of their models, and are refused where there is none. Calls that run end as they would." : "It takes calls again at once.", label: row.active ? "Switch off" : "Switch on", kind: row.active ? "danger" : "primary", act });
};

const remove = ({ api }, row) => confirm({ title: `Delete ${row.name}?`, text: "Its key is forgotten, and no call goes there any more. What it cost stays in the books.", label: "Delete", typed: row.name, act: async () => (await api.delete(`/admin/services/${row.id}`), toast(`${row.name} is deleted.`), true) });

function draw(context, { service, told }, reload) {
  const { go } = context;
  const then = (asked) => asked.then((done) => done && reload());
  const ways = [
    button("Test", () => test(context, service), { kind: "primary" }),
    button("Change", () => then(edit(context, service))),
    menu(`More about ${service.name}`, [[service.active ? "Switch off" : "Switch on", () => then(toggle(context, service))], ["Set limits", () => then(setLimits(context, `Limits of ${service.name}`, { service: service.id }, service.limits))], ["Who changed it", () => go("admin/audit", { entity: "services", entity_id: service.id })], ["Delete", () => remove(context, service).then((done) => done && go("admin/services")), "danger"]]),
  ];
  const limits = Object.entries(service.limits).map(([name, value]) => `${count(Number(value))} ${name.replaceAll("_", " ")}`);
  const compared = told?.cost_compared;
  return [
    headline(service.name, health(told ?? { active: service.active, latency_ms: {} }), ways),
    h("div", { class: "two" },
      card("Connection", pairs([["Provider", service.provider], ["Base URL", service.base_url ?? "the provider's own"], ["Key", service.provider_key_set ? h("span", {}, badge("set", "good"), service.provider_key_last4 ? ` ends in ${service.provider_key_last4}` : "") : badge("none")], ["Priority", String(service.priority)], ["Limits", limits.join(", ") || "none"], ["Since", time(service.created_at)]])),
      card("Today", pairs([["Calls", count(told?.requests ?? 0)], ["Errors", told?.errors ? `${count(told.errors)} (${percent(told.errors, told.requests)})` : "0"], ["Median latency", duration(told?.latency_ms.p50)], ["95th percentile", duration(told?.latency_ms.p95)], ["First token, median", duration(told?.time_to_first_token_ms.p50)], ["Last error", told?.last_error_at ? ago(told.last_error_at) : "none"], compared ? ["Its own bill", `${exactMoney(compared.provider_cost_usd)} on ${compared.day}; by our prices ${exactMoney(compared.cost_usd)}`] : null]))),
    service.health.length ? card("What fails just now", table({
      caption: "What fails just now",
      stack: true,
      rows: service.health,
      columns: [
        { label: "Model", cell: (row) => row.model ?? "the service as a whole" },
        { label: "Why", cell: (row) => `${{ transient: "it may pass", operator: "key, credit or address are not in order", protocol: "what came was no answer" }[row.last_fault]}${row.last_status ? ` (HTTP ${row.last_status})` : ""}` },
        { label: "In a row", kind: "number", cell: (row) => count(row.failures) },
        { label: "Since", kind: "number", cell: (row) => time(row.failing_since) },
        { label: "Set aside until", kind: "number", cell: (row) => (row.set_aside_until ? time(row.set_aside_until) : "it is not") },
      ],
    })) : null,
    card("Models", table({
      caption: "Models",
      rows: service.routes.filter((route) => route.active),
      empty: h("p", { class: "muted" }, "It sells none: no call goes there."),
      columns: [
        { label: "Model", cell: (row) => row.model },
        { label: "Called there", kind: "wide", cell: (row) => row.upstream_model },
        { label: "Priority", kind: "number", cell: (row) => String(row.priority ?? service.priority) },
        { label: "Weight", kind: "number", cell: (row) => String(row.weight) },
      ],
    })),
  ];
}

async function figures({ api, signal }) {
  return (await api.get("/admin/monitor", {}, { signal })).data.providers;
}

export default {
  async render(root, context) {
    const { api, params, actions, go, signal, poll } = context;
    const id = params.get("id");
    if (id) {
      return void (await page(root, context, h("a", { href: "#/admin/services" }, "All services"), async () => {
        const [service, all] = await Promise.all([api.get(`/admin/services/${encodeURIComponent(id)}`, {}, { signal }), figures(context)]);
        return { service, told: all.find((row) => row.service_id === service.id) };
      }, (told, reload) => draw(context, told, reload)));
    }
    const open = (row) => row && go("admin/services", { id: row.id });
    const add = () => edit(context, null).then(open, (error) => toast(error.message, "bad"));
    const list = card(null, skeleton(360));
    let drawn = "", poller;
    actions.append(button("New service", add, { kind: "primary" }));
    root.append(list);
    poller = poll(async (during) => {
      try {
        const [{ data }, all] = await Promise.all([api.get("/admin/services", { limit: 200 }, { signal: during }), figures({ api, signal: during })]);
        const now = JSON.stringify([data, all]);
        if (now === drawn || list.contains(document.activeElement)) return;
        drawn = now;
        const of = (row) => all.find((told) => told.service_id === row.id) ?? { ...row, requests: 0, latency_ms: {} };
        list.replaceChildren(table({
          caption: "Services",
          stack: true,
          rows: data,
          open,
          empty: empty("No services yet", "A service is a connection to a provider, with a key of yours.", button("Add the first one", add, { kind: "primary" })),
          columns: [
            { label: "Service", cell: (row) => row.name },
            { label: "Provider", kind: "wide-only", cell: (row) => row.provider },
            ...healthColumns.map((column) => ({ ...column, cell: (row) => column.cell(of(row)) })),
            { label: "Models", kind: "number wide-only", cell: (row) => count(row.enabled_models.length) },
            { label: "Priority", kind: "number wide-only", cell: (row) => String(row.priority) },
            { label: "Key", kind: "wide-only", cell: (row) => (row.provider_key_set ? row.provider_key_last4 ? h("code", {}, `…${row.provider_key_last4}`) : "set" : "none") },
          ],
        }));
      } catch (error) {
        if (!signal.aborted && !drawn) list.replaceChildren(failed(error, () => poller.now()));
        throw error;
      }
    });
  },
};
