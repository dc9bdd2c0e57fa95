// Who changed what, and when.

import { badge, dialog, empty, h } from "../../dom.js";
import { ago, time } from "../../format.js";
import { listing, pairs } from "./listing.js";

const ENTITIES = ["settings", "customers", "api_keys", "services", "routes", "models", "offers", "prices", "limits"];
const KINDS = { insert: ["added", "good"], update: ["changed", ""], delete: ["deleted", "bad"] };
const said = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
const fields = ({ before, after }) => [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])];

const detail = (row) => dialog(`${row.entity} ${row.entity_id}`, () => h("div", { class: "form" },
  pairs([["When", time(row.at)], ["Who", row.actor], ["What", KINDS[row.action][0]]]),
  h("table", { class: "table" }, h("caption", { class: "unseen" }, "What changed"), h("thead", {}, h("tr", {}, ["Field", "Before", "After"].map((label) => h("th", { scope: "col" }, label)))),
    h("tbody", {}, fields(row).map((name) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "wide" }, said(row.before?.[name])), h("td", { class: "wide" }, said(row.after?.[name]))))))), { kind: "wide" });

export default {
  async render(root, context) {
    listing(root, context, {
      path: "/admin/audit",
      caption: "Changes",
      fields: [
        { name: "entity", label: "What", options: [["", "All"], ...ENTITIES.map((name) => [name, name.replace("_", " ")])] },
        { name: "entity_id", label: "Its id", inputmode: "numeric", pattern: "[0-9]*" },
        { name: "actor", label: "Who", placeholder: "key sk_AlwVbh…" },
        { name: "from", label: "From", type: "date" },
        { name: "to", label: "Before", type: "date" },
      ],
      open: detail,
      empty: empty("Nothing was changed", "No change fits, or there was none."),
      columns: [
        { label: "What", cell: (row) => `${row.entity} ${row.entity_id}` },
        { label: "Change", cell: (row) => badge(...KINDS[row.action]) },
        { label: "Fields", kind: "wide wide-only", cell: (row) => (row.action === "update" ? fields(row).join(", ") : "–") },
        { label: "Who", kind: "wide", cell: (row) => row.actor },
        { label: "When", kind: "number", cell: (row) => h("time", { datetime: row.at, title: time(row.at) }, ago(row.at)) },
      ],
    });
  },
};
