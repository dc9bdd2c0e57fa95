// Everybody who has an account, and the way to their dashboards.

import { badge, card, empty, failed, skeleton, table } from "../../dom.js";
import { money } from "../../format.js";

export default {
  async render(root, { api, openCustomer, signal }) {
    const list = card(null, skeleton(320));
    root.append(list);
    async function load() {
      try {
        const { data } = await api.get("/admin/customers", { limit: 100 }, { signal });
        list.replaceChildren(table({
          caption: "Customers",
          rows: data,
          open: (row) => openCustomer(row.id),
          empty: empty("No customers yet", "POST /customers makes one."),
          columns: [
            { label: "Name", cell: (row) => row.name },
            { label: "Email", cell: (row) => row.email ?? "–" },
            { label: "State", cell: (row) => (row.active ? badge("active", "good") : badge("suspended", "bad")) },
            { label: "Balance", kind: "number", cell: (row) => money(row.balance_usd) },
          ],
        }));
      } catch (error) {
        if (!signal.aborted) list.replaceChildren(failed(error, load));
      }
    }
    await load();
  },
};
