#include "espalier/report/page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "report/embedded_page.h"

namespace espalier::report {
namespace {

std::string cells(const std::vector<std::string>& row, const char* tag, const std::set<std::size_t>& texts) {
  std::string out = "<tr>";
  for (std::size_t i = 0; i < row.size(); ++i) {
    const bool heading = tag[1] == 'h' || i == 0;
    const std::size_t second = row[i].find('\n');
    out += heading ? (tag[1] == 'h' ? "<th scope=\"col\"" : "<th scope=\"row\"") : "<td";
    if (texts.count(i) != 0) out += " class=\"text\"";
    out += ">" + escape(row[i].substr(0, second));
    if (second != std::string::npos) out += "<small>" + escape(row[i].substr(second + 1)) + "</small>";
    out += heading ? "</th>" : "</td>";
  }
  return out + "</tr>\n";
}

/// A column of anything but numbers is set to the left.
bool is_number(const std::string& cell) {
  return cell.empty() || cell == "-" || (cell.find_first_not_of("0123456789.+-e%± ") == std::string::npos);
}

std::string html(const Table& table, const std::string& caption, const char* style = "", bool texts = true) {
  std::set<std::size_t> left = {0};
  if (texts) {
    for (std::size_t c = 1; c < table.columns.size(); ++c) {
      for (const auto& row : table.rows) {
        if (c < row.size() && !is_number(row[c])) left.insert(c);
      }
    }
  }
  std::string out = fmt::format(
      "<div class=\"scroll\" tabindex=\"0\" role=\"region\" "
      "aria-label=\"{0}\"><table{1}><caption>{0}</caption>\n<thead>",
      escape(caption), style);
  out += cells(table.columns, "th", left) + "</thead><tbody>\n";
  for (const auto& row : table.rows) out += cells(row, "td", left);
  return out + "</tbody></table></div>\n";
}

constexpr std::size_t kColours = 16;  // --c0 to --c15 of page.css

std::string legend(const Figure& figure) {
  std::string out;
  // One colour needs no name, unless it is that of a kind.
  if (figure.series.size() > 1) {
    for (std::size_t s = 0; s < figure.series.size(); ++s) {
      out += fmt::format("<li><span class=\"key\" style=\"color: var(--c{})\"></span>{}</li>\n", s % kColours,
                         escape(figure.series[s]));
    }
  }
  for (const auto& [label, stroke] : figure.strokes) {
    out += fmt::format("<li><span class=\"key {}\"></span>{}</li>\n", stroke, escape(label));
  }
  return out.empty() ? "" : "<ul class=\"legend\">\n" + out + "</ul>\n";
}

std::string section(const Figure& figure, bool drawn) {
  std::string out = fmt::format("<section id=\"{}\"{}>\n<h2>{}</h2>\n", escape(figure.id),
                                figure.panels.size() > 6 ? " class=\"long\"" : "", escape(figure.title));
  if (!figure.caption.empty()) out += fmt::format("<p class=\"caption\">{}</p>\n", escape(figure.caption));
  if (drawn) {
    out += legend(figure);
    out += figure.panels.size() > 1 || figure.small ? "<div class=\"panels small\">\n" : "<div class=\"panels\">\n";
    for (const Panel& panel : figure.panels) {
      out += "<div class=\"panel\">";
      if (!panel.title.empty()) out += "<h3>" + escape(panel.title) + "</h3>";
      out += "<div class=\"chart\"></div></div>\n";
    }
    out += "</div>\n";
  }
  std::string caption = figure.title;
  if (figure.table.of > 0) {
    caption += fmt::format(": {} of {} rows; all of them: espalier report … --format json --figure {}",
                           figure.table.rows.size(), figure.table.of, figure.id);
  }
  out += fmt::format("<details class=\"data\"{}><summary>Table of {} rows</summary>\n", drawn ? "" : " open",
                     figure.table.rows.size());
  return out + html(figure.table, caption) + "</details>\n</section>\n";
}

/// For the script: everything but the tables. "<" can't end the element that holds it.
std::string payload(const std::vector<Figure>& figures) {
  Json out = Json::array();
  for (const Figure& figure : figures) {
    Json panels = Json::array();
    for (const Panel& panel : figure.panels) {
      const auto has = [&](const char* field) {
        return std::find(panel.fields.begin(), panel.fields.end(), field) != panel.fields.end();
      };
      Json p = {{"title", panel.title}, {"spec", panel.spec}, {"fields", panel.fields}, {"rows", panel.rows}};
      // Lines over one x: the pointer asks all of them at once.
      p["curves"] = has("run") && has("x") && has("y") && !has("time");
      panels.push_back(std::move(p));
    }
    out.push_back({{"id", figure.id}, {"title", figure.title}, {"series", figure.series}, {"panels", panels}});
  }
  const std::string json = out.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(json.size());
  for (const char c : json) {
    if (c == '<')
      safe += "\\u003c";
    else
      safe += c;
  }
  return safe;
}

std::string shape_text(const Json& shape) {
  std::string out;
  if (!shape.is_array()) return "-";
  for (const Json& size : shape) out += (out.empty() ? "" : "x") + size.dump();
  return out;
}

std::string count_text(double value) { return std::isfinite(value) ? fmt::format("{:.0f}", value) : "-"; }

/// summary.json's table of layers: how each was computed and what it costs.
std::string layer_tables(const std::vector<Run>& runs, const std::vector<RunGroup>& groups) {
  std::string out;
  std::size_t shown = 0;
  for (const RunGroup& g : groups) {
    const Run& run = runs[g.runs.front()];
    if (!run.summary.is_object() || !run.summary.contains("storage") || !run.summary["storage"].is_array()) continue;
    Table table;
    bool timed = false;
    for (const Json& row : run.summary["storage"]) timed = timed || (row.is_object() && row.contains("dense_us"));
    table.columns = {"layer", "shape", "path", "kept", "density", "multiply-accumulates"};
    if (timed) table.columns.insert(table.columns.end(), {"µs dense", "µs compressed"});
    for (const Json& row : run.summary["storage"]) {
      if (!row.is_object()) continue;
      const auto word = [&](const char* key) {
        const Json v = row.value(key, Json());
        return v.is_string() ? v.get<std::string>() : std::string("-");
      };
      const auto value = [&](const char* key) { return number_of(row.value(key, Json())); };
      const Layer* layer = run.layer(word("name"));
      const double weights = layer == nullptr ? 0 : static_cast<double>(layer->weights());
      std::vector<std::string> line = {
          word("name"),
          shape_text(row.value("shape", Json())),
          word("path"),
          count_text(value("nnz")),
          weights > 0 && std::isfinite(value("nnz")) ? fmt::format("{:.4f}", value("nnz") / weights) : "-",
          count_text(value("macs"))};
      if (timed) {
        for (const char* key : {"dense_us", "compressed_us"}) {
          line.push_back(std::isfinite(value(key)) ? fmt::format("{:.1f}", value(key)) : "-");
        }
      }
      table.rows.push_back(std::move(line));
    }
    const std::string caption = groups.size() == 1 ? "Layers" : "Layers of " + g.label;
    const std::string one = html(table, caption);
    out += shown++ < 1 ? one : "<details><summary>" + escape(caption) + "</summary>" + one + "</details>\n";
  }
  if (out.empty()) return out;
  return "<section id=\"layers\">\n<h2>Layers</h2>\n<p class=\"caption\">How each layer was computed, and what one "
         "sample costs it forward. "
         "Microseconds: measured before training where storage = \"auto\" chose the path.</p>\n" +
         out + "</section>\n";
}

void flat(const Json& value, const std::string& prefix, std::map<std::string, std::string>& out) {
  if (value.is_object()) {
    for (const auto& [key, inner] : value.items()) flat(inner, prefix.empty() ? key : prefix + "." + key, out);
  } else {
    out[prefix] =
        value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
}

/// Key, value; where runs differ, each value with the runs that have it.
Table side_by_side(const std::vector<Run>& runs, const std::vector<std::map<std::string, std::string>>& of_run,
                   bool only_differing) {
  Table table;
  table.columns = {"key", "value"};
  std::set<std::string> keys;
  for (const auto& values : of_run) {
    for (const auto& [key, value] : values) keys.insert(key);
  }
  for (const std::string& key : keys) {
    std::map<std::string, std::vector<std::size_t>> by_value;
    for (std::size_t r = 0; r < of_run.size(); ++r) {
      const auto at = of_run[r].find(key);
      by_value[at == of_run[r].end() ? "-" : at->second].push_back(r);
    }
    if (by_value.size() == 1) {
      if (!only_differing) table.rows.push_back({key, by_value.begin()->first});
      continue;
    }
    std::string cell;
    for (const auto& [value, of] : by_value) {
      cell += (cell.empty() ? "" : "; ") + value + " (" + runs[of.front()].name +
              (of.size() > 1 ? fmt::format(" and {} more", of.size() - 1) : "") + ")";
    }
    table.rows.push_back({key, cell});
  }
  return table;
}

std::string environment(const std::vector<Run>& runs) {
  std::vector<std::map<std::string, std::string>> values(runs.size());
  bool any = false;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    if (!runs[r].env.is_object()) continue;
    flat(runs[r].env, "", values[r]);
    any = true;
  }
  if (!any) return "";
  return "<section id=\"environment\">\n<h2>Environment</h2>\n" +
         html(side_by_side(runs, values, false), "From env.json of the runs") + "</section>\n";
}

std::string configuration(const std::vector<Run>& runs) {
  std::vector<std::map<std::string, std::string>> values;
  bool any = false;
  for (const Run& run : runs) {
    values.push_back(run.config);
    any = any || !run.config.empty();
  }
  if (!any) return "";
  std::string out = "<section id=\"configuration\">\n<h2>Configuration</h2>\n";
  if (runs.size() > 1) {
    const Table differing = side_by_side(runs, values, true);
    out += differing.rows.empty() ? "<p>The runs have one configuration.</p>\n"
                                  : html(differing, "Keys in which the runs differ");
  }
  return out + "<details><summary>All keys</summary>\n" +
         html(side_by_side(runs, values, false), "From config.toml of the runs") + "</details>\n</section>\n";
}

}  // namespace

std::string escape(const std::string& text) {
  // Through JSON, which knows what is UTF-8.
  const std::string whole =
      Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
  std::string out;
  for (const char c : whole) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default:
        // Control characters have no place in HTML; a line break is a space there.
        out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
    }
  }
  return out;
}

