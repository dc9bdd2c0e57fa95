// Everybody who has an account: to find them, and to look after one.

import { badge, button, card, confirm, dialog, empty, form, formField, h, menu, table, toast } from "../../dom.js";
import { ago, compare, exactMoney, money, time } from "../../format.js";
import { meter } from "../limits.js";
import { stat } from "../overview.js";
import { headline, listing, page, pairs } from "./listing.js";
import { setLimits } from "./windows.js";

const STATES = [["", "All"], ["true", "Active"], ["false", "Suspended"]];

const state = (row) => (row.erased_at ? badge("erased") : [row.active ? badge("active", "good") : badge("suspended", "bad"), compare(row.debt_usd, "0") > 0 ? badge("in debt", "bad") : ""]);

const details = (row) => [
  formField({ name: "name", label: "Name", value: row?.name ?? "", maxlength: 200 }),
  formField({ name: "email", label: "Email", type: "email", value: row?.email ?? "", autocomplete: "off" }),
  formField({ name: "company", label: "Company", value: row?.company ?? "" }),
  formField({ name: "username", label: "Username", value: row?.username ?? "", hint: row ? "" : "Empty: the email.", autocomplete: "off" }),
];

const create = ({ api, go }) => dialog("New customer", (close) => form({
  fields: details(null),
  submit: "Add customer",
  cancel: close,
  async act(values) {
    const given = Object.entries(values).map(([name, text]) => [name, text.trim()]).filter(([name, text]) => text || name === "email" || name === "name");
    const made = await api.post("/customers", Object.fromEntries(given));
    close();
    toast(`${made.name} is added.`);
    go("admin/customers", { id: made.id });
  },
}));

const change = ({ api }, row) => dialog("Change customer", (close) => form({
  fields: [...details(row), formField({ name: "time_zone", label: "Time zone", value: row.time_zone, hint: "In which its days and months begin, from now on, such as Europe/London." })],
  submit: "Save",
  cancel: close,
  async act(values) {
    const changes = Object.entries(values).map(([name, text]) => [name, text.trim()]).filter(([name, text]) => text !== (row[name] ?? ""));
    if (changes.length) await api.patch(`/admin/customers/${row.id}`, Object.fromEntries(changes.map(([name, text]) => [name, text || (["email", "company"].includes(name) ? null : text)])));
    close(true);
  },
}));

/** The reference is made once: however often the form is sent, the amount is booked once. */
const addCredits = ({ api }, row) => {
  const reference = `dashboard-${crypto.randomUUID()}`;
  return dialog(`Add credits to ${row.name}`, (close) => form({
    fields: [
      h("p", {}, `The balance is ${exactMoney(row.balance_usd)}${compare(row.debt_usd, "0") > 0 ? `; ${exactMoney(row.debt_usd)} is owed, and is paid first` : ""}. An amount below zero corrects, and takes no more than is free.`),
      formField({ name: "usd", label: "Amount, USD", inputmode: "decimal", autocomplete: "off", placeholder: "25.00" }),
      formField({ name: "reference", label: "Reference", value: reference, autocomplete: "off", maxlength: 255, hint: "Such as an invoice. One reference is booked once." }),
      formField({ name: "note", label: "Note", maxlength: 1000 }),
    ],
    submit: "Add credits",
    cancel: close,
    async act({ usd, reference, note }) {
      const told = await api.post("/admin/add_credits", { user_id: row.id, usd: usd.trim(), ...(reference.trim() ? { reference: reference.trim() } : {}), ...(note.trim() ? { note: note.trim() } : {}) });
      toast(told.duplicate ? "This reference was booked before: nothing was added." : `${money(told.added_usd)} added: the balance is ${money(told.balance_after_usd)}.`);
      close(true);
    },
  }));
};

const suspend = ({ api }, row) => {
  const act = async () => (await api.patch(`/admin/customers/${row.id}`, { active: !row.active }), toast(`${row.name} is ${row.active ? "suspended" : "active again"}.`), true);
  const [title, text, label] = row.active ? ["Suspend", "Its next call is refused, with every key; calls that run end as they would. Nothing is lost, and you can resume it at any time.", "Suspend"] : ["Resume", "Its keys open again at once.", "Resume"];
  return confirm({ title: `${title} ${row.name}?`, text, label, kind: row.active ? "danger" : "primary", act });
};

const erase = ({ api }, row) => confirm({
  title: `Erase ${row.name}?`,
  text: [h("p", {}, "For good: name, email, company and sign-in are forgotten, in the audit log too, and all keys are revoked."), h("p", {}, `The books stay: balance (${exactMoney(row.balance_usd)}), entries and the log of calls. This can't be undone.`)],
  label: "Erase for good",
  typed: row.username,
  act: async () => (await api.delete(`/admin/customers/${row.id}`), toast("The person is erased."), true),
});

