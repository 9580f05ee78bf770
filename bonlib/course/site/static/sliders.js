// Draws what bonlib computed; no mathematics happens here.
(() => {
  "use strict";
  const presets = JSON.parse(document.getElementById("frames").textContent);
  const root = document.getElementById("explorer");
  const at = {}; // family to the place of its slider
  const hidden = new Set(["Poisson n", "stopping", "pessimism", "WIND", "InfAlign"]); // families that are not drawn

  function html(name, attributes = {}, text = "") {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    return node;
  }

  function svg(parent, name, attributes = {}, text = "") {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    parent.append(node);
    return node;
  }

  const knobs = html("div", { class: "knobs" });
  const choice = html("select", { id: "outcomes" });
  for (const name of Object.keys(presets)) choice.append(html("option", {}, name));
  choice.value = "three outcomes";
  knobs.append(html("label", { for: "outcomes" }, "outcomes"), html("span"), choice, html("span"));
  const first = Object.values(presets)[0].families;
  for (const [family, { symbol, start, rows }] of Object.entries(first)) {
    at[family] = start;
    const id = `knob-${symbol}`;
    const slider = html("input", { type: "range", id, min: 0, max: rows.length - 1, value: start });
    const setting = html("output", { for: id });
    const box = html("input", { type: "checkbox" });
    box.checked = !hidden.has(family);
    box.addEventListener("change", () => { if (box.checked) hidden.delete(family); else hidden.add(family); draw(); });
    const shown = html("label");
    shown.append(box, ` ${family}`);
    slider.addEventListener("input", () => { at[family] = Number(slider.value); draw(); });
    knobs.append(shown, html("label", { for: id }, symbol), slider, setting);
  }
  choice.addEventListener("change", draw);
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "0 0 860 330");
  picture.setAttribute("role", "img");
  const table = html("table", { class: "readout" });
  root.append(knobs, picture, table);

  // One set of axes: a box of pixels, limits, ticks and labels; returns how numbers become pixels.
  function axes(box, limits, ticks, labels) {
    const x = value => box.left + (value - limits.x[0]) / (limits.x[1] - limits.x[0]) * box.width;
    const y = value => box.top + box.height - (value - limits.y[0]) / (limits.y[1] - limits.y[0]) * box.height;
    const bottom = box.top + box.height;
    svg(picture, "path", { d: `M${box.left},${box.top}V${bottom}H${box.left + box.width}`, fill: "none", stroke: "#222" });
    for (const [value, text] of ticks.x) svg(picture, "text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, text);
    for (const [value, text] of ticks.y) svg(picture, "text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, text);
    svg(picture, "text", { x: box.left + box.width / 2, y: bottom + 38, "text-anchor": "middle" }, labels.x);
    const middle = box.top + box.height / 2;
    svg(picture, "text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(${box.left - 38},${middle})rotate(-90)` }, labels.y);
    return { x, y };
  }

  const tens = (top, step) => Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => [i * step, (i * step).toFixed(1)]);

  function draw() {
    const { reference, families } = presets[choice.value];
    const names = Object.keys(families).filter(name => !hidden.has(name));
    const policies = names.map(name => families[name].policies[at[name]]);
    picture.replaceChildren();

    const top = Math.min(1, 1.08 * Math.max(...reference, ...policies.flat()));
    const count = reference.length;
    const bars = axes({ left: 56, top: 30, width: 340, height: 240 }, { x: [0.4, count + 0.6], y: [0, top] },
      { x: reference.map((_, i) => [i + 1, count < 12 || i % 5 === 4 ? i + 1 : ""]), y: tens(top, top > 0.5 ? 0.2 : 0.1) },
      { x: "outcome, from the worst to the best", y: "probability" });
    const bar = (left, width, height, fill) => svg(picture, "rect",
      { x: bars.x(left), y: bars.y(height), width: bars.x(left + width) - bars.x(left), height: bars.y(0) - bars.y(height), fill });
    reference.forEach((value, i) => bar(i + 0.55, 0.9, value, "#d4d4d4"));
    const width = 0.8 / Math.max(names.length, 1);
    policies.forEach((policy, k) => policy.forEach((value, i) => bar(i + 0.6 + k * width, width * 0.9, value, families[names[k]].colour)));

    const furthest = 1.05 * Math.max(0.5, ...names.map(name => Math.max(...families[name].curve[0])));
    const plot = axes({ left: 490, top: 30, width: 350, height: 240 }, { x: [-0.02 * furthest, furthest], y: [0.49, 1] },
      { x: tens(furthest, furthest > 2 ? 1 : furthest > 1 ? 0.5 : 0.2), y: [0.5, 0.6, 0.7, 0.8, 0.9, 1].map(v => [v, v.toFixed(1)]) },
      { x: "KL to the reference (nats)", y: "win rate against the reference" });
    for (const name of names) {
      const [kl, wins] = families[name].curve;
      const d = kl.map((value, i) => `${i ? "L" : "M"}${plot.x(value).toFixed(1)},${plot.y(wins[i]).toFixed(1)}`).join("");
      svg(picture, "path", { d, fill: "none", stroke: families[name].colour, "stroke-width": 2.5 });
    }
    names.forEach((name, k) => {
      const row = families[name].rows[at[name]];
      svg(picture, "circle", { cx: plot.x(row.kl), cy: plot.y(row.win_rate), r: Math.max(8 - 1.5 * k, 4), fill: families[name].colour, stroke: "white" });
      svg(picture, "rect", { x: 165 + 115 * k, y: 4, width: 12, height: 12, fill: families[name].colour });
      svg(picture, "text", { x: 183 + 115 * k, y: 15 }, name);
    });
    svg(picture, "rect", { x: 60, y: 4, width: 12, height: 12, fill: "#d4d4d4" });
    svg(picture, "text", { x: 78, y: 15 }, "reference");

    const head = html("tr");
    head.append(...["policy", "knob", "KL (nats)", "win rate", "mean reward", "draws"].map(text => html("th", {}, text)));
    table.replaceChildren(head);
    for (const [name, { symbol, rows }] of Object.entries(families)) {
      document.querySelector(`output[for="knob-${symbol}"]`).textContent = rows[at[name]].setting;
    }
    for (const name of names) {
      const row = families[name].rows[at[name]];
      const line = html("tr");
      const cells = [name, row.setting, row.kl.toFixed(3), row.win_rate.toFixed(3), row.reward.toFixed(3), row.draws];
      line.append(...cells.map(text => html("td", {}, text)));
      table.append(line);
    }
    picture.setAttribute("aria-label", "Bars of each policy's probabilities, and win rate against KL; the table below has the numbers");
  }
  draw();
})();
