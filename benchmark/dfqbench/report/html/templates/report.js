"use strict";
// Sorting and filtering of the summary, and words beside the points of charts; without it the page shows everything.
(function () {
  const table = document.getElementById("summary");
  if (!table) { return; }
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);

  function key(row, at) {
    const cell = row.cells[at];
    const number = cell.dataset.number;
    if (number === undefined) { return cell.textContent.trim().toLowerCase(); }
    return number === "" ? null : Number(number);
  }

  function sort(at, down) {
    const order = rows.map((row, place) => [key(row, at), place, row]);
    order.sort(function (a, b) {
      // What has no number stays at the end, whichever way the others go.
      if (a[0] === null || b[0] === null) { return (a[0] === null) - (b[0] === null) || a[1] - b[1]; }
      const less = a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0;
      return (down ? -less : less) || a[1] - b[1];
    });
    order.forEach(function (entry) { body.appendChild(entry[2]); });
    heads.forEach(function (head, place) {
      if (place === at) { head.setAttribute("aria-sort", down ? "descending" : "ascending"); }
      else { head.removeAttribute("aria-sort"); }
    });
  }

  heads.forEach(function (head, at) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent.trim();
    button.addEventListener("click", function () {
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : head.classList.contains("number");
      sort(at, down);
    });
    head.textContent = "";
    head.appendChild(button);
  });

  const box = document.getElementById("filters");
  const words = box.querySelector("input");
  const selects = Array.from(box.querySelectorAll("select"));
  const counter = document.getElementById("shown");

  selects.forEach(function (select) {
    const at = Number(select.dataset.column);
    const names = Array.from(new Set(rows.map((row) => row.cells[at].textContent.trim())));
    names.forEach(function (name) { select.add(new Option(name, name)); });
  });

  function filter() {
    const filterWords = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach(function (row) {
      const text = row.textContent.toLowerCase();
      const fits = filterWords.every((word) => text.includes(word)) && selects.every(function (select) {
        return !select.value || row.cells[Number(select.dataset.column)].textContent.trim() === select.value;
      });
      row.hidden = !fits;
      count += fits ? 1 : 0;
    });
    counter.textContent = count + " of " + rows.length + " rows";
  }

  words.addEventListener("input", filter);
  selects.forEach(function (select) { select.addEventListener("change", filter); });
  box.hidden = false;
  filter();

  // Words beside the pointer, taken from the title of each point; methods are switched in the legend.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.appendChild(tip);

  function point(event) {
    const mark = event.target instanceof Element ? event.target.closest(".point") : null;
    tip.hidden = !mark;
    if (!mark) { return; }
    const title = mark.querySelector("title");
    if (title) {
      // Two boxes of words would cover each other.
      mark.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    tip.textContent = mark.getAttribute("aria-label");
    const place = mark.getBoundingClientRect();
    const below = place.bottom + tip.offsetHeight + 12 < innerHeight;
    tip.style.left = Math.max(4, Math.min(place.right + 6, innerWidth - tip.offsetWidth - 4)) + "px";
    tip.style.top = (below ? place.bottom + 6 : Math.max(4, place.top - tip.offsetHeight - 6)) + "px";
  }
  ["pointerover", "focusin"].forEach((name) => document.addEventListener(name, point));
  document.addEventListener("scroll", function () { tip.hidden = true; }, { passive: true });

  document.querySelectorAll(".legend [data-method]").forEach(function (entry) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(...entry.childNodes);
    entry.appendChild(button);
    button.addEventListener("click", function () {
      const off = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!off));
      document.querySelectorAll('.chart [data-method="' + entry.dataset.method + '"]').forEach(function (part) {
        part.classList.toggle("off", off);
      });
    });
  });

  function open() {
    const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  }
  window.addEventListener("hashchange", open);
  open();
  document.documentElement.dataset.ready = "yes";
}());
