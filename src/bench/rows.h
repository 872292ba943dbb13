// What all benchmarks do with a row: verify it, time it, and set dense paths beside it. Private to bench/.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "espalier/bench/bench.h"

namespace espalier::bench {

/// n u / (1 - n u), u = 2^-24: a sum of n products in float32, in any order, is off by at most this share of
/// sum |a| |b| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
double rounding(double n);

/// Largest |found - reference| as a share of `bound`; nothing may be off where the bound is 0.
double error_share(const at::Tensor& found, const at::Tensor& reference, const at::Tensor& bound);

/// Notes the error of a pass. Throws Error(check) for one above the bound: call it before anything is timed.
void verified(Row& row, double error);

/// The sparse side's time for so many multiply-adds of stored entries, and of a dense weight.
void add_sparse(Row& row, const Timing& timing, double stored_products, double dense_products);

/// Values in canonical order as a dense tensor of `sizes`, zeros where nothing is kept.
at::Tensor scattered(const kernels::Compressed& matrix, const at::Tensor& values, at::IntArrayRef sizes);

struct Named {
  std::string path;
  double us;
};

/// The fastest of several dense ways to do all of the row's work becomes its dense_us.
void add_dense(Row& row, const std::vector<Named>& ways);
/// A peer that dense_us does not choose from.
void add_beside(Row& row, const Named& peer);

}  // namespace espalier::bench
