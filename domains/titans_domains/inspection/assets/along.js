"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const units = data.units.length, count = data.count, LEVELS = 10, HEIGHT = 100, WIDTH = 1000;
  const floats = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  };
  const kept = {};
  for (const name of ["surprise", "before", "step_size", "momentum", "forget"]) kept[name] = floats(data[name]);
  const bits = data.bits === null ? null : floats(data.bits);
  const byId = (id) => document.getElementById(id);
  const form = byId("choices"), box = byId("tokens");
  const tokens = [...box.querySelectorAll(".text i, .letters i, rect")];
  const clamps = data.clamps.map((clamp) => (clamp === null ? Infinity : clamp));
  let at = -1, shown = {};

  const chosen = () => {
    const wanted = ["reading", "memory", "head", "layer"].map((id) => (byId(id) ? byId(id).value : ""));
    const found = [];
    data.units.forEach((unit, i) => {
      if (wanted.every((want, part) => want === "" || want === String(unit[part]))) found.push(i);
    });
    return found;
  };

  const value = (name, i) => {
    if (name === "write") return kept.step_size[i] * Math.min(kept.surprise[i], clamps[i % units]);
    return kept[name][i];
  };

  const means = (name, of) => {
    if (name === "bits") return bits;
    const out = new Float32Array(count);
    for (let t = 0; t < count; t++) {
      let sum = 0;
      for (const unit of of) sum += value(name, t * units + unit);
      out[t] = sum / of.length;
    }
    return out;
  };

  const limits = (...lists) => {
    const finite = lists.flatMap((list) => [...list].filter(Number.isFinite)).sort((a, b) => a - b);
    if (!finite.length) return [0, 1];
    const quantile = (q) => {
      const place = q * (finite.length - 1), low = Math.floor(place), high = Math.ceil(place);
      return finite[low] + (finite[high] - finite[low]) * (place - low);
    };
    const low = quantile(0.02), high = quantile(0.98);
    return high > low ? [low, high] : [low, low + Math.max(Math.abs(low), 1e-12)];
  };

  const ranked = (values) => {
    const order = [...values.keys()].filter((t) => Number.isFinite(values[t])).sort((a, b) => values[a] - values[b]);
    const ranks = new Float32Array(count);
    order.forEach((t, place) => { ranks[t] = place / order.length; });
    return ranks;
  };

  const short = (x) => {
    if (!Number.isFinite(x)) return "-";
    if (x === 0) return "0";
    if (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5) return x.toExponential(2);
    return x.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(x)))));
  };

  const path = (values, low, high) => {
    let d = "", pen = "M";
    for (let t = 0; t < count; t++) {
      if (!Number.isFinite(values[t])) { pen = "M"; continue; }
      const share = Math.min(1, Math.max(0, (values[t] - low) / (high - low)));
      d += pen + ((t + 0.5) * WIDTH / count).toFixed(1) + " " + (HEIGHT - 2 - (HEIGHT - 4) * share).toFixed(1);
      pen = "L";
    }
    return d;
  };

  const draw = () => {
    const of = chosen(), measure = byId("measure").value;
    shown = {};
    for (const option of byId("measure").options) shown[option.value] = means(option.value, of);
    const values = shown[measure], [low, high] = limits(values);
    const ranks = byId("shade").value === "rank" ? ranked(values) : null;
    tokens.forEach((token, t) => {
      const share = ranks ? ranks[t] : Number.isFinite(values[t]) ? (values[t] - low) / (high - low) : 0;
      const level = Math.min(LEVELS - 1, Math.max(0, Math.floor(share * LEVELS)));
      token.setAttribute("class", token.getAttribute("class").replace(/\bs\d\b/, "s" + level));
    });
    const many = measure === "bits" || of.length === 1 ? "" : ", mean over " + of.length + " matrices";
    byId("what").textContent = data.names[measure] + many + (ranks ? ", by rank" : "");
    byId("low").textContent = ranks ? "least" : short(low);
    byId("high").textContent = ranks ? "most" : short(high);
    for (const [name, list] of Object.entries(shown)) {
      const figure = byId("chart-" + name);
      if (!figure) continue;
      const both = name === "surprise" ? [list, shown.before] : [list];
      const [from, to] = limits(...both);
      figure.querySelector("path.a").setAttribute("d", path(list, from, to));
      const dashed = figure.querySelector("path.before");
      if (dashed) dashed.setAttribute("d", path(shown.before, from, to));
      const ends = figure.querySelectorAll(".ends span");
      ends[0].textContent = short(to);
      ends[1].textContent = short(from);
    }
    tell();
  };

  const tell = () => {
    if (at < 0) return;
    const out = byId("at"), head = document.createElement("b");
    const label = data.series ? data.series[at] : JSON.stringify(tokens[at].textContent.replace("\u21b5\n", "\n"));
    head.textContent = "token " + (data.first + at).toLocaleString("en") + " " + label;
    out.replaceChildren(head);
    for (const [name, list] of Object.entries(shown)) {
      const part = document.createElement("span"), figure = document.createElement("em");
      figure.textContent = short(list[at]);
      part.append(data.names[name] + " ", figure);
      out.append(part);
    }
  };

  const go = (to, scroll) => {
    if (!tokens.length) return;
    if (at >= 0) tokens[at].classList.remove("on");
    at = Math.min(tokens.length - 1, Math.max(0, to));
    tokens[at].classList.add("on");
    if (scroll) tokens[at].scrollIntoView({ block: "nearest" });
    for (const line of document.querySelectorAll(".cursor")) {
      const x = (at + 0.5) * WIDTH / count;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
    tell();
  };

  const places = new Map(tokens.map((token, t) => [token, t]));
  const point = (event) => { if (places.has(event.target)) go(places.get(event.target), false); };
  box.addEventListener("pointerover", point);
  box.addEventListener("click", point);
  box.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20, Home: -count, End: count };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(at + steps[event.key], true);
  });
  document.querySelectorAll("[data-at]").forEach((link) =>
    link.addEventListener("click", () => go(Number(link.dataset.at), true)));
  form.addEventListener("change", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  draw();
})();
