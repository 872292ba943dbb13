/// Figures: what is drawn, the numbers behind it, and both as text.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "espalier/report/groups.h"
#include "espalier/report/run.h"

namespace espalier::report {

/// Rows of text under headings.
struct Table {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  std::size_t of = 0;  ///< rows that there would be, if these are a choice; 0: these are all
};

/// One frame of a figure: a Vega-Lite specification without its data, width and title, and the data.
struct Panel {
  std::string title;
  Json spec;
  std::vector<std::string> fields;  ///< names of the columns of `rows`
  Json rows = Json::array();        ///< arrays of numbers, texts and nulls; "run" is a place in Figure::series
};

struct Figure {
  std::string id;  ///< for the command line and the page: "loss"
  std::string title;
  std::string caption;                                       ///< what is to be seen, one or two sentences
  std::vector<std::string> series;                           ///< colours, in their order
  std::vector<std::pair<std::string, std::string>> strokes;  ///< legend of dashes: label, "solid" or "dashed"
  std::vector<Panel> panels;
  bool small = false;  ///< many small panels beside one another
  Table table;         ///< the numbers for those who can't see, or want to read, the figure
};

struct FigureOptions {
  enum class Axis { automatic, step, epoch };
  Axis axis = Axis::automatic;  ///< automatic: epochs if all runs tell how many steps they have
};

/// Every figure for which these runs have data.
std::vector<Figure> make_figures(const std::vector<Run>& runs, const std::vector<RunGroup>& groups,
                                 const FigureOptions& options = {});

/// A figure as one Vega-Lite document with its data, for any program that draws such: panels beside one another,
/// legends drawn, colours for paper.
Json vega_lite(const Figure& figure);

}  // namespace espalier::report
