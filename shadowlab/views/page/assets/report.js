"use strict";

// Data blocks are JSON inside the page; nothing is fetched.
function block(id) {
  const element = document.getElementById(id);
  return element && JSON.parse(element.textContent);
}

function shown(value) {
  if (typeof value === "string") return value; // NaN and Inf come as words
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

// --- curves: the values at the step nearest to the pointer, or walked to with the arrow keys

function readCurve(plot, data) {
  const svg = plot.querySelector("svg"), cursor = plot.querySelector(".cursor"), output = plot.querySelector("output");
  const steps = [...new Set(data.series.flatMap((one) => one.steps))].sort((a, b) => a - b);
  const [low, high, left, right] = data.x;
  let at = -1;

  function show(index) {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[at], x = left + ((step - low) / (high - low)) * (right - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const values = data.series.map((one) => [one.name, one.values[one.steps.indexOf(step)]]).filter(([, value]) => value !== undefined);
    output.textContent = `step ${step}: ` + values.map(([name, value]) => `${name} ${shown(value)}`).join(", ");
  }

  function nearest(step) {
    let best = 0;
    steps.forEach((one, index) => { if (Math.abs(one - step) < Math.abs(steps[best] - step)) best = index; });
    return best;
  }

  plot.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    show(nearest(low + ((x - left) / (right - left)) * (high - low)));
  });
  plot.addEventListener("focus", () => show(at < 0 ? steps.length - 1 : at));
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
    if (event.key in moves && !event.ctrlKey && !event.metaKey && !event.altKey) {
      show(moves[event.key]);
      event.preventDefault();
    }
  });
}

const curveData = block("curve-data");
if (curveData) document.querySelectorAll(".plot").forEach((plot) => readCurve(plot, curveData[plot.dataset.key]));

// --- heat map

const NAN = 1, INF = 2, MINUS_INF = 3, ZERO = 4, FIRST = 16, LAST = 65535; // codes, as heat_map.py writes them
const STOPS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
const BAD = [255, 45, 149, 255], NOTHING = [139, 147, 160, 255], ABSENT = [0, 0, 0, 0];

function colour(share) {
  const place = Math.max(0, Math.min(1, share)) * (STOPS.length - 1), index = Math.min(STOPS.length - 2, Math.floor(place));
  return [...STOPS[index].map((low, i) => Math.round(low + (STOPS[index + 1][i] - low) * (place - index))), 255];
}

