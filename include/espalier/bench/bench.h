/// Times sparse layers beside the dense ones of the same machine, honestly: every result is verified before it is
/// timed, candidates take turns within a run, and figures are medians with their quartiles.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "espalier/kernels/compressed.h"

namespace espalier::bench {

struct Candidate {
  std::string name;
  std::function<void()> run;
};

/// Microseconds of one run: the median of those timed, and quartiles.
struct Timing {
  double median = 0, low = 0, high = 0;
  int timed = 0;
};

/// How often a candidate runs when it is its turn: first untimed, then timed, each at least so often and so long.
struct Turn {
  int untimed = 1, timed = 1;
  double seconds = 0;
};
/// Training repeats one step. Caches, pages and TLB that another candidate left take many steps to be what they are in
/// training: 4096-wide layers at 99 % took 4.6, 3.9, 3.6, 3.55 milliseconds after a dense step, and 3.44 from the
/// twentieth on.
constexpr Turn kStepTurn{2, 2, 0.2};

/// Rounds for about `seconds` a candidate, until five runs of each are timed, and three at least: other work on a
/// machine comes and goes by seconds. In a round each candidate has a turn, in which a run to be timed is repeated as
/// often as fills two milliseconds.
std::vector<Timing> measure(const std::vector<Candidate>& candidates, double seconds, Turn turn = {});

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
  std::vector<std::string> beside;      ///< the peers that dense_us is not chosen from: sparse, masked, Winograd
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

struct ConvCase {
  kernels::ConvShape shape;
  std::int64_t height = 0, width = 0;  ///< of the images, in pixels
  std::int64_t batch = 0;
  double sparsity = 0;
  int threads = 1;
};

/// "64x128@32": 64 to 128 channels on images of 32x32 pixels ("@24x32": height x width), kernel 3x3, stride 1, padding
/// that keeps the size. What differs follows after colons: k (kernel), s (stride), p (padding), d (dilation), g
/// (groups), e.g. "64x128@32:k5:s2". `where` begins the message of Error(usage), e.g. "--shape".
ConvCase conv_case(const std::string& text, const std::string& where);
/// The same text back, without what goes without saying. Kernels and the like must be square.
std::string to_text(const ConvCase& c);

/// Kernel to kernel: images in, images out. Rows as for linear layers. Peers: oneDNN direct with free layouts (reorders
/// are not counted), LibTorch's conv2d in both memory formats; beside them oneDNN's Winograd forward where it has one.
std::vector<Row> bench_conv_kernels(const ConvCase& c, double seconds, std::uint64_t seed);

/// The layer as a user calls it, [N, in, H, W] -> [N, out, H', W'], conversion and autograd included. Rows "forward"
/// and "step". Peers: LibTorch's Conv2d in both memory formats; beside them the same masked (w * mask in the graph).
std::vector<Row> bench_conv_layer(const ConvCase& c, double seconds, std::uint64_t seed);

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

struct ModelCase {
  std::string model;                                ///< a name that nn::make_model knows
  std::vector<std::int64_t> widths;                 ///< of "mlp": inputs, hidden layers, outputs
  std::array<std::int64_t, 3> image = {3, 32, 32};  ///< of the others: channels, height, width; 10 classes
  std::int64_t batch = 64;
  double sparsity = 0;
  int threads = 1;
  std::string optimizer = "sgd";       ///< as above
  std::int64_t rewire_every = 0;       ///< as above
  bool step = true, inference = true;  ///< which rows
};

/// A model of the program with every weight layer at the same sparsity, the first and the last one too, in compressed
/// storage. Rows "inference" (evaluation mode, no gradients) and "step" (data, forward, loss, backward, update), and
/// those of a change of topology. Peers: the same model dense in this program, and under plain LibTorch in
/// channels_last where it has convolutions; beside them the same in masked storage.
///
/// Verified first, against the same model in masked storage in double precision: logits, and the first step's change of
/// the weights, may be off by at most 16 times what masked storage in float32 is off (in norm; the factor is for sums
/// in another order).
std::vector<Row> bench_model(const ModelCase& c, double seconds, std::uint64_t seed);

/// The sparsity at which `pass` of these rows, alike in all else, crosses a speed-up of one: between the two nearest by
/// straight line. Nothing where it crosses nowhere among them.
std::optional<double> break_even(const std::vector<Row>& rows, const std::string& pass);

}  // namespace espalier::bench
