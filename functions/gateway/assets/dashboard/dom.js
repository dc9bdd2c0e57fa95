// Elements, made of text nodes and properties alone: nothing that was told by anybody is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
let numbers = 0;
export const uid = (stem) => `${stem}-${++numbers}`;

/** An element. `on…` are listeners, `style` an object of CSS properties, true an empty attribute. */
export function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "style") for (const [key, told] of Object.entries(value)) node.style.setProperty(key, told);
    else if (name === "value" || name === "checked" || name === "indeterminate") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const ICONS = {
  overview: "M3 13h6V3H3zM11 17h6V9h-6zM3 17h6v-2H3zM11 7h6V3h-6z",
  usage: "M3 17V9M8 17V4M13 17v-6M18 17V7",
  keys: "M12.5 10.5 17 6m-2.500 2.500 2 2M11 12a3.500 3.500 0 1 1-5 5 3.500 3.500 0 0 1 5-5z",
  requests: "M4 5h12M4 10h12M4 15h8",
  limits: "M3 14a7 7 0 1 1 14 0M10 14l3.500-4",
  billing: "M3 6h14v9H3zM3 9h14",
  start: "m7 6-4 4 4 4M13 6l4 4-4 4",
  admin: "M10 3l6 2.500V10c0 4-3 6-6 7-3-1-6-3-6-7V5.500z",
  people: "M7.500 10a3 3 0 1 0 0-6 3 3 0 0 0 0 6M2 17c0-3 2.500-5 5.500-5s5.500 2 5.500 5M13 4.500a3 3 0 0 1 0 5M15 12.500c2 .8 3 2.300 3 4.500",
  services: "M3 4h14v5H3zM3 12h14v5H3zM6 6.500h.01M6 14.500h.01",
  models: "m10 3 6.500 3.500v7L10 17l-6.500-3.500v-7zM10 10v7M10 10l6.500-3.500M10 10 3.500 6.500",
  events: "M5 8a5 5 0 0 1 10 0c0 5 2 6 2 6H3s2-1 2-6M8.500 17h3",
  ledger: "M5 3h11v14H5zM5 7H3M5 13H3M8 7h5M8 10h5",
  settings: "M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4",
  audit: "M10 17a7 7 0 1 1 7-7M10 6v4l3 2",
  menu: "M3 6h14M3 10h14M3 14h14",
  more: "M5 10h.01M10 10h.01M15 10h.01",
  close: "m5 5 10 10M15 5 5 15",
  copy: "M7 7V4h9v9h-3M4 7h9v9H4z",
  sun: "M10 3v1.500M10 15.500V17M3 10h1.500M15.500 10H17M5 5l1 1M14 14l1 1M15 5l-1 1M6 14l-1 1M10 7a3 3 0 1 1 0 6 3 3 0 0 1 0-6z",
  out: "M8 4H4v12h4M12 7l3 3-3 3M15 10H8",
  right: "m8 5 5 5-5 5",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of Object.entries({ viewBox: "0 0 20 20", width: 20, height: 20, class: `icon i-${name}`, "aria-hidden": "true" })) svg.setAttribute(key, value);
  path.setAttribute("d", ICONS[name] ?? ICONS.right);
  svg.append(path);
  return svg;
}

export function button(label, onclick, { kind = "", ...props } = {}) {
  return h("button", { type: "button", class: `button ${kind}`, onclick, ...props }, label);
}

/** Tells people who can't see the change. */
export function announce(text) {
  document.getElementById("live").textContent = text;
}

export function toast(text, kind = "") {
  const shown = h("div", { class: `toast ${kind}` }, text);
  document.getElementById("toasts").append(shown);
  announce(text);
  setTimeout(() => shown.remove(), 6000);
}

export function copyButton(text, label = "Copy") {
  const made = button([icon("copy"), h("span", {}, label)], async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
      made.lastChild.textContent = "Copied";
      announce("Copied");
    } catch {
      made.lastChild.textContent = "Select and copy it";
    }
    setTimeout(() => (made.lastChild.textContent = label), 2000);
  }, { kind: "small copy" });
  return made;
}

