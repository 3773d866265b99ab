"use strict";
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const STEP = 12; // pairs shown at a time: a phone should reach the sections below
  const STOPS = 200; // positions of a range control
  const get = (id) => document.getElementById(id);
  const [search, number, low, high, sort, count, more, list] =
    ["search", "number", "low", "high", "sort", "count", "more", "cards"].map(get);
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const pairs = [...list.children].map((element, place) => ({
    element,
    place,
    source: element.dataset.source,
    medium: element.dataset.medium,
    numbers: new Map(Object.entries(JSON.parse(element.dataset.numbers))),
    text: [...element.querySelectorAll(".prompt, .answer, .id, q")].map((part) => part.textContent).join("\n").toLowerCase(),
  }));
  let room = STEP;
  let bounds = [0, 0];

  const names = [...new Set(pairs.flatMap((pair) => [...pair.numbers.keys()]))];
  const rank = (name) => (name === "gap" ? 0 : name.endsWith("(score)") ? 1 : 2);
  names.sort((a, b) => rank(a) - rank(b));
  for (const name of names) number.append(new Option(name, name));

  const at = (control) => bounds[0] + ((bounds[1] - bounds[0]) * Number(control.value)) / STOPS;
  const short = (value) => String(Number(value.toPrecision(3)));

  function setBounds() {
    const values = pairs.map((pair) => pair.numbers.get(number.value)).filter((value) => value !== undefined);
    bounds = values.length ? [Math.min(...values), Math.max(...values)] : [0, 0];
    for (const control of [low, high]) {
      control.min = "0";
      control.max = String(STOPS);
      control.step = "1";
      control.disabled = bounds[0] === bounds[1];
    }
    low.value = "0";
    high.value = String(STOPS);
  }

  function matches(pair, words, left) {
    if (left.source.has(pair.source) || left.medium.has(pair.medium) || !words.every((word) => pair.text.includes(word))) return false;
    if (low.value === "0" && high.value === String(STOPS)) return true;
    const value = pair.numbers.get(number.value);
    const slack = 1e-9 * (bounds[1] - bounds[0]);
    return value !== undefined && value >= at(low) - slack && value <= at(high) + slack;
  }

  function inOrder(found) {
    const value = (pair) => pair.numbers.get(number.value);
    const known = (sign) => (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || a.place - b.place;
      return sign * (x - y) || a.place - b.place;
    };
    if (sort.value === "down") return found.sort(known(-1));
    if (sort.value === "up") return found.sort(known(1));
    if (sort.value === "source") return found.sort((a, b) => a.source.localeCompare(b.source) || a.place - b.place);
    return found;
  }

  function draw() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const off = (name) => new Set(boxes.filter((box) => box.name === name && !box.checked).map((box) => box.value));
    const left = { source: off("source"), medium: off("medium") };
    const found = inOrder(pairs.filter((pair) => matches(pair, words, left)));
    const shown = new Set(found.slice(0, room));
    for (const pair of pairs) pair.element.hidden = !shown.has(pair);
    for (const pair of shown) list.append(pair.element);
    for (const control of [low, high]) {
      get(`${control.id}-shown`).textContent = short(at(control));
      control.setAttribute("aria-valuetext", `${number.value} ${short(at(control))}`);
    }
    const kept = found.length === pairs.length ? `${pairs.length} pairs` : `${found.length} of ${pairs.length} pairs match`;
    count.textContent = found.length > shown.size ? `${kept}, the first ${shown.size} are shown` : kept;
    more.hidden = found.length <= shown.size;
    more.textContent = `Show ${Math.min(STEP, found.length - shown.size)} more`;
  }

  function redraw() {
    room = STEP;
    draw();
  }

  search.addEventListener("input", redraw);
  sort.addEventListener("change", redraw);
  for (const box of boxes) box.addEventListener("change", redraw);
  number.addEventListener("change", () => { setBounds(); redraw(); });
  low.addEventListener("input", () => { if (Number(low.value) > Number(high.value)) high.value = low.value; redraw(); });
  high.addEventListener("input", () => { if (Number(high.value) < Number(low.value)) low.value = high.value; redraw(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { setBounds(); redraw(); }));
  more.addEventListener("click", () => {
    const before = room;
    room += STEP;
    draw();
    const next = [...list.children].filter((element) => !element.hidden)[before];
    if (next) { next.tabIndex = -1; next.focus({ preventScroll: true }); }
  });

  setBounds();
  form.hidden = false;
  draw();
})();
