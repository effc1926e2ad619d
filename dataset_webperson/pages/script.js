"use strict";
{
  // Tables sort by the column whose heading is pressed; cells without a value stay last either way.
  const words = new Intl.Collator("en", { numeric: true });
  const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();

  const sort = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const numeric = heads[column].classList.contains("number");
    const before = heads[column].getAttribute("aria-sort");
    const descending = before ? before === "ascending" : numeric;
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, value: valueOf(row, column) }));
    rows.sort((one, other) => {
      if (one.value === "" || other.value === "") return (one.value === "") - (other.value === "");
      const order = numeric ? one.value - other.value : words.compare(one.value, other.value);
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      if (!head.textContent.trim()) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head.cellIndex));
      head.append(button);
    }
  }

  // A box that scrolls is reached by the keyboard; one that does not would only be in the way.
  const watcher = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(".scroll")) watcher.observe(box);

  // A picture opens larger; the arrows lead to its neighbours. Pages may add and remove pictures.
  const viewer = document.querySelector("dialog.viewer");
  const pictures = () => [...document.querySelectorAll("button.picture")];
  let opened = 0;

  const show = (number) => {
    const all = pictures();
    opened = (number + all.length) % all.length;
    const small = all[opened].querySelector("img");
    const image = small.cloneNode();
    image.width = 2 * (small.getAttribute("width") ?? small.width);
    if (all[opened].dataset.large) image.src = all[opened].dataset.large;
    image.removeAttribute("title");
    image.removeAttribute("height");
    viewer.querySelector("figure").replaceChildren(image);
    viewer.querySelector(".name").textContent = image.alt;
    if (!viewer.open) viewer.showModal();
  };

  document.addEventListener("click", ({ target }) => {
    const picture = target.closest("button.picture");
    if (picture) show(pictures().indexOf(picture));
  });
  viewer.querySelector(".previous").addEventListener("click", () => show(opened - 1));
  viewer.querySelector(".next").addEventListener("click", () => show(opened + 1));
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(opened - 1);
    if (event.key === "ArrowRight") show(opened + 1);
  });
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("close", () => pictures()[opened]?.focus());
}
