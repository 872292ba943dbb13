// How fast the data path feeds a model that does nothing: samples per second of Loader::batch, per augmentation.
// Usage: bench_data [DATA_SET [ROOT]] (default: glyphs). Median of nine epochs, threads as torch sees them. On
// a machine that does other work besides, the rate per CPU second with one thread (OMP_NUM_THREADS=1) is the one to
// read.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <numeric>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/data/dataset.h"
#include "espalier/data/loader.h"

namespace {

using namespace espalier::data;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }  // of all threads

void measure(const Dataset& set, std::int64_t batch_size, const std::string& augment) {
  DataOptions options;
  std::vector<std::int64_t> indices(static_cast<std::size_t>(set.train.size()));
  std::iota(indices.begin(), indices.end(), 0);
  LoaderOptions loader_options;
  loader_options.batch_size = batch_size;
  loader_options.shuffle = true;
  loader_options.augment = augment;
  const Loader loader(set.train, indices, normalisation(set.train, indices, options), loader_options);
  std::vector<double> rates, cpu_rates;
  for (std::int64_t epoch = 0; epoch < 9; ++epoch) {
    const double start = seconds(), cpu_start = cpu_seconds();
    std::int64_t samples = 0;
    for (std::int64_t b = 0; b < loader.batches_per_epoch(); ++b) samples += loader.batch(epoch, b).size();
    rates.push_back(static_cast<double>(samples) / (seconds() - start));
    cpu_rates.push_back(static_cast<double>(samples) / (cpu_seconds() - cpu_start));
  }
  std::sort(rates.begin(), rates.end());
  std::sort(cpu_rates.begin(), cpu_rates.end());
  fmt::print(
      "{} batch {} augment {} threads {}: {:.0f} samples/s (lowest {:.0f}, highest {:.0f}), {:.0f} per CPU second\n",
      set.name, batch_size, augment, at::get_num_threads(), rates[4], rates.front(), rates.back(), cpu_rates[4]);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    espalier::set_log_sink([](espalier::LogLevel, const std::string& text) { fmt::print(stderr, "{}\n", text); });
    DataOptions options;
    if (argc > 1) options.name = argv[1];
    if (argc > 2) options.root = argv[2];
    const double start = seconds();
    const Dataset set = load_dataset(options, 1);
    const double took = seconds() - start;
    fmt::print("{}: {} training and {} test images in {:.2f} s ({:.0f} images/s)\n", set.name, set.train.size(),
               set.test.size(), took, static_cast<double>(set.train.size() + set.test.size()) / took);
    for (const char* augment : {"none", "flip", "crop-flip"}) measure(set, 128, augment);
  } catch (const espalier::Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return static_cast<int>(e.kind());
  }
  return 0;
}
