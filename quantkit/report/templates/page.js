"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, text = "", name = "") => {
    const element = document.createElement(tag);
    element.textContent = text; // never markup: some texts are a model's answers
    element.className = name;
    return element;
  };

  // dark or light, whatever the system says
  const system = matchMedia("(prefers-color-scheme: dark)");
  for (const button of all(".theme")) {
    const show = () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
      button.setAttribute("aria-pressed", String(dark));
      return dark;
    };
    button.addEventListener("click", () => {
      root.dataset.theme = show() ? "light" : "dark";
      show();
    });
    system.addEventListener("change", show);
    show();
    button.hidden = false;
  }

  // sorting: up, down, as it was; what has no number comes last
  const value = (row, column, kind) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return kind === "number" ? (text === "" || isNaN(text) ? null : Number(text)) : text;
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  const sort = (table, head, kind, direction) => {
    const body = table.tBodies[0];
    const order = (row) => Number(row.dataset.order);
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [one, other].map((row) => value(row, head.cellIndex, kind));
      if (!direction || a === b) return order(one) - order(other);
      if (a === null || b === null) return a === null ? 1 : -1;
      return direction * compare(a, b);
    });
    body.append(...rows);
    for (const th of all("th[aria-sort]", table.tHead)) th.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", { 1: "ascending", [-1]: "descending", 0: "none" }[direction]);
  };
  for (const table of all("table[data-sortable]")) {
    [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.order = place; });
    for (const head of all("th[data-sort]", table.tHead)) {
      const button = make("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const next = { none: 1, ascending: -1, descending: 0 }[head.getAttribute("aria-sort")];
        sort(table, head, head.dataset.sort, next);
      });
    }
  }

  // what is shown: levels, one task, hits or log-probabilities
  const apply = () => {
    const off = new Set(all("input[name=level]:not(:checked)").map((box) => box.value));
    for (const element of all("[data-level]")) element.hidden = off.has(element.dataset.level);
    const task = document.querySelector("select[name=task]")?.value;
    for (const box of all(".heatbox")) box.hidden = task !== undefined && box.dataset.task !== task;
    root.dataset.view = document.querySelector("input[name=view]:checked")?.value ?? "hits";
  };
  for (const control of all("fieldset:has([name=level], [name=view]), .choice")) {
    control.hidden = false;
    control.addEventListener("change", apply);
  }
  apply();

  // a heatmap's cells: arrow keys go through them, their questions are shown below
  const heads = ["key", "depth", "expected", "answer", "outcome", "log-prob.", "rank", "margin"];
  const questions = (rows) => {
    const table = make("table");
    const row = table.createTHead().insertRow();
    for (const text of heads) {
      const head = row.appendChild(make("th", text));
      head.scope = "col";
    }
    const body = table.createTBody();
    for (const texts of rows) {
      const line = body.insertRow();
      texts.forEach((text, column) => {
        const name = { 3: "answer", 4: text.split(/\W/)[0] }[column] ?? "";
        line.append(make("td", text, name));
      });
    }
    return table;
  };
  const hint = "Point at a cell, or walk through the cells with the arrow keys, to see its questions.";
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const enliven = (table, words) => {
    const panel = document.getElementById(`${table.id}-questions`);
    const rows = [...table.tBodies[0].rows].map((row) => all("td", row));
    let chosen = null; // by focus
    let current = null;
    const show = (cell) => {
      current = cell;
      for (const other of all(".chosen", table)) other.classList.remove("chosen");
      cell.classList.add("chosen");
      const found = words[cell.dataset.cell];
      const title = make("p");
      title.append(make("strong", found?.title ?? cell.ariaLabel), ` ${found?.summary ?? ""}`);
      panel.replaceChildren(title, ...(found ? [questions(found.rows)] : []));
      panel.classList.add("open");
      panel.scrollTop = 0;
    };
    table.setAttribute("role", "grid");
    for (const cell of rows.flat()) {
      cell.tabIndex = -1;
      cell.setAttribute("aria-details", panel.id);
    }
    rows[0][0].tabIndex = 0;
    table.addEventListener("focusin", ({ target }) => {
      for (const cell of rows.flat()) cell.tabIndex = cell === target ? 0 : -1;
      chosen = target;
      show(chosen);
    });
    // a move, not a mere pointerover: the page also scrolls under a pointer that rests
    table.addEventListener("pointermove", ({ target }) => {
      const cell = target.closest("td");
      if (cell && cell !== current) show(cell);
    });
    // what was pointed at last stays, so that its questions can be read and scrolled
    table.addEventListener("pointerleave", () => chosen && show(chosen));
    table.addEventListener("keydown", (event) => {
      const row = rows.findIndex((cells) => cells.includes(event.target));
      const column = rows[row].indexOf(event.target);
      const last = rows[row].length - 1;
      const place = {
        Home: [event.ctrlKey ? 0 : row, 0],
        End: [event.ctrlKey ? rows.length - 1 : row, last],
      }[event.key] ?? (steps[event.key] && [row + steps[event.key][0], column + steps[event.key][1]]);
      if (!place) return;
      event.preventDefault();
      rows[place[0]]?.[place[1]]?.focus();
    });
    panel.append(make("span", hint, "soft"));
    panel.hidden = false;
  };
  const data = document.getElementById("page-data");
  const maps = data ? JSON.parse(data.textContent).maps : {};
  for (const table of all(".heat")) enliven(table, maps[table.id]);
})();
