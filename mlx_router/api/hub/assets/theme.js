// Runs before the page is drawn, so that no other theme flashes up first.
"use strict";
(() => {
  try {
    const theme = localStorage.getItem("mlx-router-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // No storage (a private window): the system's theme.
  }
})();
