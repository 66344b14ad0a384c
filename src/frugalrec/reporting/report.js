(function () {
  "use strict";
  var root = document.documentElement;
  var toggle = document.getElementById("theme");
  function stored() { try { return localStorage.getItem("frugalrec-theme"); } catch (e) { return null; } }
  function dark() {
    var chosen = root.getAttribute("data-theme");
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function name() { toggle.textContent = dark() ? "Light" : "Dark"; }
  if (stored() === "dark" || stored() === "light") { root.setAttribute("data-theme", stored()); }
  toggle.hidden = false;
  name();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  toggle.addEventListener("click", function () {
    var theme = dark() ? "light" : "dark";
    root.setAttribute("data-theme", theme);
    try { localStorage.setItem("frugalrec-theme", theme); } catch (e) { /* private mode: not kept */ }
    name();
  });

  addEventListener("beforeprint", function () {
    document.querySelectorAll("details:not([open])").forEach(function (fold) {
      fold.open = true;
      fold.setAttribute("data-folded", "");
    });
  });
  addEventListener("afterprint", function () {
    document.querySelectorAll("details[data-folded]").forEach(function (fold) {
      fold.open = false;
      fold.removeAttribute("data-folded");
    });
  });

  function key(row, column) {
    var value = row.cells[column].getAttribute("data-sort");
    if (value === null) { return null; }
    var number = Number(value);
    return value === "" || isNaN(number) ? value : number;
  }
  function compare(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  }
  function sort(table, column, sign) {
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    rows.map(function (row, at) { return { row: row, at: at, key: key(row, column) }; })
      .sort(function (a, b) {
        if (a.key === null || b.key === null) { return (a.key === null) - (b.key === null) || a.at - b.at; }
        return sign * compare(a.key, b.key) || a.at - b.at;
      })
      .forEach(function (entry) { body.appendChild(entry.row); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () {
        var first = head.classList.contains("number") ? "descending" : "ascending";
        var now = head.getAttribute("aria-sort");
        var next = !now ? first : now === "ascending" ? "descending" : "ascending";
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", next);
        sort(table, column, next === "ascending" ? 1 : -1);
      });
    });
  });
})();