async function load({ api, signal }, id) {
  const stop = { signal };
  const [row, limits, monitor, keys] = await Promise.all([
    api.get(`/admin/customers/${id}`, {}, stop),
    api.get("/user/limit", { customer_id: id }, stop),
    api.get("/user/monitor", { customer_id: id }, stop),
    api.get("/v1/keys", { customer_id: id, limit: 50 }, stop),
  ]);
  return { row, limits, monitor, keys };
}

function draw(context, { row, limits, monitor, keys }, reload) {
  const { openCustomer, go } = context;
  const then = (asked) => asked.then((done) => done && reload());
  const ways = row.erased_at ? [] : [
    button("Add credits", () => then(addCredits(context, row)), { kind: "primary" }),
    button(row.active ? "Suspend" : "Resume", () => then(suspend(context, row))),
    menu(`More about ${row.name}`, [["Change", () => then(change(context, row))], ["Set limits", () => then(setLimits(context, `Limits of ${row.name}`, { user_id: row.id }, set))], ["Who changed it", () => go("admin/audit", { entity: "customers", entity_id: row.id })], ["Erase", () => then(erase(context, row)), "danger"]]),
  ];
  const names = Object.keys(limits.current_limits).filter((name) => limits.current_limits[name] !== null);
  const set = Object.fromEntries(names.map((name) => [name, limits.current_limits[name]]));
  const figures = [["Balance", row.balance_usd], ["Held", row.held_usd], ["Debt", row.debt_usd], ["Spend this month", String(monitor.usage_metrics.cost_this_month)]].map(([label, usd]) => {
    const made = stat(label);
    const beside = { Held: "for running calls", Debt: "is paid first", Balance: `${row.credits.toLocaleString()} credits` }[label] ?? `${monitor.usage_metrics.requests_this_month} requests`;
    made.set(money(usd), beside, exactMoney(usd));
    return made.node;
  });
  return [
    headline(row.name, state(row), button("Its dashboard", () => openCustomer(row.id)), ways),
    h("dl", { class: "stats" }, figures),
    h("div", { class: "two" },
      card("Account", pairs([["Id", String(row.id)], ["Username", row.username], ["Email", row.email], ["Company", row.company], ["Time zone", row.time_zone], ["Since", time(row.created_at)], ["Signs in by mail", row.signs_in ? "yes" : "no"], row.erased_at ? ["Erased", time(row.erased_at)] : null, ["Last request", monitor.usage_metrics.last_request_time ? ago(monitor.usage_metrics.last_request_time) : "never"]])),
      card("Limits", limits.current_usage.allowed ? "" : h("p", {}, badge("refusing", "bad"), " ", limits.current_usage.reason), names.length ? names.map((name) => meter(name, limits)) : h("p", { class: "muted" }, "None of its own: its keys' limits and its balance bound it."))),
    card("Keys", table({
      caption: "Keys",
      stack: true,
      rows: keys.data,
      empty: h("p", { class: "muted" }, "None yet. Its dashboard makes one."),
      columns: [
        { label: "Name", cell: (key) => key.name },
        { label: "Key", cell: (key) => h("code", {}, key.prefix) },
        { label: "State", cell: (key) => (key.revoked_at ? badge("revoked", "bad") : key.active ? badge("active", "good") : badge("off", "warn")) },
        { label: "Scopes", cell: (key) => key.scopes.join(", ") },
        { label: "Last used", cell: (key) => ago(key.last_used_at) },
      ],
    }), keys.next_cursor ? h("p", { class: "hint" }, "The first fifty. Its dashboard has all.") : ""),
  ];
}

export default {
  async render(root, context) {
    const { params, actions, go } = context;
    const id = params.get("id");
    if (id) return void (await page(root, context, h("a", { href: "#/admin/customers" }, "All customers"), () => load(context, encodeURIComponent(id)), (told, reload) => draw(context, told, reload)));
    actions.append(button("New customer", () => create(context), { kind: "primary" }));
    listing(root, context, {
      path: "/admin/customers",
      caption: "Customers",
      stack: true,
      fields: [{ name: "q", label: "Search", type: "search", placeholder: "Name, email or company" }, { name: "active", label: "State", options: STATES }],
      open: (row) => go("admin/customers", { id: row.id }),
      empty: empty("No customer", "Nobody is here who fits."),
      columns: [
        { label: "Name", cell: (row) => row.name },
        { label: "Email", kind: "wide", cell: (row) => row.email ?? "–" },
        { label: "State", cell: state },
        { label: "Keys", kind: "number", cell: (row) => String(row.active_keys) },
        { label: "Held", kind: "number", cell: (row) => money(row.held_usd) },
        { label: "Balance", kind: "number", cell: (row) => h("span", { title: exactMoney(row.balance_usd) }, money(row.balance_usd)) },
      ],
    });
  },
};