function heatMap(data) {
  const [canvas, field, cursor, tip] = ["heat-map", "heat-field", "heat-cursor", "heat-tip"].map((id) => document.getElementById(id));
  const [output, blocks, stepRow, scale, ticks] = ["heat-value", "heat-blocks", "heat-steps", "heat-scale", "heat-ticks"].map((id) => document.getElementById(id));
  const rows = data.layers.length, columns = data.columns.length;
  const codes = data.maps.map((map) => {
    const bytes = Uint8Array.from(atob(map.codes), (letter) => letter.charCodeAt(0)), view = new DataView(bytes.buffer);
    return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  });
  const palette = Array.from({ length: 256 }, (_, i) => colour(i / 255));
  const cell = { row: 0, column: 0 };
  let which = 0;

  function share(code) {
    const along = (code - FIRST) / (LAST - FIRST);
    return data.maps[which].reversed ? 1 - along : along;
  }

  function painted(code) {
    if (code >= FIRST) return palette[Math.round(share(code) * 255)];
    if (code === 0) return ABSENT;
    return code === ZERO || (code === INF && data.maps[which].reversed) ? NOTHING : BAD;
  }

  function inWords(code) {
    const map = data.maps[which];
    if (code === 0) return "not measured";
    if (map.reversed && code < FIRST) return { [NAN]: "a NaN is in it", [INF]: "all zero", [MINUS_INF]: "an Inf is in it" }[code];
    if (code < FIRST) return { [NAN]: "NaN", [INF]: "Inf", [MINUS_INF]: "-Inf", [ZERO]: "0" }[code];
    return valueAt((code - FIRST) / (LAST - FIRST));
  }

  function valueAt(along) {
    const map = data.maps[which], value = map.low + along * (map.high - map.low);
    const digits = Number((map.log ? 2 ** value : value).toPrecision(3)); // what 16 bits are good for
    return shown(digits) + (map.unit ? ` ${map.unit}` : "");
  }

  const rowHeight = () => Math.max(2, Math.min(18, 640 / rows));

  function draw() {
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = rows;
    const image = new ImageData(columns, rows);
    codes[which].forEach((code, i) => image.data.set(painted(code), 4 * i));
    small.getContext("2d").putImageData(image, 0, 0);
    const ratio = window.devicePixelRatio || 1, height = Math.round(rows * rowHeight());
    canvas.style.height = `${height}px`;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "rgba(255, 255, 255, 0.55)";
    data.blocks.slice(1).forEach(([, row]) => context.fillRect(0, Math.round((row / rows) * canvas.height), canvas.width, Math.max(1, ratio / 2)));
    legend();
    gutter(height);
  }

  function legend() {
    const context = scale.getContext("2d"), image = new ImageData(256, 1);
    palette.forEach((one, i) => image.data.set(one, 4 * i));
    context.putImageData(image, 0, 0);
    const map = data.maps[which], ends = [0, 0.25, 0.5, 0.75, 1].map((along) => valueAt(map.reversed ? 1 - along : along));
    ticks.replaceChildren(...(map.low === map.high ? ends.slice(0, 1) : ends).map((text) => {
      const tick = document.createElement("span");
      tick.textContent = text;
      return tick;
    }));
    canvas.setAttribute("aria-label", `${map.title} of ${rows} layers over ${columns} columns of steps`);
  }

  function gutter(height) {
    blocks.replaceChildren();
    let free = -1;
    data.blocks.forEach(([name, row, count]) => {
      const top = (row / rows) * height, bracket = document.createElement("i");
      bracket.style.top = `${top + 1}px`;
      bracket.style.height = `${Math.max(2, (count / rows) * height - 2)}px`;
      blocks.append(bracket);
      const middle = top + ((count / rows) * height) / 2 - 6;
      if (middle < free) return;
      const label = document.createElement("span");
      label.textContent = name;
      label.style.top = `${middle}px`;
      blocks.append(label);
      free = middle + 12;
    });
    stepRow.replaceChildren();
    const wanted = Math.min(columns, Math.max(2, Math.floor(canvas.clientWidth / 110)));
    for (let i = 0; i < wanted; i++) {
      const column = wanted === 1 ? 0 : Math.round((i * (columns - 1)) / (wanted - 1)), label = document.createElement("span");
      label.textContent = (i === 0 ? "step " : "") + data.columns[column][0];
      label.style.left = `${((column + 0.5) / columns) * 100}%`;
      stepRow.append(label);
    }
  }

  function show(row, column, pointer) {
    cell.row = Math.max(0, Math.min(rows - 1, row));
    cell.column = Math.max(0, Math.min(columns - 1, column));
    const [first, last] = data.columns[cell.column], map = data.maps[which];
    const steps = first === last ? `step ${first}` : `steps ${first} to ${last}`;
    const value = inWords(codes[which][cell.row * columns + cell.column]);
    output.textContent = `${data.layers[cell.row]}, ${steps}: ${map.title.toLowerCase()} ${value}`;
    const width = canvas.clientWidth / columns, height = canvas.clientHeight / rows;
    cursor.hidden = false;
    cursor.style.left = `${1 + cell.column * width}px`;
    cursor.style.top = `${1 + cell.row * height}px`;
    cursor.style.width = `${Math.max(2, width)}px`;
    cursor.style.height = `${Math.max(2, height)}px`;
    tip.hidden = false;
    tip.textContent = `${data.layers[cell.row]}\n${steps}: ${value}`;
    const x = pointer ? pointer.x : (cell.column + 0.5) * width, y = pointer ? pointer.y : (cell.row + 0.5) * height;
    tip.style.left = `${Math.max(0, Math.min(x + 14, field.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${y + 18 + tip.offsetHeight > field.clientHeight ? y - 12 - tip.offsetHeight : y + 18}px`;
  }

  function hide() {
    tip.hidden = true;
    if (document.activeElement !== canvas) cursor.hidden = true;
  }

  function nextBlock(direction) {
    const own = data.blocks.findLastIndex(([, row]) => row <= cell.row);
    return data.blocks[Math.max(0, Math.min(data.blocks.length - 1, own + direction))][1];
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    show(Math.floor((y / box.height) * rows), Math.floor((x / box.width) * columns), { x, y });
  });
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("blur", () => { tip.hidden = cursor.hidden = true; });
  canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) show(cell.row, cell.column); });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowUp: [cell.row - 1, cell.column], ArrowDown: [cell.row + 1, cell.column],
      ArrowLeft: [cell.row, cell.column - 1], ArrowRight: [cell.row, cell.column + 1],
      Home: [cell.row, 0], End: [cell.row, columns - 1],
      PageUp: [nextBlock(-1), cell.column], PageDown: [nextBlock(1), cell.column],
    };
    if (event.key in moves) {
      show(...moves[event.key]);
      event.preventDefault();
    } else if (event.key === "Escape") hide();
  });
  document.querySelectorAll('input[name="statistic"]').forEach((input) => input.addEventListener("change", () => {
    which = Number(input.value);
    draw();
    if (!cursor.hidden) show(cell.row, cell.column);
  }));
  let waiting = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); });
  draw();
}

const heatData = block("heat-data");
if (heatData) heatMap(heatData);

// --- pictures: opened and closed by their links alone; here what links cannot do

const opened = () => document.querySelector(".picture:target");

function closePicture(figure) {
  location.hash = figure.querySelector(".close").hash;
}

let last = null; // the picture that was open

function focusPicture() {
  const figure = opened();
  if (figure) figure.querySelector(".close").focus();
  else if (last) last.querySelector(".open").focus();
  last = figure;
}

document.querySelectorAll(".picture .open").forEach((link) => link.addEventListener("click", (event) => {
  const figure = opened();
  if (!figure) return;
  event.preventDefault();
  closePicture(figure);
}));
document.addEventListener("keydown", (event) => {
  const figure = opened();
  if (!figure) return;
  if (event.key === "Escape") closePicture(figure);
  if (event.key === "Tab") { // what lies behind is not seen
    const own = [figure.querySelector(".close"), figure.querySelector(".open")];
    own[document.activeElement === own[0] ? 1 : 0].focus();
    event.preventDefault();
  }
});
window.addEventListener("hashchange", focusPicture);
focusPicture();

// A printed page has no closed sections.
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
