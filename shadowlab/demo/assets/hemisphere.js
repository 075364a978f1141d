// The dome from above: right is phi = 0, up is behind the object (phi = 90); the rim is theta = 45.
const RIM = 100, MOST_THETA = 45;
const svg = () => element.querySelector("svg");
let shown = { ...props.value };

function move(theta, phi) {
  theta = Math.round(Math.min(Math.max(theta, 0), MOST_THETA) * 2) / 2;
  phi = Math.round(((phi % 360) + 360) % 360) % 360;
  if (theta === shown.theta && phi === shown.phi) return;
  shown = { ...shown, theta, phi };
  if (!due) requestAnimationFrame(tell);
  due = true;
}

let due = false;
function tell() {
  due = false;
  props.value = shown;
  trigger("input");
}

function follow(event) {
  const box = svg().getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * 240 - 120;
  const y = 120 - ((event.clientY - box.top) / box.height) * 240;
  const radius = Math.hypot(x, y);
  move((radius / RIM) * MOST_THETA, radius < 1 ? shown.phi : (Math.atan2(y, x) * 180) / Math.PI);
}

let held = false;
element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest("svg")) return;
  held = true;
  try { element.setPointerCapture(event.pointerId); } catch (unknown) { /* a pointer made by a script */ }
  follow(event);
  event.preventDefault();
});
element.addEventListener("pointermove", (event) => { if (held) follow(event); });
for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => { held = false; });
element.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, 5], ArrowRight: [0, -5], ArrowUp: [2.5, 0], ArrowDown: [-2.5, 0] }[event.key];
  if (step === undefined) return;
  move(shown.theta + step[0], shown.phi + step[1]);
  event.preventDefault();
});
watch("value", () => { shown = { ...shown, ...props.value }; });
