/// One data set as many tasks: the views that benchmarks of continual learning are made of. Pixels are copied only
/// where they change.
#pragma once

#include <cstdint>

#include "espalier/data/images.h"

namespace espalier::data {

/// Task `number` (from 1) of the permuted sequence: every image with its pixels in one random order, the same in every
/// channel. Task 1 is the data set as it is; the order of any other depends on (seed, number) alone.
Dataset permuted(Dataset set, std::uint64_t seed, std::int64_t number);

/// Every image turned anticlockwise about its centre, bilinear between pixels, black from outside. Multiples of 90
/// degrees move square images exactly.
Dataset rotated(Dataset set, double degrees);

/// The images of the classes first .. first + count - 1, their labels counted from 0. Throws Error(usage) if the data
/// set has no such classes.
Dataset of_classes(const Dataset& set, std::int64_t first, std::int64_t count);

/// Images of `height` x `width` with `channels`: smaller ones stand in the middle of black, one channel is repeated.
/// Throws Error(usage) for images that are larger, or have another number of channels.
Dataset fitted(Dataset set, std::int64_t channels, std::int64_t height, std::int64_t width);

}  // namespace espalier::data
