// Filters, keyboard and the enlarged picture of a page; without it the page shows everything.
"use strict";
(() => {
  const queries = [...document.querySelectorAll(".query")];
  const form = document.querySelector(".filters");

  // Filters. A query carries a value of each as data-NAME; a select offers those that occur.
  function fill(select) {
    const counts = new Map();
    for (const query of queries)
      counts.set(query.dataset[select.name], (counts.get(query.dataset[select.name]) || 0) + 1);
    const values = [...counts.keys()];
    if (select.dataset.order === "text") values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    for (const value of values) select.add(new Option(`${value} (${counts.get(value)})`, value));
  }

  function apply() {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const query of queries) {
      const kept = [...form.querySelectorAll("select")].every(
        (select) => !select.value || query.dataset[select.name] === select.value);
      const text = query.dataset.text.toLowerCase();
      query.hidden = !(kept && words.every((word) => text.includes(word)));
      shown += query.hidden ? 0 : 1;
    }
    form.querySelector("output").textContent = `${shown} of ${queries.length} queries`;
    document.body.classList.toggle("keys", form.elements.keys.checked);
  }

  if (form) {
    form.querySelectorAll("select").forEach(fill);
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("reset", () => setTimeout(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // Keyboard: one stop a row for Tab; arrows move in it and from row to row; Enter enlarges.
  const rows = [...document.querySelectorAll(".row")];
  const shots = (row) => [...row.querySelectorAll(".shot")];
  const visible = () => rows.filter((row) => row.offsetParent !== null && shots(row).length);
  for (const row of rows) shots(row).forEach((shot, place) => (shot.tabIndex = place ? -1 : 0));

  function go(shot) {
    if (!shot) return;
    for (const other of shots(shot.closest(".row"))) other.tabIndex = -1;
    shot.tabIndex = 0;
    shot.focus();
    shot.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function neighbour(shot, key) {
    const row = shot.closest(".row");
    const mine = shots(row);
    const place = mine.indexOf(shot);
    const all = visible();
    const along = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: mine.length - 1 };
    if (key in along) return mine[along[key]];
    const other = all[all.indexOf(row) + (key === "ArrowDown" ? 1 : -1)];
    return other && shots(other)[Math.min(place, shots(other).length - 1)];
  }

  const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (dialog.open && KEYS.includes(event.key)) {
      const next = neighbour(current, event.key);
      if (next) enlarge(next);
      event.preventDefault();
    } else if (event.target.matches(".shot") && KEYS.includes(event.key)) {
      go(neighbour(event.target, event.key));
      event.preventDefault();
    } else if (event.key === "/" && form && !event.target.matches("input, select")) {
      form.elements.text.focus();
      event.preventDefault();
    }
  });

  // The enlarged picture, with what is known of it.
  const dialog = document.createElement("dialog");
  dialog.innerHTML = "<img alt=''><p></p><button autofocus>Close</button>";
  document.body.append(dialog);
  let current = null;
  function enlarge(shot) {
    current = shot;
    const image = shot.querySelector("img");
    dialog.querySelector("img").src = image.src;
    dialog.querySelector("img").alt = image.alt;
    dialog.querySelector("p").innerText = shot.parentElement.querySelector("figcaption").textContent;
    if (!dialog.open) dialog.showModal();
  }
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => go(current));
  document.addEventListener("click", (event) => {
    const shot = event.target.closest(".shot");
    if (shot) enlarge(shot);
  });
})();
