/// Times sparse layers beside the dense ones of the same machine, honestly: every result is verified before it is
/// timed, candidates take turns within a run, and figures are medians with their quartiles.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace espalier::bench {

struct Candidate {
  std::string name;
  std::function<void()> run;
};

/// Microseconds of one run: the median over rounds, and quartiles.
struct Timing {
  double median = 0, low = 0, high = 0;
  int rounds = 0;
};

/// Rounds for about `seconds` a candidate (at least five). In a round each candidate runs in turn, as often in a row as
/// fills two milliseconds, after one run that is not timed.
std::vector<Timing> measure(const std::vector<Candidate>& candidates, double seconds);

/// Multiply-adds a second that this machine sustains from registers, in float32, with the kernels' instruction set.
double peak_flops(int threads);

struct Row {
  std::string level, what, shape, pass, isa;
  std::int64_t batch = 0;
  double sparsity = 0;
  int threads = 1;
  Timing sparse;
  double dense_us = 0;                  ///< the fastest dense path
  std::string dense_path;               ///< its name
  std::map<std::string, double> peers;  ///< microseconds of every other path
  double sparse_gflops = 0;             ///< stored entries only
  double dense_equivalent_gflops = 0;
  double peak_share = 0;  ///< sparse_gflops of the measured peak
  double error = 0;       ///< largest deviation from the reference, as a share of its bound
  double speedup() const { return dense_us / sparse.median; }
};

struct LinearCase {
  std::int64_t in = 0, out = 0, batch = 0;
  double sparsity = 0;
  int threads = 1;
};

/// Kernel to kernel: tiles in, tiles out. Rows for "forward", "backward" (input and value gradients) and "step" (both).
/// Peers: oneDNN's matrix product on both layouts, LibTorch's (whatever BLAS it found).
std::vector<Row> bench_linear_kernels(const LinearCase& c, double seconds, std::uint64_t seed);

/// The layer as a user calls it, [N, in] -> [N, out], conversion and autograd included.
/// Peers: LibTorch's Linear, the same masked (w * mask in the graph), LibTorch's CSR product (forward only).
std::vector<Row> bench_linear_layer(const LinearCase& c, double seconds, std::uint64_t seed);

struct StepCase {
  std::vector<std::int64_t> widths;  ///< inputs, hidden layers, outputs
  std::int64_t batch = 128;
  double sparsity = 0;
  int threads = 1;
  std::string optimizer = "sgd";  ///< with momentum 0.9; or "adam"
  std::int64_t rewire_every = 0;  ///< steps between topology changes (30 % of the smallest, regrown at random); 0: none
};

/// A whole training step of an MLP through the public API: forward, loss, backward, update.
/// Peers: LibTorch masked dense (gradients and weights times a float mask), LibTorch dense.
std::vector<Row> bench_step(const StepCase& c, double seconds, std::uint64_t seed);

/// The sparsity at which `pass` of these rows, alike in all else, crosses a speed-up of one: between the two nearest by
/// straight line. Nothing where it crosses nowhere among them.
std::optional<double> break_even(const std::vector<Row>& rows, const std::string& pass);

}  // namespace espalier::bench
