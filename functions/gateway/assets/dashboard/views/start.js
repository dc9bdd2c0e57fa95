export default { render(root) { root.append("…"); } };
