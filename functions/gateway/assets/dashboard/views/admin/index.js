// The views of admins, in the same form as ../index.js.

export default [
  { path: "admin/customers", icon: "admin", title: "Customers", scope: ["admin"], load: () => import("./customers.js") },
];
