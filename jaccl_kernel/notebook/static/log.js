// The log's browser half: keeps the last lines of one model, and draws them in any number of views.
// Messages in: {type: "lines", lines: [[source, text], …]} adds, {type: "replay", lines} replaces.
// Message out: {type: "ready"} asks for a replay, when a page has just been opened.

const COLOURS = 8; // .jkl-0 … .jkl-7 in log.css

export default () => {
  let lines = [];
  const sources = [];
  const listeners = new Set();

  function take(message, kept) {
    const replaced = message.type === "replay";
    lines = (replaced ? [] : lines).concat(message.lines).slice(-kept);
    for (const [source] of message.lines) if (!sources.includes(source)) sources.push(source);
    for (const listener of listeners) listener(replaced ? null : message.lines);
  }

  function initialize({ model }) {
    const hear = (message) => {
      if (message.type === "lines" || message.type === "replay") take(message, model.get("kept"));
    };
    model.on("msg:custom", hear);
    model.send({ type: "ready" });
    return () => model.off("msg:custom", hear);
  }

  function render({ model, el }) {
    const label = model.get("label");
    const box = document.createElement("details");
    box.className = "jkl";
    box.open = true;
    const summary = document.createElement("summary");
    const title = document.createElement("span");
    title.textContent = label;
    const count = document.createElement("span");
    count.className = "jkl-count";
    summary.append(title, count);
    const chooser = document.createElement("select");
    chooser.setAttribute("aria-label", `${label}: show lines of`);
    const pre = document.createElement("pre");
    pre.className = "jkl-lines";
    pre.tabIndex = 0;
    pre.setAttribute("role", "log");
    pre.setAttribute("aria-live", "off"); // too chatty to be read out; progress is announced elsewhere
    pre.setAttribute("aria-label", label);
    const bar = document.createElement("div");
    bar.className = "jkl-bar";
    bar.append(chooser);
    box.append(summary, bar, pre);
    el.append(box);
    const known = [];
    let follow = true;
    // a reader who scrolled up is reading: leave the page where it is
    pre.addEventListener("scroll", () => {
      follow = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 8;
    });

    function offer(name, value) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = name;
      chooser.append(option);
    }
    offer("all sources", "");

    function shown([source]) {
      return chooser.value === "" || chooser.value === source;
    }

    function draw([source, text]) {
      const line = document.createElement("div");
      const who = document.createElement("span");
      who.className = `jkl-source jkl-${sources.indexOf(source) % COLOURS}`;
      who.textContent = source;
      line.append(who, document.createTextNode(text || " "));
      return line;
    }

    function update(added) {
      while (known.length < sources.length) {
        known.push(sources[known.length]);
        offer(known.at(-1), known.at(-1));
      }
      if (added === null) pre.replaceChildren();
      pre.append(...(added ?? lines).filter(shown).map(draw));
      while (pre.childElementCount > model.get("kept")) pre.firstElementChild.remove();
      count.textContent = lines.length === 1 ? "1 line" : `${lines.length} lines`;
      bar.hidden = sources.length < 2;
      pre.hidden = lines.length === 0;
      if (follow) pre.scrollTop = pre.scrollHeight;
    }

    const listener = (added) => update(added);
    chooser.addEventListener("change", () => {
      follow = true;
      update(null);
    });
    listeners.add(listener);
    update(null);
    return () => listeners.delete(listener);
  }

  return { initialize, render };
};
