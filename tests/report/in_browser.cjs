// node in_browser.cjs BROWSER PLAYWRIGHT FOLDER [SCREENSHOTS]: looks at one.html and several.html as a reader would.
"use strict";
const assert = require("assert");
const path = require("path");
const { pathToFileURL } = require("url");
const [browserPath, playwright, folder, screenshots] = process.argv.slice(2);
const { chromium } = require(playwright);

// What must be drawn at least, by page and figure: panels.
const expected = {
  one: { loss: 1, accuracy: 1, "learning-rate": 1, density: 3, nnz: 3, changes: 2, dropped: 2, grown: 2, threshold: 2,
         width: 1, weights: 3, "weights-over-time": 3, "mean-weight": 3, "mean-size": 3, "near-zero": 3, "path-kernel-layers": 1, speed: 1 },
  several: { results: 1, "accuracy-against-alpha": 1, pruned: 1, loss: 1, accuracy: 1, density: 3, weights: 3, "weights-over-time": 9,
             "mean-weight": 3, "path-kernel-trace": 1, width: 1 },
};

async function look(browser, name, scheme, width) {
  const context = await browser.newContext({ colorScheme: scheme, viewport: { width, height: 900 } });
  const page = await context.newPage();
  const where = `${name}, ${scheme}, ${width} px`;
  const complaints = [], requests = [];
  page.on("console", (m) => { if (["error", "warning"].includes(m.type())) complaints.push(m.text()); });
  page.on("pageerror", (e) => complaints.push(String(e)));
  page.on("request", (r) => requests.push(r.url()));
  const url = pathToFileURL(path.join(folder, `${name}.html`)).href;
  await page.goto(url);
  await page.waitForFunction(() => document.documentElement.dataset.drawn !== undefined, null, { timeout: 120000 });

  const seen = await page.evaluate(() => {
    const marks = (chart) => [...chart.querySelectorAll(".mark-line path, .mark-area path, .mark-rect path, .mark-symbol path, .mark-rule line, .mark-rule path")]
      .filter((e) => e.closest(".role-mark, .role-scope") && e.getBoundingClientRect().width + e.getBoundingClientRect().height > 0);
    return {
      title: document.title,
      heading: document.querySelector("h1").textContent,
      background: getComputedStyle(document.body).backgroundColor,
      wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      drawn: Number(document.documentElement.dataset.drawn),
      panels: document.querySelectorAll(".panel").length,
      text: document.body.innerText,
      images: document.querySelectorAll("img, iframe, object, embed").length,
      figures: Object.fromEntries([...document.querySelectorAll("section")].map((s) => [s.id, {
        panels: [...s.querySelectorAll(".panel")].map((p) => ({
          marks: marks(p).length,
          titles: [...p.querySelectorAll(".role-axis-title text")].map((t) => t.textContent),
          labels: p.querySelectorAll(".role-axis-label text").length,
          inside: [...p.querySelectorAll("svg")].every((svg) => svg.getBoundingClientRect().right <= p.getBoundingClientRect().right + 1),
          label: p.querySelector("svg")?.getAttribute("aria-label") || p.querySelector("svg [aria-label]")?.getAttribute("aria-label") || "",
        })),
        rows: s.querySelectorAll("tbody tr").length,
        headings: s.querySelectorAll("thead th").length,
        ink: getComputedStyle(s.querySelector(".role-axis-label text") || s).fill,
        strokes: [...new Set([...s.querySelectorAll(".mark-line path")].map((e) => getComputedStyle(e).stroke))],
      }])),
    };
  });
  assert.deepStrictEqual(complaints, [], where);
  assert.deepStrictEqual(requests, [url], `${where}: requests`);
  assert.strictEqual(seen.drawn, seen.panels, `${where}: panels drawn`);
  assert.ok(seen.wide <= 0, `${where}: ${seen.wide} px wider than the window`);
  assert.strictEqual(seen.images, 0, where);
  assert.notStrictEqual(seen.title, "taken", `${where}: a name ran as a script`);
  for (const [id, panels] of Object.entries(expected[name])) {
    const figure = seen.figures[id];
    assert.ok(figure, `${where}: no figure ${id}`);
    assert.ok(figure.panels.length >= panels, `${where}: ${id} has ${figure.panels.length} panels, expected ${panels}`);
  }
  for (const [id, figure] of Object.entries(seen.figures)) {
    assert.ok(figure.rows > 0 && figure.headings > 0, `${where}: ${id} has no table`);
    for (const panel of figure.panels) {
      assert.ok(panel.marks > 0, `${where}: ${id} draws nothing`);
      assert.ok(panel.titles.length >= 1 && panel.titles.every(Boolean), `${where}: ${id} has an axis without a title`);
      assert.ok(panel.labels >= 2, `${where}: ${id} has ${panel.labels} axis labels`);
      assert.ok(panel.inside, `${where}: ${id} is wider than its panel`);
      assert.ok(panel.label, `${where}: ${id} has no name for screen readers`);
    }
  }
  if (name === "one") {
    assert.ok(seen.heading.startsWith("<script>document.title='taken'<script> \"double\" 'single' & größe ✓"), seen.heading);
    // Training, validation and single steps.
    assert.strictEqual(seen.figures.loss.panels[0].marks, 3, "curves of the loss");
  } else {
    assert.ok(seen.text.includes("<script>document.title='taken'<script>"), "the baseline's name is text");
    assert.strictEqual(seen.figures.loss.strokes.length, 3, "one colour for each group");
    assert.ok(/2\n?.*seeds|seeds/.test(seen.text));
  }
  if (screenshots) await page.screenshot({ path: path.join(screenshots, `${name}-${scheme}-${width}.png`), fullPage: true });

  // The pointer over a curve: what each of them has there.
  if (width > 1000) {
    const chart = page.locator("#accuracy .chart");
    await chart.scrollIntoViewIfNeeded();
    const box = await chart.boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
    const tip = await page.locator("#accuracy .tip").innerText();
    assert.ok(/epoch/.test(tip) && /validation/.test(tip), `${where}: tip "${tip}"`);
    await page.emulateMedia({ media: "print" });
    if (screenshots) await page.pdf({ path: path.join(screenshots, `${name}-${scheme}.pdf`), format: "A4" });
    const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.strictEqual(paper, "rgb(255, 255, 255)", `${where}: on paper`);
  }
  await context.close();
  return seen;
}

(async () => {
  const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    for (const name of ["one", "several"]) {
      const light = await look(browser, name, "light", 1600);
      const dark = await look(browser, name, "dark", 360);
      await look(browser, name, "light", 360);
      await look(browser, name, "dark", 1600);
      assert.notStrictEqual(light.background, dark.background);
      assert.notStrictEqual(light.figures.loss.ink, dark.figures.loss.ink, "axes follow the scheme");
      assert.notDeepStrictEqual(light.figures.loss.strokes, dark.figures.loss.strokes, "curves follow the scheme");
    }
  } finally {
    await browser.close();
  }
  console.log("pages: as expected");
})().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
