// The shell: who may come in, what may be looked at, and where one is.

import { announce, button, dialog, empty, failed, h, icon, toast } from "./dom.js";
import { money } from "./format.js";
import { poll } from "./poll.js";
import * as session from "./session.js";
import { ROOT } from "./api.js";
import views from "./views/index.js";
import adminViews from "./views/admin/index.js";

const app = document.getElementById("app");
const gate = document.getElementById("sign-in");
const { api } = session;
let config = { auth: null, billing: false, version: "" };
let shell = null;
let leave = () => {};

/** Whose dashboard the address names; null: the caller's own. */
const addressed = () => {
  const found = /\/dashboard\/([1-9]\d{0,18})$/.exec(location.pathname);
  return found ? Number(found[1]) : null;
};
const place = () => {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path, params: new URLSearchParams(query) };
};

function allowed(caller) {
  const may = (view) => caller.is_admin || view.scope.length === 0 || view.scope.some((scope) => caller.scopes.includes(scope));
  const own = caller.customer !== null || addressed() !== null;
  return { own: own ? views.filter(may).filter((view) => view.path !== "billing" || config.billing || caller.is_admin || caller.scopes.includes("billing")) : [], admin: caller.is_admin ? adminViews : [] };
}

/** A customer's own id where an admin looks at somebody else's figures, else null. */
function lookedAt(caller) {
  const id = addressed();
  return id !== null && id !== caller.customer?.id ? id : null;
}

function openCustomer(id) {
  history.pushState(null, "", `${new URL(id === null ? "dashboard" : `dashboard/${id}`, ROOT).pathname}#/${id === null ? "admin/customers" : "overview"}`);
  enter();
}

function setScheme() {
  const root = document.documentElement;
  const dark = (root.dataset.scheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.scheme = dark ? "light" : "dark";
  sessionStorage.setItem("scheme", root.dataset.scheme);
  document.dispatchEvent(new Event("scheme"));
  announce(`${root.dataset.scheme} colours`);
}

function buildShell(caller) {
  const title = h("h1", { tabindex: -1 }, "");
  const main = h("main", { class: "main", id: "main" });
  const links = new Map();
  const { own, admin } = allowed(caller);
  const link = (view) => {
    const node = h("a", { href: `#/${view.path}` }, icon(view.icon), view.title);
    links.set(view.path, node);
    return h("li", {}, node);
  };
  const balance = h("span", { class: "balance" }, "");
  const nav = h("nav", { class: "nav", id: "nav", "aria-label": "Main" },
    own.length ? h("ul", {}, own.map(link)) : null,
    admin.length ? [h("p", { class: "nav-title" }, "Operator"), h("ul", {}, admin.map(link))] : null);
  const toggle = h("button", { type: "button", class: "button quiet menu-button", "aria-label": "Menu", "aria-expanded": "false", "aria-controls": "nav", onclick: () => open(toggle.getAttribute("aria-expanded") !== "true") }, icon("menu"));
  const open = (yes) => (toggle.setAttribute("aria-expanded", String(yes)), nav.classList.toggle("open", yes));
  const other = lookedAt(caller);
  const name = h("span", { class: "who" }, other === null ? (caller.customer?.name ?? "Operator") : `Customer ${other}`);
  const bar = h("header", { class: "bar" }, toggle, h("a", { class: "brand", href: "#/" }, h("img", { src: new URL("icon.svg", import.meta.url).href, width: 24, height: 24, alt: "" }), "Sluice"),
    h("span", { class: "spring" }),
    other !== null || (caller.is_admin && caller.customer === null && addressed() !== null) ? button("All customers", () => openCustomer(null), { kind: "small" }) : null,
    name, own.length ? balance : null,
    button(icon("sun"), setScheme, { kind: "quiet", "aria-label": "Change the colours" }),
    button(icon("out"), session.signOut, { kind: "quiet", "aria-label": "Sign out" }));
  app.replaceChildren(h("a", { class: "skip", href: "#main", onclick: (event) => (event.preventDefault(), title.focus()) }, "Skip to the content"), bar, h("div", { class: "shell" }, nav, main));
  return { main, title, links, balance, name, open, polls: [], first: (own[0] ?? admin[0])?.path, views: [...own, ...admin] };
}

async function show() {
  const caller = session.who();
  if (!caller) return;
  const { path, params } = place();
  leave();
  const view = shell.views.find((each) => each.path === path);
  if (!path || (!view && path === "overview")) return void location.replace(`#/${shell.first ?? "none"}`);
  for (const [name, node] of shell.links) name === path ? node.setAttribute("aria-current", "page") : node.removeAttribute("aria-current");
  shell.open(false);
  const control = new AbortController();
  const running = [];
  let cleanUp = null;
  leave = () => {
    control.abort();
    running.forEach((each) => each.stop());
    cleanUp?.();
    leave = () => {};
  };
  shell.title.textContent = view?.title ?? "Not found";
  document.title = `${shell.title.textContent} · Sluice`;
  const root = h("div", { class: "view" });
  const actions = h("div", { class: "actions" });
  const { main } = shell;
  main.replaceChildren(h("div", { class: "head" }, shell.title, actions), root);
  scrollTo(0, 0);
  if (!shell.fresh) shell.title.focus({ preventScroll: true });
  shell.fresh = false;
  if (!view) return void root.append(empty("There is no such page", "It may need a key that can do more.", h("a", { class: "button", href: `#/${shell.first ?? ""}` }, "To the beginning")));
  const other = lookedAt(caller);
  const context = {
    api, config, params, actions, session, caller, openCustomer,
    signal: control.signal,
    customerId: other,
    customer: other === null ? caller.customer : { id: other },
    /** Adds the customer that an admin looks at. */
    scoped: (more = {}) => (other === null ? more : { ...more, customer_id: other }),
    may: (scope) => caller.is_admin || caller.scopes.includes(scope),
    poll: (task, options) => (running.push(poll(task, options)), running.at(-1)),
    go: (to, query = {}) => (location.hash = `/${to}${Object.keys(query).length ? `?${new URLSearchParams(query)}` : ""}`),
    /** Keeps the filters of a view in the address, without another entry in the history. */
    keep: (query) => history.replaceState(null, "", `#/${path}?${new URLSearchParams(Object.entries(query).filter(([, value]) => value))}`),
    balance: (told) => shell && (shell.balance.textContent = money(told.balance_usd)),
  };
  main.setAttribute("aria-busy", "true");
  try {
    const { default: found } = await view.load();
    if (control.signal.aborted) return;
    cleanUp = await found.render(root, context);
    if (control.signal.aborted) return void cleanUp?.();
  } catch (error) {
    if (control.signal.aborted) return;
    root.replaceChildren(failed(error, show));
  }
  main.removeAttribute("aria-busy");
}

/** Shows the dashboard to whoever has signed in; a customer who names another finds nothing. */
async function enter() {
  const caller = session.who();
  shell?.balancing?.stop();
  leave();
  const other = lookedAt(caller);
  gate.remove();
  shell = buildShell(caller);
  shell.fresh = true;
  shell.addressed = addressed();
  if (other !== null && !caller.is_admin) return void notFound();
  if (other !== null || caller.customer) {
    const params = other === null ? {} : { customer_id: other };
    if (other !== null) {
      try {
        shell.name.textContent = (await api.get(`/admin/customers/${other}`)).name;
      } catch (error) {
        return void (error.status === 404 ? notFound() : shell.main.replaceChildren(failed(error, enter)));
      }
    }
    const told = shell;
    told.balancing = poll(async (signal) => {
      const { balance_usd: usd } = await api.get("/user/balance", params, { signal });
      told.balance.textContent = money(usd);
    });
  }
  show();
}

function notFound() {
  shell.views = [];
  shell.main.replaceChildren(empty("Not found", "There is no such customer, or it is not yours.", button("To my own dashboard", () => (history.replaceState(null, "", `${new URL("dashboard", ROOT).pathname}#/`), enter()))));
}

function say(note) {
  document.getElementById("sign-in-note").textContent = note;
  announce(note);
}

function ask(note = "") {
  leave();
  shell?.balancing?.stop();
  shell = null;
  for (const open of document.querySelectorAll("dialog")) open.close();
  document.getElementById("toasts").replaceChildren();
  document.title = "Sluice";
  app.replaceChildren(gate);
  for (const input of gate.querySelectorAll("input")) input.value = "";
  say(note);
  document.getElementById("key").focus();
}

function bind(formId, inputId, act) {
  const form = document.getElementById(formId), input = document.getElementById(inputId), error = document.getElementById(`${inputId}-error`);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const go = form.querySelector("button");
    error.textContent = "";
    input.removeAttribute("aria-invalid");
    go.disabled = true;
    try {
      await act(input.value.trim());
      input.value = "";
    } catch (fault) {
      error.textContent = fault.status === 401 ? "This key is not known, or it is off, expired or revoked." : fault.message;
      input.setAttribute("aria-invalid", "true");
      input.focus();
    }
    go.disabled = false;
  });
}

