// Read-outs, hiding, sorting, filtering. The page says everything without them.
"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (tag, text = "", name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });
  const curves = JSON.parse(document.getElementById("curves").textContent);
  const off = new Set();
  root.classList.add("scripted");

  // The chosen theme is kept where the browser lets a file keep anything.
  const kept = { get: () => { try { return localStorage.getItem("paperlab-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("paperlab-theme", value); } catch { /* it lasts as long as the page */ } } };
  for (const input of all(".theme input")) {
    if (input.value === kept.get()) input.checked = true;
    input.addEventListener("change", () => kept.set(input.value));
  }

  // What a link leads to is unfolded.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();

  // Hiding a run hides it in every chart; pointing at it dims the others.
  const lines = (key) => all(`.plot g[data-key="${key}"]`);
  const show = (key, visible) => {
    visible ? off.delete(key) : off.add(key);
    for (const line of lines(key)) line.classList.toggle("off", !visible);
  };
  const light = (key, lit) => {
    for (const line of lines(key)) {
      line.classList.toggle("lit", lit);
      line.closest(".plot").classList.toggle("some", lit);
    }
  };
  for (const box of all("[data-toggles]")) {
    const key = box.dataset.toggles;
    box.addEventListener("change", () => show(key, box.checked));
    const label = box.closest("label");
    label.addEventListener("pointerenter", () => light(key, true));
    label.addEventListener("pointerleave", () => light(key, false));
  }

  // Sorting, by a button in every header.
  for (const header of all("th[data-sort]")) {
    const button = make("button", header.textContent);
    button.type = "button";
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const place = [...header.parentElement.children].indexOf(header);
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = header.closest("table").tBodies[0];
      const value = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // what is not known stays below
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  }

  // A filter over many runs.
  for (const table of all("table.runs")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 8) continue;
    const label = make("label", "Only runs with", "filter");
    const input = make("input");
    input.type = "search";
    label.append(input);
    const place = make("div", "", "filter");
    place.append(label);
    table.closest(".scroll").before(place);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = row.textContent.toLowerCase(), key = row.querySelector("a").hash.slice(1);
        row.hidden = !words.every((word) => text.includes(word));
        const box = document.querySelector(`[data-toggles="${key}"]`);
        show(key, !row.hidden && (!box || box.checked));
        document.getElementById(key).hidden = row.hidden;
      }
    });
  }

  // The read-out of a chart: a line at a step, and every visible curve's nearest point.
  const most = 10;
  const spell = (value) => value === null ? "no number" : Math.abs(value) >= 1e6 || (value && Math.abs(value) < 1e-4)
    ? value.toExponential(3) : String(+value.toPrecision(5));
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const half = (low + high) >> 1; xs[half] < x ? (low = half) : (high = half); }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  for (const figure of all("figure[data-chart]")) {
    const plot = figure.querySelector(".plot"), data = curves[figure.dataset.chart];
    if (!data) continue;
    const [low, high, log] = figure.dataset.x.split(" ").map(Number);
    const to = (x) => log ? Math.log10(x / low) / Math.log10(high / low) : (x - low) / (high - low);
    const from = (share) => log ? low * (high / low) ** share : low + share * (high - low);
    const cursor = make("div", "", "cursor"), reading = make("div", "", "reading");
    const spoken = make("div", "", "hidden");
    spoken.setAttribute("role", "status");
    figure.append(spoken);
    const xs = [...new Set(Object.values(data).flatMap(([steps]) => steps))].sort((a, b) => a - b);
    let at = xs.length - 1;
    const read = (place, aloud) => {
      at = place;
      const x = xs[at], share = to(x), keys = Object.keys(data).filter((key) => !off.has(key));
      cursor.style.left = `${share * 100}%`;
      const head = make("p", `${figure.querySelector(".x-label").textContent} ${x}`, "step");
      const said = keys.map((key) => {
        const [steps, values] = data[key], i = nearest(steps, x);
        const line = plot.querySelector(`g[data-key="${key}"]`);
        return { name: line.dataset.name, ink: line.classList[0], value: values[i], far: Math.abs(to(steps[i]) - share) };
      }).filter((item) => item.far < 0.03);
      const rows = said.slice(0, most).map((item) => {
        const row = make("p"), name = make("span");
        name.append(make("span", "", `swatch ${item.ink}`), item.name);
        row.append(name, make("span", spell(item.value)));
        return row;
      });
      reading.replaceChildren(head, ...rows);
      if (said.length > most) reading.append(make("p", `and ${said.length - most} more`, "step"));
      reading.style.left = share < 0.5 ? `calc(${share * 100}% + 8px)` : "auto";
      reading.style.right = share < 0.5 ? "auto" : `calc(${(1 - share) * 100}% + 8px)`;
      plot.append(cursor, reading);
      if (aloud) spoken.textContent = [head.textContent, ...said.slice(0, most).map((s) => `${s.name} ${spell(s.value)}`)].join(", ");
    };
    const leave = () => { cursor.remove(); reading.remove(); };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      read(nearest(xs, from(Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1))), false);
    });
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("blur", leave);
    plot.addEventListener("keydown", (event) => {
      const jump = event.shiftKey ? Math.max(Math.round(xs.length / 20), 1) : 1;
      const moves = { ArrowLeft: at - jump, ArrowRight: at + jump, Home: 0, End: xs.length - 1 };
      if (event.key === "Escape") leave();
      if (!(event.key in moves)) return;
      event.preventDefault();
      read(Math.min(Math.max(moves[event.key], 0), xs.length - 1), true);
    });
  }
})();
