// Draws a run's snapshot (views/timeline.py): its state and time, its stages, a line for each rank.
// Elapsed times tick here, once a second, so that a quiet run sends nothing.

const STATES = {
  waiting: ["○", "Not started"],
  running: ["●", "Running"],
  done: ["✓", "Done"],
  failed: ["✕", "Failed"],
  stopped: ["■", "Stopped"],
};

function node(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function seconds(value) {
  const whole = Math.max(0, value);
  if (whole < 10) return `${whole.toFixed(1)} s`;
  if (whole < 100) return `${Math.round(whole)} s`;
  const minutes = Math.floor(whole / 60);
  return `${minutes}:${String(Math.floor(whole % 60)).padStart(2, "0")} min`;
}

function mark(state) {
  const [sign, word] = STATES[state];
  const made = node("span", `jkp-mark jkp-${state}`, sign);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", word);
  return made;
}

function bar(stage, label) {
  const made = node("span", "jkp-bar");
  if (stage.state !== "running" || stage.fraction === null) return made; // no bar that pretends to know
  const percent = Math.round(100 * Math.min(1, Math.max(0, stage.fraction)));
  made.classList.add("jkp-known");
  made.setAttribute("role", "progressbar");
  made.setAttribute("aria-label", label);
  made.setAttribute("aria-valuemin", "0");
  made.setAttribute("aria-valuemax", "100");
  made.setAttribute("aria-valuenow", String(percent));
  const fill = node("span", "jkp-fill");
  fill.style.width = `${percent}%`;
  made.append(fill);
  return made;
}

function render({ model, el }) {
  const box = node("section", "jkp");
  box.setAttribute("aria-label", model.get("label"));
  const head = node("div", "jkp-head");
  const stages = node("ol", "jkp-stages");
  const ranks = node("ul", "jkp-ranks");
  const spoken = node("p", "jkp-spoken");
  spoken.setAttribute("aria-live", "polite");
  box.append(head, stages, ranks, spoken);
  el.append(box);
  let skew = 0; // the kernel's clock minus this browser's: they may be two machines
  let clocks = []; // [element, began, ended] of every time on show

  function clock(item) {
    const made = node("span", "jkp-time");
    if (item.began !== null && item.began !== undefined) clocks.push([made, item.began, item.ended]);
    return made;
  }

  function tick() {
    const now = Date.now() / 1000 + skew;
    for (const [shown, began, ended] of clocks) shown.textContent = seconds((ended ?? now) - began);
  }

  function row(tag, item, name) {
    const made = node(tag, `jkp-row jkp-is-${item.state}`);
    const words = node("span", "jkp-words");
    words.append(node("span", "jkp-name", item.label ? item.name : name));
    if (item.text) words.append(node("span", "jkp-text", item.text));
    made.append(mark(item.state));
    if (item.label) made.append(node("span", "jkp-label", item.label));
    made.append(words, bar(item, item.label ?? item.name), clock(item));
    return made;
  }

  function draw() {
    const shot = model.get("snapshot");
    clocks = [];
    head.replaceChildren(mark(shot.state), node("strong", "", STATES[shot.state][1]), clock(shot));
    stages.replaceChildren(...shot.stages.map((stage) => row("li", stage, stage.name)));
    ranks.replaceChildren(...shot.ranks.map((rank) => row("li", rank, rank.name)));
    stages.hidden = shot.stages.length === 0;
    ranks.hidden = shot.ranks.length === 0;
    const last = shot.stages.at(-1);
    const news = shot.state === "running" && last ? `${last.name} ${last.text}` : STATES[shot.state][1];
    if (spoken.textContent !== news) spoken.textContent = news;
    tick();
  }

  function hear() {
    skew = model.get("snapshot").now - Date.now() / 1000;
    draw();
  }

  model.on("change:snapshot", hear);
  const timer = setInterval(tick, 1000);
  draw();
  return () => {
    clearInterval(timer);
    model.off("change:snapshot", hear);
  };
}

export default { render };
