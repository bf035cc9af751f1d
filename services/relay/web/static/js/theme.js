// Runs before anything is drawn, so that nobody sees the wrong theme flash.
const chosen = (() => {
  try { return localStorage.getItem("ciliate-theme"); } catch { return null; }
})();
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
