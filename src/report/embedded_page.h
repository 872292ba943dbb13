/// What a page is made with, compiled in: src/report/page and the packages of its lock file.
#pragma once

#include <string_view>

namespace espalier::report {

struct EmbeddedPage {
  std::string_view style, script;    ///< page.css, page.js
  std::string_view render;           ///< render.cjs, for node
  std::string_view vega, vega_lite;  ///< empty if the packages were not there when the program was built
  std::string_view vega_version, vega_lite_version;
  std::string_view licences;  ///< texts of both
};

const EmbeddedPage& embedded_page();

}  // namespace espalier::report
