// Draws the figures of the page. Their data and specifications stand in <script id="figures">; colours are those of
// page.css, as variables, so that light, dark and paper need no drawing anew.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const colours = Array.from({ length: 16 }, (_, i) => `var(--c${i})`);
  const config = {
    background: null,
    font: 'system-ui, "DejaVu Sans", sans-serif',
    view: { stroke: null },
    legend: { disable: true },
    range: { category: colours },
    axis: {
      labelColor: "var(--quiet)", titleColor: "var(--quiet)", gridColor: "var(--grid)", domainColor: "var(--line)",
      tickColor: "var(--line)", titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11, labelOverlap: true,
    },
    axisX: { grid: false },
    axisXQuantitative: { tickCount: { expr: "max(3, min(10, floor(width / 70)))" } },
    area: { color: colours[0] }, bar: { color: colours[0] }, line: { color: colours[0] }, point: { color: colours[0] },
  };

  // Rows are arrays, and runs numbers, to keep the page small.
  const unpack = (figure, panel) => panel.rows.map((row) => {
    const datum = {};
    panel.fields.forEach((field, i) => {
      datum[field] = field === "run" && typeof row[i] === "number" ? figure.series[row[i]] : row[i];
    });
    return datum;
  });

  const text = (value) => typeof value !== "number" ? String(value)
    : Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : String(+value.toPrecision(5));
  // Texts of runs are data: nothing of them is ever markup.
  const element = (name, content, className) => {
    const e = document.createElement(name);
    if (content !== undefined) e.textContent = content;
    if (className) e.className = className;
    return e;
  };

  class Tip {
    constructor(panel) {
      this.panel = panel;
      this.box = null;
    }
    show(x, y, lines) {
      if (!this.box) this.panel.append(this.box = element("div", undefined, "tip"));
      this.box.replaceChildren(...lines);
      const width = this.panel.clientWidth;
      this.box.style.left = `${Math.max(0, x > width / 2 ? x - this.box.offsetWidth - 14 : x + 14)}px`;
      this.box.style.top = `${y + 10}px`;
    }
    hide() {
      if (this.box) this.box.remove();
      this.box = null;
    }
  }
  const line = (label, value, colour) => {
    const e = element("div");
    if (colour) {
      const dot = element("i");
      dot.style.background = colour;
      e.append(dot);
    }
    e.append(element("b", label), ` ${value}`);
    return e;
  };

  // Curves: what each of them has nearest to the pointer. Other marks: what they say of themselves.
  const follow = (view, chart, tip, figure, panel, values) => {
    const curves = new Map();
    for (const datum of values) {
      if (datum.y === null || datum.y === undefined || datum.kind === "faint") continue;
      const key = JSON.stringify([datum.run, datum.kind]);
      if (!curves.has(key)) curves.set(key, []);
      curves.get(key).push(datum);
    }
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const [left] = view.origin();
      const x = view.scale("x").invert(event.clientX - box.left - left);
      const lines = [line(panel.xTitle, text(x))];
      for (const data of curves.values()) {
        let low = 0, high = data.length - 1;
        while (low < high) {
          const middle = (low + high) >> 1;
          if (data[middle].x < x) low = middle + 1; else high = middle;
        }
        const before = data[Math.max(0, low - 1)], after = data[low];
        const near = Math.abs(before.x - x) <= Math.abs(after.x - x) ? before : after;
        const name = [figure.series.length > 1 ? near.run : "", near.kind || ""].filter(Boolean).join(", ") || panel.yTitle;
        const value = text(near.y) + (typeof near.low === "number" ? ` (${text(near.low)} to ${text(near.high)})` : "");
        lines.push(line(name, value, colours[figure.series.indexOf(near.run) % colours.length]));
        if (lines.length > 12) break;
      }
      lines[0] = line(panel.xTitle, text(+x.toPrecision(4)));
      tip.show(event.clientX - box.left, chart.offsetTop + event.clientY - box.top, lines);
    });
    chart.addEventListener("pointerleave", () => tip.hide());
  };

  const titleOf = (spec, channel) => {
    const found = spec.encoding?.[channel]?.axis?.title;
    if (found) return found;
    for (const layer of spec.layer || []) if (layer.encoding?.[channel]?.axis?.title) return layer.encoding[channel].axis.title;
    return channel;
  };

  const draw = async (figure, panel, place) => {
    const chart = place.querySelector(".chart");
    const values = unpack(figure, panel);
    const spec = { ...panel.spec, data: { values }, width: Math.max(120, chart.clientWidth), autosize: { type: "fit-x", contains: "padding" }, padding: 4 };
    spec.description = [figure.title, panel.title].filter(Boolean).join(": ");
    const tip = new Tip(place);
    const view = new vega.View(vega.parse(vegaLite.compile(spec, { config }).spec), { renderer: "svg", container: chart, hover: true });
    view.tooltip((_, event, item, value) => {
      if (value === null || value === undefined || value === "") return panel.curves || tip.hide();
      const box = chart.getBoundingClientRect();
      const lines = typeof value === "object"
        ? Object.entries(value).filter(([, v]) => v !== null && v !== undefined).map(([k, v]) => line(k, text(v)))
        : [element("div", String(value))];
      tip.show(event.clientX - box.left, chart.offsetTop + event.clientY - box.top, lines);
    });
    await view.runAsync();
    panel.xTitle = titleOf(panel.spec, "x");
    panel.yTitle = titleOf(panel.spec, "y");
    if (panel.curves) follow(view, chart, tip, figure, panel, values);
    let width = chart.clientWidth;
    new ResizeObserver(() => {
      if (chart.clientWidth === width || chart.clientWidth === 0 || matchMedia("print").matches) return;
      width = chart.clientWidth;
      view.width(Math.max(120, width)).runAsync();
    }).observe(chart);
  };

  const all = async () => {
    const root = document.documentElement;
    let drawn = 0, failed = 0;
    for (const figure of figures) {
      const places = document.querySelectorAll(`#${CSS.escape(figure.id)} .panel`);
      for (let i = 0; i < figure.panels.length; ++i) {
        try {
          await draw(figure, figure.panels[i], places[i]);
        } catch (error) {
          // The table is still there.
          console.error(figure.id, error);
          places[i].querySelector(".chart").textContent = `This figure could not be drawn: ${error.message}`;
          ++failed;
        }
        ++drawn;
        if (drawn % 8 === 0) await new Promise((done) => setTimeout(done));  // the page stays usable meanwhile
      }
    }
    root.dataset.drawn = String(drawn - failed);
  };
  all();
})();
