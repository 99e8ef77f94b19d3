/* The page's pictures as inline SVG, in the colours of all reports (planner/report/style.css). */
"use strict";

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const LEFT = 64, RIGHT = 12, LEGEND_LINE = 18;
/** Colours of stacked parts. */
const PARTS = ["series-1", "series-2", "series-3", "series-4", "series-5", "series-6", "dense"];

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/** An empty picture in place of the last one, as wide as the page allows, so that letters keep their size; the names
 * of the series stand above it, in as many lines as they need.
 *
 * @param inner height below the legend.
 * @returns the picture, its width, its height, and where it begins below the legend.
 */
function canvas(id, title, entries, inner) {
  const width = byId(id).clientWidth || 520, svg = document.createElementNS(SVG, "svg");
  byId(id).replaceChildren(svg);
  let x = LEFT, line = 0;
  for (const [name, colour] of entries) {
    const box = draw(svg, "rect", { width: 12, height: 12, fill: `var(--${colour})` });
    const label = draw(svg, "text", {}, name);
    const wide = 17 + label.getComputedTextLength();
    if (x > LEFT && x + wide > width - RIGHT) [x, line] = [LEFT, line + 1];
    for (const [part, shift, drop] of [[box, 0, 5], [label, 17, 15.5]]) {
      part.setAttribute("x", x + shift);
      part.setAttribute("y", line * LEGEND_LINE + drop);
    }
    x += wide + 16;
  }
  const top = (line + 1) * LEGEND_LINE + 10, height = top + inner;
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title })) {
    svg.setAttribute(name, value);
  }
  return { svg, width, height, top };
}

/** Round numbers from 0 to at least `most`. */
function ticks(most) {
  const rough = (most || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  return Array.from({ length: Math.ceil((most || 1) / step - 1e-9) + 1 }, (_, i) => i * step);
}

/** Values layer by layer: the first series as bars, the others as steps over them. */
function staircase(id, title, series, format) {
  const entries = series.map(({ name, colour }, number) => [name, number ? colour : "pale"]);
  const { svg, width, height, top } = canvas(id, title, entries, 222), bottom = 40;
  const layers = series[0].values.length, marks = ticks(Math.max(...series.flatMap((one) => one.values)));
  const x = (layer) => LEFT + (width - LEFT - RIGHT) * layer / layers;
  const y = (value) => height - bottom - (height - top - bottom) * value / marks.at(-1);
  for (const mark of marks) {
    draw(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark), stroke: "var(--grid)" });
    draw(svg, "text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, format(mark));
  }
  series.forEach(({ values, colour }, number) => {
    const steps = values.map((value, layer) => `H${x(layer)}V${y(value)}H${x(layer + 1)}`).join("");
    const outline = `M${LEFT} ${y(values[0])}${steps}`, dashed = number > 1 ? { "stroke-dasharray": "6 3" } : {};
    if (!number) draw(svg, "path", { d: `${outline}V${y(0)}H${LEFT}Z`, fill: "var(--pale)" });
    else draw(svg, "path", { d: outline, fill: "none", stroke: `var(--${colour})`, "stroke-width": 2.5, ...dashed });
  });
  const every = Math.ceil(layers / 10), middle = (LEFT + width - RIGHT) / 2;
  for (let layer = 0; layer < layers; layer += every) {
    draw(svg, "text", { x: (x(layer) + x(layer + 1)) / 2, y: height - bottom + 16, "text-anchor": "middle" }, layer);
  }
  draw(svg, "text", { x: middle, y: height - 6, "text-anchor": "middle" }, "decoder layer");
}

/** Horizontal bars of stacked parts; `limit` is a marked value. */
function stacked(id, title, rows, format, limit) {
  // A part that is nowhere keeps its colour, so that others have the same in every picture.
  const parts = Object.keys(rows[0].parts).map((name, colour) => [name, PARTS[colour]]);
  const entries = parts.filter(([name]) => rows.some((row) => row.parts[name]));
  if (limit) entries.push([limit.name, "mark"]);
  const bar = 30, { svg, width, height, top } = canvas(id, title, entries, rows.length * bar + 26);
  const total = (row) => Object.values(row.parts).reduce((sum, one) => sum + one, 0);
  const marks = ticks(Math.max(...rows.map(total), limit ? limit.value : 0));
  const x = (value) => LEFT + (width - LEFT - 40) * value / marks.at(-1);
  for (const mark of marks) {
    draw(svg, "line", { x1: x(mark), x2: x(mark), y1: top, y2: height - 24, stroke: "var(--grid)" });
    draw(svg, "text", { x: x(mark), y: height - 8, "text-anchor": "middle" }, format(mark));
  }
  rows.forEach((row, number) => {
    let at = 0;
    const y = top + number * bar + 5;
    draw(svg, "text", { x: LEFT - 6, y: y + 14, "text-anchor": "end" }, row.name);
    for (const [name, colour] of parts) {
      const value = row.parts[name];
      const part = draw(svg, "rect", {
        x: x(at), y, width: Math.max(0, x(at + value) - x(at)), height: bar - 10, fill: `var(--${colour})`,
      });
      draw(part, "title", {}, `${row.name}, ${name}: ${format(value)}`);
      at += value;
    }
  });
  if (limit) {
    const line = { x1: x(limit.value), x2: x(limit.value), y1: top - 4, y2: height - 24 };
    draw(svg, "line", { ...line, stroke: "var(--mark)", "stroke-width": 2, "stroke-dasharray": "5 3" });
  }
}
