// The dialog in which an operator sets limits: of a customer, a key, a service.

import { dialog, form, formField, h, toast } from "../../dom.js";
import { limitName } from "../../format.js";

const WINDOWS = ["requests", "tokens", "spend_usd"].flatMap((metric) => ["minute", "hour", "day", "month"].map((per) => `${metric}_per_${per}`));
const read = (name, text) => (text === "" ? null : name.startsWith("spend") || !/^\d{1,15}$/.test(text) ? text : Number(text));

/** `subject` is what POST /admin/limit takes; `limits` those that it has. Resolves with true where they were changed. */
export const setLimits = ({ api }, title, subject, limits) => dialog(title, (close) => form({
  fields: [
    h("p", { class: "hint" }, "Empty: no limit. They hold from the next call on; what is used of a window counts."),
    h("div", { class: "pair" }, WINDOWS.map((name) => formField({ name: `rate_limits.${name}`, label: `${limitName(name)}${name.startsWith("spend") ? ", USD" : ""}`, inputmode: "decimal", autocomplete: "off", value: String(limits[name] ?? "") }))),
    formField({ name: "warn_percent", label: "Soft mark of new limits, percent", inputmode: "numeric", value: "80", hint: "Past it calls are served with a warning, and the webhook is told." }),
  ],
  submit: "Set limits",
  cancel: close,
  async act(values) {
    const changes = WINDOWS.map((name) => [name, read(name, values[`rate_limits.${name}`].trim())]).filter(([name, value]) => String(value ?? "") !== String(limits[name] ?? ""));
    if (!changes.length) return close();
    const percent = values.warn_percent.trim();
    await api.post("/admin/limit", { ...subject, rate_limits: Object.fromEntries(changes), warn_percent: /^\d{1,3}$/.test(percent) ? Number(percent) : percent });
    toast("The limits are set.");
    close(true);
  },
}), { kind: "wide" });
