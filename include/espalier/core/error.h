/// Errors: what went wrong, where, what was found, what was expected, what to do. The library throws
/// `Error` and nothing else for wrong input; it never prints, exits or aborts.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace espalier {

/// The kind of an error; the value is the exit status of the program.
enum class ErrorKind {
  failed = 1,    ///< the run failed
  usage = 2,     ///< command line or configuration
  data = 3,      ///< data missing or corrupt
  check = 4,     ///< a requested check did not hold
  diverged = 5,  ///< a loss or weight is not finite
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

/// Throws Error(kind) with an fmt-formatted message.
template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(kind, fmt::format(text, std::forward<Args>(args)...));
}

/// The known word nearest to `word` by edit distance, or "" if none is near enough to be a typing error.
template <class Words>
std::string nearest(const std::string& word, const Words& known);

/// Damerau-Levenshtein distance (adjacent transpositions count once).
std::size_t edit_distance(const std::string& a, const std::string& b);

/// " Did you mean "x"?" or "" — the tail of a message about an unknown word.
template <class Words>
std::string suggestion(const std::string& word, const Words& known) {
  const std::string near = nearest(word, known);
  return near.empty() ? "" : " Did you mean \"" + near + "\"?";
}

template <class Words>
std::string nearest(const std::string& word, const Words& known) {
  std::string best;
  std::size_t best_distance = word.size() < 4 ? 2 : word.size() / 3 + 2;  // exclusive bound
  for (const std::string& candidate : known) {
    const std::size_t common = std::min(word.size(), candidate.size());
    const bool prefix = common >= 2 && word.compare(0, common, candidate, 0, common) == 0;  // "erdos" for "er"
    const std::size_t d = prefix ? 1 : edit_distance(word, candidate);
    if (d < best_distance) {
      best = candidate;
      best_distance = d;
    }
  }
  return best;
}

}  // namespace espalier

/// Throws espalier::Error of the given kind unless `condition` holds. The rest is an fmt format and its arguments.
#define ESPALIER_CHECK(condition, kind, ...)                 \
  do {                                                       \
    if (!(condition)) ::espalier::fail((kind), __VA_ARGS__); \
  } while (false)

/// A broken internal promise: a bug of ours, never the user's fault. Always on: none is in a hot loop.
#define ESPALIER_ASSERT(condition)                                                                                  \
  do {                                                                                                              \
    if (!(condition))                                                                                               \
      ::espalier::fail(::espalier::ErrorKind::failed, "internal error: {} does not hold ({}:{}); please report it", \
                       #condition, __FILE__, __LINE__);                                                             \
  } while (false)
