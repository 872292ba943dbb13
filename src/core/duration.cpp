#include "espalier/core/duration.h"

#include <cmath>
#include <cstdlib>

#include "espalier/core/error.h"

namespace espalier {

Duration Duration::parse(const std::string& text) {
  const char* begin = text.c_str();
  char* end = nullptr;
  const double count = std::strtod(begin, &end);
  const std::string unit(end);
  const bool starts_with_digit = !text.empty() && (text[0] == '.' || (text[0] >= '0' && text[0] <= '9'));
  const bool number = end != begin && starts_with_digit && std::isfinite(count) && count >= 0;
  if (number && unit == "it" && std::floor(count) == count) return steps(count);
  if (number && unit == "ep") return epochs(count);
  if (number && unit == "%" && count <= 100) return percent(count);
  fail(ErrorKind::usage,
       "\"{}\" is not a duration; expected for example \"500it\" (steps), \"1.5ep\" (epochs) or "
       "\"25%\" (of the run, 0 to 100)",
       text);
}

std::string Duration::text() const {
  switch (unit_) {
    case Unit::steps: return fmt::format("{:.0f}it", count_);
    case Unit::epochs: return fmt::format("{}ep", count_);
    default: return fmt::format("{}%", count_);
  }
}

std::int64_t Duration::in_steps(const Clock& clock) const {
  double scale = 1;
  if (unit_ == Unit::epochs) {
    ESPALIER_CHECK(clock.steps_per_epoch > 0, ErrorKind::usage,
                   "\"{}\": the number of steps in an epoch is not known here; give the duration in steps (\"100it\")",
                   text());
    scale = static_cast<double>(clock.steps_per_epoch);
  } else if (unit_ == Unit::percent) {
    ESPALIER_CHECK(clock.total_steps > 0, ErrorKind::usage,
                   "\"{}\": the length of the run is not known here; give the duration in steps (\"100it\")", text());
    scale = static_cast<double>(clock.total_steps) / 100;
  }
  return std::llround(count_ * scale);
}

}  // namespace espalier