/** A table. Columns: {label, cell: row → child, kind?: "number" | "wide"}; `open` makes rows lead somewhere, `stack` makes a row a card on a phone. */
export function table({ caption, columns, rows, open, stack, empty: nothing }) {
  if (rows.length === 0 && nothing) return nothing;
  const cells = (row) =>
    columns.map((column, place) => {
      const content = column.cell(row);
      const lead = open && place === 0 ? h("button", { type: "button", class: "link", onclick: () => open(row) }, content) : content;
      return h("td", { class: column.kind ?? "", "data-label": column.label }, lead);
    });
  return h("div", { class: "table-wrap", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { class: `table ${stack ? "stack" : ""}` },
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.kind ?? "" }, column.label)))),
      h("tbody", {}, rows.map((row) => h("tr", open ? { class: "leads", onclick: (event) => event.target.closest("button, a") || open(row) } : {}, cells(row))))));
}

/** A modal dialog; resolves with what `close` was given when it is gone, null if it was dismissed. */
export function dialog(title, build, { kind = "" } = {}) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    const id = uid("dialog");
    let result = null;
    const node = h("dialog", { class: `dialog ${kind}`, "aria-labelledby": id });
    const close = (value = null) => ((result = value), node.close());
    node.append(h("header", {}, h("h2", { id, tabindex: -1 }, title), button(icon("close"), () => close(), { kind: "quiet", "aria-label": "Close" })), build(close, node));
    node.addEventListener("close", () => (node.remove(), before?.isConnected && before.focus(), resolve(result)));
    // A press on the backdrop is outside of its box.
    node.addEventListener("mousedown", (event) => kind === "pane" && event.target === node && event.offsetX < 0 && close());
    document.body.append(node);
    node.showModal();
    (node.querySelector("[autofocus], input:not([type=checkbox]), select, textarea") ?? node.querySelector("h2")).focus();
  });
}

/** Asks before something is done. `act` runs while the dialog is open, and its error is shown there. */
export function confirm({ title, text, label, kind = "danger", act, typed }) {
  return dialog(title, (close) => {
    const field = typed ? formField({ name: "typed", label: `Type ${typed} to go on`, autocomplete: "off" }) : null;
    return form({
      fields: [h("div", { class: "prose" }, text), field],
      submit: label,
      kind,
      cancel: close,
      async act(values) {
        if (typed && values.typed !== typed) throw Object.assign(new Error(`This is not ${typed}.`), { param: "typed" });
        close((await act()) ?? true);
      },
    });
  });
}

/** A labelled input with room for its error. `options`: [[value, label]] make it a select. */
export function formField({ name, label, hint, options, rows, ...props }) {
  const id = uid(name.replaceAll(/\W/g, "-"));
  const told = { id, name, "aria-describedby": `${id}-hint ${id}-error`, ...props };
  let input;
  if (options) {
    input = h("select", told, options.map(([value, text]) => h("option", { value }, text)));
    if (props.value !== undefined) input.value = props.value;
  } else input = h(rows ? "textarea" : "input", { type: rows ? null : "text", rows, ...told });
  return h("div", { class: "field", "data-field": name }, h("label", { for: id }, label), input,
    h("p", { class: "hint", id: `${id}-hint` }, hint ?? ""), h("p", { class: "error", id: `${id}-error` }));
}

/** Boxes of which any may be ticked; the form's value is the list of those that are. */
export function checks({ name, label, options, chosen = [], hint }) {
  const id = uid("checks");
  return h("fieldset", { class: "field", "data-field": name, "aria-describedby": `${id}-error` }, h("legend", {}, label),
    h("div", { class: "checks" }, options.map(([value, text]) => h("label", {}, h("input", { type: "checkbox", name, value, checked: chosen.includes(value) }), " ", text))),
    h("p", { class: "hint" }, hint ?? ""), h("p", { class: "error", id: `${id}-error` }));
}

