// A list by the page: its filters stand in the address, and a button brings what is older.

import { button, card, failed, formField, h, skeleton, table } from "../../dom.js";

const PATIENCE = 250; // milliseconds after the last letter

/** Appends the list to `root`. `fields` are filters as formField takes them; `query` makes of them what the API is asked. Returns {reload}. */
export function listing(root, context, { path, fields = [], query = (filters) => filters, limit = 50, height = 400, ...shown }) {
  const { api, signal, params, keep } = context;
  const filters = Object.fromEntries(fields.map(({ name }) => [name, params.get(name) ?? ""]));
  const list = card(null, skeleton(height));
  let rows = [], turn = 0, timer;

  const changed = ({ target }) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (signal.aborted || filters[target.name] === target.value.trim()) return;
      filters[target.name] = target.value.trim();
      keep(filters);
      reload();
    }, PATIENCE);
  };
  if (fields.length) root.append(h("div", { class: "filters", role: "search" }, fields.map((field) => formField({ ...field, value: filters[field.name], oninput: changed }))));
  root.append(list);

  async function load(cursor) {
    const mine = ++turn;
    try {
      const told = await api.get(path, { ...query(filters), limit, cursor }, { signal });
      if (mine !== turn) return;
      rows = cursor ? [...rows, ...told.data] : told.data;
      const more = button("Show more", () => ((more.disabled = true), load(told.next_cursor)), { kind: "small" });
      list.replaceChildren(table({ ...shown, rows }), told.next_cursor ? h("p", {}, more) : "");
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      if (cursor) list.append(failed(error, () => load(cursor)));
      else list.replaceChildren(failed(error, reload));
    }
  }
  const reload = () => load(null);
  reload();
  return { reload };
}

/** One object's page in place of the list: {load, draw}. `load` is asked again by what `draw` is given. */
export async function page(root, { signal }, back, load, draw) {
  const body = h("div", { class: "view" }, skeleton(120), skeleton(280));
  root.append(h("p", {}, back), body);
  async function show() {
    try {
      const told = await load();
      if (signal.aborted) return;
      const held = body.contains(document.activeElement);
      body.replaceChildren(...draw(told, show).filter(Boolean));
      if (held) body.querySelector("h2").focus();
    } catch (error) {
      if (!signal.aborted) body.replaceChildren(failed(error, show));
    }
  }
  await show();
}

/** What a page is about: its name, how it is, and what can be done. With what is below it, so that nothing moves when it comes. */
export const headline = (name, state, ...ways) => h("div", { class: "card-head" }, h("div", { class: "headline" }, h("h2", { tabindex: -1 }, name), state), h("div", { class: "actions" }, ways));

/** Names and values. */
export const pairs = (list) => h("dl", { class: "pairs" }, list.filter(Boolean).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value ?? "–")]));
