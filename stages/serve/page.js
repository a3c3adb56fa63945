// The search page: asks the server, shows its answers, draws the map. Answers come as HTML that is escaped there; all
// else is put in as text. Nothing but this server is asked for anything.
(() => {
  "use strict";

  const state = { ask: null, top: 0, rerank: 0, turn: 0, own: null, wait: 0 };
  const find = (selector, from = document) => from.querySelector(selector);

  // ---- asking

  async function search(ask, { push = true, focus = true } = {}) {
    const results = find("#cb-results");
    const turn = ++state.turn;
    state.ask = ask;
    results.setAttribute("aria-busy", "true");
    if (push && !ask.file) history.pushState(null, "", address(ask));
    if (push && ask.file) history.pushState(null, "", location.pathname + location.search);
    let html, ok = false;
    try {
      const answer = await fetch(`search?top=${state.top}&rerank=${state.rerank}`, {
        method: "POST",
        headers: { "content-type": ask.file ? "application/octet-stream" : "application/json" },
        body: ask.file || JSON.stringify(ask),
      });
      ok = answer.ok;
      html = await answer.text();
    } catch {
      html = failure("The server does not answer; is it still running?");
    }
    if (turn !== state.turn) return; // a later question has been asked
    show(results, html, ok, ask);
    if (focus) results.focus({ preventScroll: true });
  }

  function show(results, html, ok, ask) {
    if (state.own) URL.revokeObjectURL(state.own);
    state.own = ok && ask.file ? URL.createObjectURL(ask.file) : null;
    results.innerHTML = html;
    results.removeAttribute("aria-busy");
    compare(find(".cb-look", results));
    map.mark(ok && "id" in ask ? ask.id : null, ok ? shownIds(results) : []);
  }

  async function begin() {
    const results = find("#cb-results");
    const turn = ++state.turn;
    state.ask = null;
    try {
      const answer = await fetch("beginning");
      const html = await answer.text();
      if (turn === state.turn) show(results, html, answer.ok, {});
    } catch {
      if (turn === state.turn) results.innerHTML = failure("The server does not answer; is it still running?");
    }
  }

  const shownIds = (results) => [...results.querySelectorAll(".cb-image")].map((image) => Number(image.dataset.id));

  function failure(words) {
    const line = document.createElement("p");
    line.className = "cb-failure";
    line.setAttribute("role", "alert");
    line.textContent = words;
    return line.outerHTML;
  }

  function photo(file) {
    const limit = Number(find("#cb-drop").dataset.limit);
    if (file.size <= limit) return search({ file });
    // The server would refuse it before it has come; the browser would then say that the connection broke.
    state.turn++;
    const size = (bytes) => (bytes / 2 ** 20).toFixed(1) + " MiB";
    const words = `The file has ${size(file.size)}, more than ${size(limit)}; give a smaller one.`;
    show(find("#cb-results"), failure(words), false, {});
  }

  function text(words) {
    if (words.trim()) search({ text: words }, { focus: false });
  }

  function options(top, rerank) {
    if (top === state.top && rerank === state.rerank) return;
    Object.assign(state, { top, rerank });
    clearTimeout(state.wait); // a slider that moves asks once
    state.wait = setTimeout(() => state.ask && search(state.ask, { push: false, focus: false }), 250);
  }

  // ---- the address: an image or a text can be gone back to

  const address = (ask) => "#" + new URLSearchParams(ask).toString();

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (/^\d{1,15}$/.test(asked.get("id") || "")) return search({ id: Number(asked.get("id")) }, { push: false });
    if (asked.get("text")) return search({ text: asked.get("text") }, { push: false });
    return begin();
  }

  // ---- query and image side by side

  function compare(button, seen = false) {
    const results = find("#cb-results"), place = find(".cb-compare", results);
    if (!button || !place) return;
    for (const other of results.querySelectorAll(".cb-look")) other.setAttribute("aria-pressed", other === button);
    place.replaceChildren(button.nextElementSibling.content.cloneNode(true));
    for (const own of place.querySelectorAll(".cb-own")) {
      const picture = new Image();
      picture.alt = "your image";
      picture.src = state.own || "";
      own.replaceWith(picture);
    }
    if (seen) place.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  // ---- what the visitor does

  document.addEventListener("click", (event) => {
    const image = event.target.closest(".cb-image"), look = event.target.closest(".cb-look");
    if (image) {
      search({ id: Number(image.dataset.id) });
      find("#cb-right").scrollIntoView({ block: "nearest", behavior: "smooth" });
    }
    if (look) compare(look, true);
  });
  document.addEventListener("change", (event) => {
    if (event.target.id !== "cb-file" || !event.target.files.length) return;
    photo(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) {
      event.preventDefault();
      photo(file);
    }
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer || !event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // a photo that misses the field must not replace the page
      const drop = find("#cb-drop");
      drop.classList.toggle("cb-over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) photo(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !event.target.matches(".cb-image")) return;
    const images = [...document.querySelectorAll(".cb-image")];
    const place = Math.min(Math.max(images.indexOf(event.target) + step, 0), images.length - 1);
    images[place].focus();
    event.preventDefault();
  });
  window.addEventListener("popstate", fromAddress);

  // ---- the map

  const map = {
    points: null, scale: 1, x: 0, y: 0, at: -1, query: -1, hits: new Set(), group: null, drag: null, moved: false,
    pinch: new Map(),

    async start(section) {
      this.section = section;
      this.canvas = find("canvas", section);
      this.tip = find(".cb-tip", section);
      let points;
      try {
        points = await (await fetch("map")).json();
      } catch {
        return;
      }
      const note = find(".cb-note", section);
      if (points.problem || !points.ids.length) {
        section.classList.add("cb-none");
        note.textContent = "There is no map of this index. " + (points.problem || "It has no image of the map.");
        return;
      }
      this.points = points;
      this.rows = new Map(points.ids.map((id, row) => [id, row]));
      this.width = Math.max(...points.x) || 1;
      this.height = Math.max(...points.y) || 1;
      const shown = points.ids.length < points.total ? `${points.ids.length.toLocaleString("en")} of ` : "";
      note.textContent = `${shown}${points.total.toLocaleString("en")} images, near ones alike, coloured by component. ` +
        "Click a point to search with it; drag and scroll to move and zoom.";
      this.legend();
      this.listen();
      if (state.marked) this.mark(...state.marked);
      new ResizeObserver(() => this.draw()).observe(this.canvas);
      new MutationObserver(() => this.draw()).observe(document.body, { attributeFilter: ["class"] });
    },

    colour(component) {
      const dark = document.body.classList.contains("dark");
      if (component < 0) return dark ? "#8b96a2" : "#7b8794";
      const light = (dark ? 0.74 : 0.6) + [0, 0.1, -0.1][component % 3];
      return `oklch(${light} 0.14 ${(component * 137.5 + 20) % 360})`;
    },

    legend() {
      const list = find(".cb-legend", this.section);
      for (const [component, name] of Object.entries(this.points.names)) {
        const button = document.createElement("button"), swatch = document.createElement("i");
        button.type = "button";
        button.setAttribute("aria-pressed", "false");
        swatch.style.setProperty("--component", component);
        swatch.dataset.component = component;
        button.append(swatch, name.replace(/^coarse \d+: /, ""));
        button.title = name;
        button.addEventListener("click", () => {
          this.group = this.group === Number(component) ? null : Number(component);
          for (const other of list.querySelectorAll("button")) {
            other.setAttribute("aria-pressed", other === button && this.group !== null);
          }
          this.draw();
        });
        const item = document.createElement("li");
        item.append(button);
        list.append(item);
      }
    },

    mark(query, hits) {
      state.marked = [query, hits];
      if (!this.points) return;
      this.query = this.rows.get(query) ?? -1;
      this.hits = new Set(state.ask ? hits.map((id) => this.rows.get(id)).filter((row) => row !== undefined) : []);
      this.draw();
    },

    place(row) {
      const margin = 10, size = this.canvas.clientWidth - 2 * margin, high = this.canvas.clientHeight - 2 * margin;
      const fit = Math.min(size / this.width, high / this.height) * this.scale;
      const x = this.canvas.clientWidth / 2 + (this.points.x[row] - this.width / 2) * fit + this.x;
      return [x, this.canvas.clientHeight / 2 + (this.points.y[row] - this.height / 2) * fit + this.y];
    },

    draw() {
      if (!this.points || !this.canvas.clientWidth || this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        this.paint();
      });
    },

    paint() {
      const { canvas, points } = this, ratio = window.devicePixelRatio || 1;
      canvas.width = canvas.clientWidth * ratio;
      canvas.height = canvas.clientHeight * ratio;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      const style = getComputedStyle(this.section);
      const ink = style.getPropertyValue("--cb-ink"), paper = style.getPropertyValue("--cb-paper");
      const size = Math.min(6, Math.max(2, 90 / Math.sqrt(points.ids.length)) * Math.sqrt(this.scale));
      const dot = (row, radius, fill, line) => {
        const [x, y] = this.place(row);
        context.beginPath();
        context.arc(x, y, radius, 0, 7);
        context.fillStyle = fill;
        context.fill();
        if (!line) return;
        context.strokeStyle = line;
        context.lineWidth = 2;
        context.stroke();
      };
      for (const swatch of this.section.querySelectorAll("[data-component]")) {
        swatch.style.background = this.colour(Number(swatch.dataset.component));
      }
      const fills = new Map();
      for (let row = 0; row < points.ids.length; row++) {
        const component = points.coarse[row];
        if (!fills.has(component)) fills.set(component, this.colour(component));
        const [x, y] = this.place(row);
        if (x < 0 || y < 0 || x > canvas.clientWidth || y > canvas.clientHeight) continue;
        context.globalAlpha = this.group === null || this.group === component ? 0.85 : 0.1;
        context.fillStyle = fills.get(component);
        context.fillRect(x - size / 2, y - size / 2, size, size);
      }
      context.globalAlpha = 1;
      for (const row of this.hits) dot(row, size / 2 + 2, this.colour(points.coarse[row]), ink);
      if (this.query >= 0) dot(this.query, size / 2 + 4, paper, ink);
      if (this.at >= 0) dot(this.at, size / 2 + 4, this.colour(points.coarse[this.at]), ink);
      this.canvas.style.touchAction = this.scale > 1 ? "none" : "pan-y";
      this.canvas.dataset.drawn = points.ids.length;
    },

    nearest(x, y, reach) {
      let best = -1, least = reach * reach;
      for (let row = 0; row < this.points.ids.length; row++) {
        const [px, py] = this.place(row), distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) [best, least] = [row, distance];
      }
      return best;
    },

    point(row) {
      if (row === this.at) return;
      this.at = row;
      this.tip.hidden = row < 0;
      this.canvas.style.cursor = row < 0 ? "grab" : "pointer";
      if (row >= 0) {
        const { ids, coarse, names } = this.points, picture = new Image(), words = document.createElement("span");
        picture.src = `thumbnail/${ids[row]}`;
        picture.alt = "";
        words.textContent = `image ${ids[row]}` + (names[coarse[row]] ? `, ${names[coarse[row]]}` : "");
        this.tip.replaceChildren(picture, words);
        const [x, y] = this.place(row), width = this.canvas.clientWidth;
        this.tip.style.left = `${Math.min(Math.max(x - 60, 0), width - 120)}px`;
        this.tip.style.top = y > 150 ? "auto" : `${y + 12}px`;
        this.tip.style.bottom = y > 150 ? `${this.canvas.clientHeight - y + 12}px` : "auto";
        this.canvas.setAttribute("aria-description", words.textContent);
      }
      this.draw();
    },

    zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
      const scale = Math.min(Math.max(this.scale * factor, 1), 60), change = scale / this.scale;
      const cx = x - this.canvas.clientWidth / 2, cy = y - this.canvas.clientHeight / 2;
      this.x = scale === 1 ? 0 : cx - (cx - this.x) * change;
      this.y = scale === 1 ? 0 : cy - (cy - this.y) * change;
      this.scale = scale;
      this.point(-1);
      this.draw();
    },

    // The nearest point in a direction: a cone of 45 degrees to either side.
    step(dx, dy) {
      const from = this.at >= 0 ? this.at : this.query >= 0 ? this.query : this.nearest(
        this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, Infinity);
      const [x, y] = this.place(from);
      let best = from, least = Infinity;
      for (let row = 0; row < this.points.ids.length; row++) {
        const [px, py] = this.place(row), along = (px - x) * dx + (py - y) * dy;
        const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
        if (along > 2 && aside <= along && along + aside < least) [best, least] = [row, along + aside];
      }
      this.point(best);
    },

    listen() {
      const { canvas, pinch } = this;
      const local = (event) => {
        const box = canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top];
      };
      const span = () => {
        const [[ax, ay], [bx, by]] = [...pinch.values()];
        return [Math.hypot(ax - bx, ay - by), (ax + bx) / 2, (ay + by) / 2];
      };
      canvas.addEventListener("pointerdown", (event) => {
        pinch.set(event.pointerId, local(event));
        this.drag = local(event);
        if (pinch.size === 1) this.moved = false;
        if (this.scale > 1) canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        const [x, y] = local(event);
        if (!pinch.has(event.pointerId)) {
          this.point(this.nearest(x, y, 14));
          return;
        }
        const before = pinch.size === 2 ? span() : null;
        pinch.set(event.pointerId, [x, y]);
        if (before) {
          const [wide, cx, cy] = span();
          this.moved = true;
          this.zoom(wide / before[0], cx, cy);
        } else if (this.moved || Math.hypot(x - this.drag[0], y - this.drag[1]) > 4) {
          if (this.scale > 1) {
            this.x += x - this.drag[0];
            this.y += y - this.drag[1];
          }
          this.drag = [x, y];
          this.moved = true;
          this.point(-1);
          this.draw();
        }
      });
      for (const kind of ["pointerup", "pointercancel", "pointerleave"]) {
        canvas.addEventListener(kind, (event) => {
          pinch.delete(event.pointerId);
          if (kind === "pointerleave" && event.pointerType === "mouse") this.point(-1);
        });
      }
      canvas.addEventListener("click", (event) => {
        const row = this.moved ? -1 : this.nearest(...local(event), 14);
        if (row >= 0) search({ id: this.points.ids[row] }, { focus: false });
      });
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY / 300), ...local(event));
      }, { passive: false });
      canvas.addEventListener("keydown", (event) => {
        const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
        if (steps[event.key]) this.step(...steps[event.key]);
        else if (event.key === "Enter" && this.at >= 0) search({ id: this.points.ids[this.at] }, { focus: false });
        else if (event.key === "+" || event.key === "-") this.zoom(event.key === "+" ? 1.5 : 1 / 1.5);
        else if (event.key === "Escape") this.zoom(0);
        else return;
        event.preventDefault();
      });
      canvas.addEventListener("blur", () => this.point(-1));
      for (const button of this.section.querySelectorAll("[data-zoom]")) {
        button.addEventListener("click", () => this.zoom(Number(button.dataset.zoom)));
      }
    },
  };

  // ---- the beginning: Gradio's program puts the page together, at some time

  window.conceptbits = { text, options };
  const ready = () => {
    const section = find("#cb-map");
    if (!section || !find("#cb-results") || !find("#cb-drop")) return false;
    state.top = Number(find("#cb-drop").dataset.top);
    map.start(section);
    fromAddress();
    return true;
  };
  if (!ready()) {
    const watch = new MutationObserver(() => ready() && watch.disconnect());
    watch.observe(document.documentElement, { childList: true, subtree: true });
  }
})();
