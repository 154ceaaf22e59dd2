// A table that is wider than the page scrolls by itself. The keyboard must reach it to scroll it, too.
(() => {
  for (const table of document.querySelectorAll(".bd-article table")) {
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
  }
})();