bool can_draw() { return !embedded_page().vega.empty() && !embedded_page().vega_lite.empty(); }

std::vector<std::pair<std::string, std::string>> renderer_files() {
  const EmbeddedPage& page = embedded_page();
  return {{"render.cjs", std::string(page.render)},
          {"node_modules/vega/index.js", std::string(page.vega)},
          {"node_modules/vega-lite/index.js", std::string(page.vega_lite)}};
}

std::string make_page(const std::vector<Run>& runs, const std::vector<RunGroup>& groups,
                      const std::vector<Figure>& figures, const std::string& program) {
  const EmbeddedPage& page = embedded_page();
  const bool drawn = can_draw();
  std::string names;
  for (const Run& run : runs) names += (names.empty() ? "" : ", ") + run.name;
  const std::string title =
      runs.size() == 1 ? runs.front().name
                       : fmt::format("{} runs{}", runs.size(),
                                     groups.size() < runs.size() ? fmt::format(" in {} groups", groups.size()) : "");
  std::string out = "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  // Nothing is fetched, ever; Vega compiles its expressions to functions.
  out +=
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline' 'unsafe-eval'\">\n";
  out += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  out += fmt::format(
      "<meta name=\"generator\" content=\"{}\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
      escape(program), escape(title) + " · Espalier", page.style);
  out += fmt::format("<h1>{}</h1>\n", escape(title));
  if (runs.size() > 1) out += fmt::format("<p class=\"quiet\">{}</p>\n", escape(names));

  std::string notes;
  for (const Run& run : runs) {
    for (const std::string& note : run.notes) {
      notes += "<li>" + escape(runs.size() > 1 ? run.name + ": " + note : note) + "</li>\n";
    }
  }
  if (!drawn) {
    notes +=
        "<li>This program was built without Vega: figures are shown as tables. scripts/bootstrap fetches it, then "
        "build again.</li>\n";
  }
  if (!notes.empty()) out += "<div class=\"notes\" role=\"note\"><ul>\n" + notes + "</ul></div>\n";

  out += html(
      facts(runs, groups),
      groups.size() < runs.size() ? "Means over the seeds ± half the width of their 95 % confidence interval" : "Facts",
      " class=\"facts\"", false);
  const std::string layers = layer_tables(runs, groups), config = configuration(runs), env = environment(runs);
  out += "<nav aria-label=\"Figures\">";
  for (const Figure& figure : figures)
    out += fmt::format("<a href=\"#{}\">{}</a> ", escape(figure.id), escape(figure.title));
  if (!layers.empty()) out += "<a href=\"#layers\">Layers</a> ";
  if (!config.empty()) out += "<a href=\"#configuration\">Configuration</a> ";
  if (!env.empty()) out += "<a href=\"#environment\">Environment</a>";
  out += "</nav>\n";
  if (figures.empty()) out += "<p>There is nothing to draw yet.</p>\n";
  for (const Figure& figure : figures) out += section(figure, drawn);
  out += layers + config + env;

  out += fmt::format("<footer><p>Made by {}.", escape(program));
  if (drawn) {
    out += fmt::format(
        " Drawn with Vega {} and Vega-Lite {}, BSD-3-Clause, which are in this "
        "page.</p>\n<details><summary>Licences</summary><pre>{}</pre></details>\n",
        page.vega_version, page.vega_lite_version, escape(std::string()) + [&] {
          std::string text;
          for (const char c : page.licences) {
            if (c == '<')
              text += "&lt;";
            else if (c == '&')
              text += "&amp;";
            else
              text += c;
          }
          return text;
        }());
  } else {
    out += "</p>\n";
  }
  out += "</footer>\n</main>\n";
  if (drawn && !figures.empty()) {
    out += fmt::format("<script type=\"application/json\" id=\"figures\">{}</script>\n", payload(figures));
    out += fmt::format("<script>{}</script>\n<script>{}</script>\n<script>\n{}</script>\n", page.vega, page.vega_lite,
                       page.script);
  }
  return out + "</body>\n</html>\n";
}

}  // namespace espalier::report