bind("by-key", "key", async (key) => {
  if (!key) throw new Error("Paste a key that begins with sk_.");
  await session.signInByKey(key);
  await enter();
});
bind("by-mail", "mail", async (mail) => {
  if (!mail) throw new Error("Which address?");
  await session.mailLink(mail);
  say("If this address has an account, a link is on its way. Open it in this browser.");
});
session.onEnd((reason) => {
  const note = { expired: "Your session has ended. Sign in again to go on where you were.", left: "You left this page. Sign in again to go on where you were." }[reason] ?? "";
  if (!note) history.replaceState(null, "", location.pathname);
  ask(note);
});
addEventListener("hashchange", () => session.who() && show());
addEventListener("popstate", () => session.who() && shell && addressed() !== shell.addressed && enter());

// Its address is the page's own by then: the browser may ask for it again where it would be another.
for (const each of document.querySelectorAll('link[rel="icon"]')) each.href = new URL("icon.svg", import.meta.url).href;

const link = session.takeLink();
const paid = new URLSearchParams(location.search).get("top_up");
if (paid) {
  history.replaceState(null, "", `${location.pathname}#/billing`);
  say(paid === "paid" ? "Thank you. The credits are there in a moment: close this tab, or sign in to see them." : "Nothing was paid.");
}
config = await session.loadConfig().catch(() => config);
if (link?.error) ask(link.error);
else if (link?.session) {
  // A link that somebody else had mailed would sign this browser in to their account.
  const goOn = link.asked || (await dialog("Sign in by this link?", (close) => h("div", { class: "form" }, h("p", {}, "This browser did not ask for the link that you have followed. Go on only if you asked for it elsewhere yourself."), h("footer", {}, button("Cancel", () => close()), button("Sign in", () => close(true), { kind: "primary" })))));
  if (goOn) {
    try {
      await session.signInAs(link.session);
      await enter();
    } catch (error) {
      ask(error.message);
      toast(error.message, "bad");
    }
  }
}
