#include "espalier/bench/bench.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "espalier/kernels/dispatch.h"

namespace espalier::bench {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

constexpr double kSampleMicroseconds = 2000;
constexpr std::size_t kLeastTimed = 5, kLeastRounds = 3;

double quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto i = static_cast<std::size_t>(at);
  const double next = i + 1 < sorted.size() ? sorted[i + 1] : sorted[i];
  return sorted[i] + (at - static_cast<double>(i)) * (next - sorted[i]);
}

}  // namespace

std::vector<Timing> measure(const std::vector<Candidate>& candidates, double seconds, Turn turn) {
  std::vector<int> repeats;
  for (const Candidate& c : candidates) {
    c.run();  // first touches, caches of libraries
    const auto start = Clock::now();
    c.run();
    repeats.push_back(static_cast<int>(std::clamp(kSampleMicroseconds / microseconds_since(start), 1.0, 1e5)));
  }
  std::vector<std::vector<double>> samples(candidates.size());
  const auto begin = Clock::now();
  const double budget = seconds * 1e6 * static_cast<double>(candidates.size());
  for (std::size_t round = 0;
       round < kLeastRounds || samples[0].size() < kLeastTimed || microseconds_since(begin) < budget; ++round) {
    for (std::size_t k = 0; k < candidates.size(); ++k) {
      const std::size_t i = (k + round) % candidates.size();
      const auto each = [&](int times, const auto& f) {
        const auto since = Clock::now();
        for (int n = 0; n < times || microseconds_since(since) < turn.seconds * 1e6; ++n) f();
      };
      each(turn.untimed, candidates[i].run);
      each(turn.timed, [&] {
        const auto start = Clock::now();
        for (int r = 0; r < repeats[i]; ++r) candidates[i].run();
        samples[i].push_back(microseconds_since(start) / repeats[i]);
      });
    }
  }
  std::vector<Timing> timings;
  for (auto& s : samples) {
    std::sort(s.begin(), s.end());
    timings.push_back({quantile(s, 0.5), quantile(s, 0.25), quantile(s, 0.75), static_cast<int>(s.size())});
  }
  return timings;
}

double peak_flops(int threads) {
  constexpr std::int64_t kRounds = 2'000'000;
  std::int64_t done = 0;
  const auto run = [&] {
    std::vector<std::int64_t> each(static_cast<std::size_t>(threads));
    at::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        each[static_cast<std::size_t>(t)] = kernels::active().multiply_adds(kRounds / 10);
      }
    });
    done = 0;
    for (const auto n : each) done += n;
  };
  const Timing timing = measure({{"peak", run}}, 0.2)[0];
  return 2 * static_cast<double>(done) / (timing.median * 1e-6);
}

std::optional<double> break_even(const std::vector<Row>& rows, const std::string& pass) {
  std::vector<std::pair<double, double>> points;  // sparsity, speed-up
  for (const Row& r : rows)
    if (r.pass == pass) points.emplace_back(r.sparsity, r.speedup());
  std::sort(points.begin(), points.end());
  // From the sparsest side: the last place where the sparse path is still slower.
  for (std::size_t i = points.size(); i-- > 1;) {
    const auto [s0, v0] = points[i - 1];
    const auto [s1, v1] = points[i];
    if (v0 < 1 && v1 >= 1) return s0 + (1 - v0) / (v1 - v0) * (s1 - s0);
  }
  return std::nullopt;
}

}  // namespace espalier::bench
