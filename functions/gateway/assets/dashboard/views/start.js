// The first call: how to make it from a program, and one to make right here.

import { events, ROOT } from "../api.js";
import { badge, card, copyButton, empty, failed, form, formField, h, tabs } from "../dom.js";
import { count, duration, exactMoney } from "../format.js";

const MASKED = "sk_…";
const base = (path) => new URL(path, ROOT).href.replace(/\/$/, "");

const SNIPPETS = {
  curl: ["curl", (key, model) => `curl ${base("v1/chat/completions")} \\
  -H "Authorization: Bearer ${key}" \\
  -H "Content-Type: application/json" \\
  -d '${JSON.stringify({ model, messages: [{ role: "user", content: "Hello" }] })}'`],
  python: ["Python", (key, model) => `from openai import OpenAI  # pip install openai

client = OpenAI(base_url="${base("v1")}", api_key="${key}")
answer = client.chat.completions.create(
    model=${JSON.stringify(model)},
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.choices[0].message.content)`],
  javascript: ["JavaScript", (key, model) => `import OpenAI from "openai"; // npm install openai

const client = new OpenAI({ baseURL: "${base("v1")}", apiKey: "${key}" });
const answer = await client.chat.completions.create({
  model: ${JSON.stringify(model)},
  messages: [{ role: "user", content: "Hello" }],
});
console.log(answer.choices[0].message.content);`],
  anthropic: ["Anthropic SDK", (key, model) => `from anthropic import Anthropic  # pip install anthropic

client = Anthropic(base_url="${base("")}", api_key="${key}")
answer = client.messages.create(
    model=${JSON.stringify(model)},
    max_tokens=1000,
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.content[0].text)`],
};

export default {
  async render(root, context) {
    const { api, session, caller, signal, scoped, customerId } = context;
    const key = customerId === null ? session.ownKey() : null;
    let language = "curl", shown = false, model = "gpt-4o-mini";
    const code = h("code", {});
    const text = () => SNIPPETS[language][1](shown ? key : (caller.key?.prefix ?? MASKED), model);
    const write = () => (code.textContent = text());
    const models = formField({ name: "model", label: "Model", options: [[model, model]], onchange: (event) => ((model = event.target.value), write()) });
    const reveal = h("input", { type: "checkbox", onchange: (event) => ((shown = event.target.checked), write()) });
    root.append(
      card("From a program", h("p", { class: "muted" }, "Whatever speaks to OpenAI or Anthropic speaks to this gateway: only the base URL and the key change."),
        h("div", { class: "filters" }, models, tabs("Language", Object.entries(SNIPPETS).map(([name, [label]]) => [name, label]), language, (name) => ((language = name), write()))),
        h("div", { class: "code" }, h("pre", { tabindex: 0, role: "region", "aria-label": "Code" }, code), copyButton(text)),
        key ? h("label", {}, reveal, " Show my key in it") : h("p", { class: "hint" }, "Put a key of yours in. ", context.may("keys") ? h("a", { href: "#/keys" }, "Keys") : null)),
    );
    write();
    const chats = key !== null && (caller.scopes.includes("chat") || caller.key === null) && caller.customer !== null;
    root.append(chats ? trial() : card("Try it here", empty("It takes a key that may chat", "Sign in with one, or make one: it is used here until you leave.", context.may("keys") ? h("a", { class: "button", href: "#/keys" }, "Keys") : null)));
    try {
      const { models: names } = await api.get("/models/simple", {}, { signal });
      if (names.length) {
        const select = models.querySelector("select");
        select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
        model = select.value = names.includes(model) ? model : names[0];
        write();
      }
    } catch (error) {
      if (!signal.aborted) root.prepend(failed(error));
    }

    function trial() {
      const answer = h("div", { class: "answer", role: "log", "aria-live": "polite", "aria-label": "Answer" });
      const told = h("p", { class: "hint" }, "\u00a0");
      return card("Try it here", form({
        fields: [formField({ name: "content", label: "Message", rows: 2, value: "Say hello, and name a river.", hint: "One message to the model above. It costs what any call does." }), answer, told],
        submit: "Send",
        async act({ content }) {
          answer.textContent = "";
          told.textContent = "Waiting for the first token…";
          const started = performance.now();
          let first = null, bill = null, tokens = null;
          try {
            const response = await api.send("POST", "/v1/chat/completions", { signal, as: key, body: { model, messages: [{ role: "user", content }], stream: true, stream_options: { include_usage: true }, max_completion_tokens: 400 } });
            for await (const event of events(response)) {
              if (event === "[DONE]") break;
              const chunk = JSON.parse(event);
              if (chunk.error) throw new Error(chunk.error.message);
              const said = chunk.choices?.[0]?.delta?.content;
              if (said) (first ??= performance.now() - started), answer.append(said);
              bill = chunk.gateway_usage ?? bill;
              tokens = chunk.usage ?? tokens;
            }
          } catch (error) {
            told.textContent = "\u00a0";
            throw error;
          }
          told.replaceChildren(badge(bill ? exactMoney(bill.charge_usd) : "done", "good"), ` ${tokens ? `${count(tokens.prompt_tokens)} tokens in, ${count(tokens.completion_tokens)} out. ` : ""}First token after ${duration(first)}, all after ${duration(performance.now() - started)}.`);
          api.get("/user/balance", scoped(), { signal }).then(context.balance, () => {});
        },
      }));
    }
  },
};
