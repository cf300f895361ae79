// A line and the numbers at the pointer, or at the arrow keys, over every figure.
const { axis, figures } = JSON.parse(document.getElementById("data").textContent);
const number = (v) =>
  v === null ? "not finite"
    : Math.abs(v) >= 1e4 || Number.isInteger(v) ? Math.round(v).toLocaleString("en")
    : String(Number(v.toPrecision(4)));

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

function watch(area, curves) {
  const mark = area.appendChild(document.createElement("div"));
  const box = area.appendChild(document.createElement("div"));
  mark.className = "mark";
  box.className = "box";
  const main = curves[0].steps;
  let at = main.length - 1;

  function show() {
    const step = main[at];
    const share = (step - axis[0]) / (axis[1] - axis[0]);
    mark.style.left = `${100 * share}%`;
    box.textContent = `step ${step.toLocaleString("en")}`;
    for (const curve of curves) {
      const index = nearest(curve.steps, step);
      const row = box.appendChild(document.createElement("div"));
      const other = curve.steps[index] === step ? "" : ` (step ${curve.steps[index].toLocaleString("en")})`;
      const spread = curve.lows ? ` (${number(curve.lows[index])} to ${number(curve.highs[index])})` : "";
      row.className = curve.color;
      row.textContent = `${curve.name} ${number(curve.means[index])}${spread}${other}`;
    }
    box.style.left = share < 0.5 ? `calc(${100 * share}% + .6rem)` : "auto";
    box.style.right = share < 0.5 ? "auto" : `calc(${100 * (1 - share)}% + .6rem)`;
    area.classList.add("on");
  }
  function point(event) {
    const place = area.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - place.left) / place.width));
    at = nearest(main, axis[0] + share * (axis[1] - axis[0]));
    show();
  }
  area.addEventListener("pointermove", point);
  area.addEventListener("pointerdown", point);
  area.addEventListener("pointerleave", () => area.classList.remove("on"));
  area.addEventListener("blur", () => area.classList.remove("on"));
  area.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -main.length, End: main.length }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    at = Math.min(main.length - 1, Math.max(0, at + by));
    show();
  });
}

document.querySelectorAll(".area").forEach((area, index) => watch(area, figures[index]));