/** A form. An ApiError is shown under the field that its `param` names, or above the buttons. */
export function form({ fields, submit, act, cancel, kind = "primary" }) {
  const fault = h("p", { class: "error", role: "alert" });
  const go = h("button", { type: "submit", class: `button ${kind}` }, submit);
  const show = (error) => {
    const field = error.param && [...node.querySelectorAll("[data-field]")].find((each) => error.param === each.dataset.field || error.param.startsWith(`${each.dataset.field}.`));
    const input = field?.querySelector("input, select, textarea");
    (field ? field.querySelector(".error") : fault).textContent = error.message;
    input?.setAttribute("aria-invalid", "true");
    input?.focus();
    if (field) announce(error.message);
  };
  const node = h("form", { class: "form", novalidate: true, async onsubmit(event) {
    event.preventDefault();
    for (const each of node.querySelectorAll(".error")) each.textContent = "";
    for (const each of node.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
    const data = new FormData(node);
    const values = Object.fromEntries(data);
    for (const set of node.querySelectorAll("fieldset[data-field]")) values[set.dataset.field] = data.getAll(set.dataset.field);
    go.disabled = true;
    try {
      await act(values);
    } catch (error) {
      show(error);
    }
    go.disabled = false;
  } }, fields, fault, h("footer", {}, cancel ? button("Cancel", () => cancel()) : null, go));
  return node;
}

/** A button with a list of things to do: [[label, act, kind?]]. */
export function menu(label, entries) {
  const id = uid("menu");
  const items = entries.map(([text, act, kind = ""]) => h("button", { type: "button", role: "menuitem", class: kind, tabindex: -1, onclick: () => (list.hidePopover(), opener.focus(), act()) }, text));
  const list = h("div", { class: "menu", id, popover: "auto", role: "menu", onkeydown(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined) return event.key === "Tab" ? list.hidePopover() : undefined;
    event.preventDefault();
    items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
  } }, items);
  const opener = h("button", { type: "button", class: "button quiet", "aria-haspopup": "menu", "aria-label": label, popovertarget: id }, icon("more"));
  list.addEventListener("toggle", (event) => {
    if (event.newState !== "open") return;
    const box = opener.getBoundingClientRect();
    const below = box.bottom + list.offsetHeight + 8 < innerHeight;
    list.style.setProperty("top", `${below ? box.bottom + 4 : box.top - list.offsetHeight - 4}px`);
    list.style.setProperty("left", `${Math.max(8, box.right - list.offsetWidth)}px`);
    items[0].focus();
  });
  return h("span", {}, opener, list);
}

/** One of several: [[value, label]]. */
export function tabs(label, options, chosen, onchange) {
  const node = h("div", { class: "tabs", role: "group", "aria-label": label }, options.map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": String(value === chosen), onclick(event) {
      for (const each of node.children) each.setAttribute("aria-pressed", String(each === event.currentTarget));
      onchange(value);
    } }, text)));
  return node;
}

export function card(title, ...content) {
  return h("section", { class: "card" }, title ? h("h2", {}, title) : null, content);
}

export function badge(text, kind = "") {
  return h("span", { class: `badge ${kind}` }, text);
}

/** What is shown where there is nothing yet: it says what to do about it. */
export function empty(title, text, ...actions) {
  return h("div", { class: "state" }, h("h3", {}, title), h("p", {}, text), actions);
}

export function failed(error, retry) {
  return h("div", { class: "state", role: "alert" }, h("h3", {}, error.status === 404 ? "Not found" : "This could not be loaded"), h("p", {}, error.message),
    error.requestId ? h("p", { class: "hint" }, "Request ", h("code", {}, error.requestId)) : null, retry ? button("Try again", retry) : null);
}

/** A place holder of the height of what will come. */
export function skeleton(height) {
  return h("div", { class: "skeleton", style: { height: `${height}px` }, "aria-hidden": "true" });
}
