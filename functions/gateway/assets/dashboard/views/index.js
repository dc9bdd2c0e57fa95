// The views of a customer. `scope`: one of these opens it; none: any credential does.

export default [
  { path: "overview", icon: "overview", title: "Overview", scope: ["usage", "chat"], load: () => import("./overview.js") },
  { path: "usage", icon: "usage", title: "Usage", scope: ["usage", "chat"], load: () => import("./usage.js") },
  { path: "keys", icon: "keys", title: "Keys", scope: ["keys"], load: () => import("./keys.js") },
  { path: "requests", icon: "requests", title: "Requests", scope: ["usage", "chat"], load: () => import("./requests.js") },
  { path: "limits", icon: "limits", title: "Limits", scope: [], load: () => import("./limits.js") },
  { path: "billing", icon: "billing", title: "Billing", scope: ["billing"], load: () => import("./billing.js") },
  { path: "start", icon: "start", title: "Get started", scope: [], load: () => import("./start.js") },
];
