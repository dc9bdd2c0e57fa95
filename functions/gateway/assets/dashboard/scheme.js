// Before anything is drawn: the colours that were chosen in this tab. A module would come too late.
try {
  const chosen = sessionStorage.getItem("scheme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.scheme = chosen;
} catch {
  // Storage is closed to this page: the system's colours, then.
}
