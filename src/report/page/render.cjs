// node render.cjs SPEC.json OUT.svg: one Vega-Lite document as SVG, with Vega's own renderer.
const fs = require("fs");
const vega = require("vega");
const vegaLite = require("vega-lite");
const [spec, out] = process.argv.slice(2);
new vega.View(vega.parse(vegaLite.compile(JSON.parse(fs.readFileSync(spec, "utf8"))).spec), { renderer: "none" })
  .toSVG()
  .then((svg) => fs.writeFileSync(out, svg))
  .catch((error) => {
    console.error(error.message);
    process.exit(1);
  });
