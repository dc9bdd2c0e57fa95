// The views of admins, in the same form as ../index.js.

const view = (path, icon, title, load) => ({ path: `admin/${path}`, icon, title, scope: ["admin"], load });

export default [
  view("overview", "overview", "System", () => import("./overview.js")),
  view("customers", "people", "Customers", () => import("./customers.js")),
  view("requests", "requests", "All requests", () => import("../requests.js")),
  view("services", "services", "Services", () => import("./services.js")),
  view("models", "models", "Models and prices", () => import("./models.js")),
  view("payments", "billing", "Payments", () => import("./payments.js")),
  view("events", "events", "Events", () => import("./events.js")),
  view("ledger", "ledger", "Ledger check", () => import("./ledger.js")),
  view("settings", "settings", "Settings", () => import("./settings.js")),
  view("audit", "audit", "Audit log", () => import("./audit.js")),
];
