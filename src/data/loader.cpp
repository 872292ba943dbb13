#include "espalier/data/loader.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "data/first_error.h"
#include "espalier/core/error.h"
#include "espalier/core/random.h"

namespace espalier::data {
namespace {

constexpr std::int64_t kPad = 4;  // the usual augmentation of CIFAR (He et al. 2016, section 4.2)

/// Where a sample is cut from its padded image, and whether it is mirrored afterwards.
struct Cut {
  std::int64_t dy = 0, dx = 0;  // -kPad .. kPad
  bool mirror = false;
};

Cut draw_cut(const RandomStream& stream, std::int64_t sample, bool crop, bool flip) {
  const std::uint64_t r = stream.bits_at(static_cast<std::uint64_t>(sample));
  const auto offset = [](std::uint64_t bits31) {
    return static_cast<std::int64_t>((bits31 * (2 * kPad + 1)) >> 31) - kPad;
  };
  Cut cut;
  if (crop) {
    cut.dy = offset(r & 0x7fffffff);
    cut.dx = offset((r >> 31) & 0x7fffffff);
  }
  cut.mirror = flip && (r >> 63) != 0;
  return cut;
}

void convert(const std::uint8_t* in, float* out, std::int64_t n, float scale, float shift) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]) * scale + shift;
}

void convert_mirrored(const std::uint8_t* in, float* out, std::int64_t n, float scale, float shift) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[n - 1 - i]) * scale + shift;
}

/// out(y, x) = in(y + dy, x + dx), black outside, then mirrored if asked for.
void convert_cut(const std::uint8_t* in, float* out, std::int64_t height, std::int64_t width, const Cut& cut,
                 float scale, float shift) {
  // Columns [first, last) of the cut, before mirroring, come from the image.
  const std::int64_t first = std::clamp<std::int64_t>(-cut.dx, 0, width);
  const std::int64_t last = std::clamp<std::int64_t>(width - cut.dx, first, width);
  const std::int64_t left = cut.mirror ? width - last : first;
  const auto copy = cut.mirror ? convert_mirrored : convert;
  for (std::int64_t y = 0; y < height; ++y, out += width) {
    const std::int64_t row = y + cut.dy;
    if (row < 0 || row >= height || first == last) {
      std::fill(out, out + width, shift);
      continue;
    }
    std::fill(out, out + left, shift);
    copy(in + row * width + first + cut.dx, out + left, last - first, scale, shift);
    std::fill(out + left + (last - first), out + width, shift);
  }
}

// --- images that are read when they are needed
// ---------------------------------------------------------------------------------------------------

/// What is evaluated: the middle 224/256 of the shorter side, square (Krizhevsky et al. 2012; He et al. 2016).
Region middle(std::int64_t width, std::int64_t height) {
  const std::int64_t shorter = std::min(width, height);
  const auto side = std::max<std::int64_t>(1, std::llround(0.875 * static_cast<double>(shorter)));
  return {(width - side) / 2, (height - side) / 2, side, side};
}

/// What is trained on: 8 to 100 % of the image, 3:4 to 4:3 (Szegedy et al. 2015, section 6); after ten draws that do
/// not fit, the largest part in the middle that has such a form.
Region random_part(std::int64_t width, std::int64_t height, RandomStream& random) {
  constexpr double kLeast = 0.08, kForm = 4.0 / 3;
  const auto w = static_cast<double>(width), h = static_cast<double>(height);
  for (int draw = 0; draw < 10; ++draw) {
    const double area = w * h * random.uniform(kLeast, 1);
    const double form = std::exp(random.uniform(-std::log(kForm), std::log(kForm)));
    Region part;
    part.width = std::llround(std::sqrt(area * form));
    part.height = std::llround(std::sqrt(area / form));
    if (part.width < 1 || part.height < 1 || part.width > width || part.height > height) continue;
    part.left = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(width - part.width + 1)));
    part.top = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(height - part.height + 1)));
    return part;
  }
  Region part{0, 0, width, height};
  if (w / h < 1 / kForm) part.height = std::llround(w * kForm);
  if (w / h > kForm) part.width = std::llround(h * kForm);
  part.left = (width - part.width) / 2;
  part.top = (height - part.height) / 2;
  return part;
}

}  // namespace

torch::Tensor read_middle(const Images& images, std::int64_t index) {
  return images.source->read(index, images.side, middle);
}

Loader::Loader(Images images, std::vector<std::int64_t> indices, Normalisation normalisation, LoaderOptions options)
    : images_(std::move(images)), options_(std::move(options)) {
  const bool in_memory =
      images_.pixels.defined() && images_.pixels.dim() == 4 && images_.pixels.scalar_type() == torch::kUInt8;
  ESPALIER_CHECK((images_.source ? images_.side >= 1 : in_memory) && images_.labels.defined() &&
                     images_.labels.dim() == 1 && images_.labels.scalar_type() == torch::kInt64 &&
                     images_.labels.size(0) == (images_.source ? images_.source->size() : images_.pixels.size(0)),
                 ErrorKind::usage,
                 "loader: expected pixels uint8 [N, C, H, W] or a source with a side, and labels int64 [N]");
  if (!images_.source) images_.pixels = images_.pixels.contiguous();
  images_.labels = images_.labels.contiguous();
  if (images_.order.defined()) {
    ESPALIER_CHECK(!images_.source, ErrorKind::usage, "loader: an order of pixels needs images in memory");
    const std::int64_t plane = images_.pixels.size(2) * images_.pixels.size(3);
    ESPALIER_CHECK(images_.order.numel() == plane, ErrorKind::usage,
                   "loader: an order of {} places for images of {} pixels", images_.order.numel(), plane);
  }
  ESPALIER_CHECK(options_.batch_size >= 1, ErrorKind::usage, "loader: batch size {}, expected at least 1",
                 options_.batch_size);
  for (const std::int64_t i : indices) {
    ESPALIER_CHECK(i >= 0 && i < images_.size(), ErrorKind::usage, "loader: index {} of {} images", i, images_.size());
  }
  crop_ = options_.augment == "crop" || options_.augment == "crop-flip";
  part_ = options_.augment == "imagenet";
  flip_ = options_.augment == "flip" || options_.augment == "crop-flip" || part_;
  ESPALIER_CHECK(crop_ || flip_ || options_.augment == "none", ErrorKind::usage,
                 "augment = \"{}\": unknown value. Known: none, crop, flip, crop-flip, imagenet.", options_.augment);
  ESPALIER_CHECK(!crop_ || !images_.source, ErrorKind::usage,
                 "augment = \"{}\" cuts images of one size out of their border; those that are resized "
                 "(data.image_size) take \"imagenet\", \"flip\" or \"none\"",
                 options_.augment);
  ESPALIER_CHECK(!part_ || images_.source, ErrorKind::usage,
                 "augment = \"imagenet\" takes a part of an image and resizes it: set data.image_size to the size that "
                 "the network is to see (224)");
  const auto channels = static_cast<std::size_t>(images_.shape()[0]);
  ESPALIER_CHECK(normalisation.mean.size() == channels && normalisation.std.size() == channels, ErrorKind::usage,
                 "loader: normalisation of {} means and {} deviations for {} channels", normalisation.mean.size(),
                 normalisation.std.size(), channels);
  for (std::size_t c = 0; c < channels; ++c) {
    const double mean = normalisation.mean[c], std = normalisation.std[c];
    ESPALIER_CHECK(std::isfinite(mean) && std::isfinite(std) && std > 0, ErrorKind::usage,
                   "loader: channel {} has mean {} and deviation {}, expected finite and above 0", c, mean, std);
    scale_.push_back(static_cast<float>(1 / (255 * std)));
    shift_.push_back(static_cast<float>(-mean / std));
  }
  indices_ = std::make_shared<const std::vector<std::int64_t>>(std::move(indices));
}

std::int64_t Loader::size() const { return static_cast<std::int64_t>(indices_->size()); }

std::int64_t Loader::batches_per_epoch() const {
  return (size() + (options_.drop_last ? 0 : options_.batch_size - 1)) / options_.batch_size;
}

Loader::Order Loader::order_of(std::int64_t epoch) const {
  if (!options_.shuffle) return indices_;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (shuffled_epoch_ != epoch) {
    std::vector<std::int64_t> order =
        random_permutation(size(), RandomStream(options_.seed, Purpose::shuffle, static_cast<std::uint64_t>(epoch)));
    for (std::int64_t& position : order) position = (*indices_)[static_cast<std::size_t>(position)];
    shuffled_ = std::make_shared<const std::vector<std::int64_t>>(std::move(order));
    shuffled_epoch_ = epoch;
  }
  return shuffled_;
}

Batch Loader::batch(std::int64_t epoch, std::int64_t index) const {
  ESPALIER_CHECK(epoch >= 0 && index >= 0 && index < batches_per_epoch(), ErrorKind::usage,
                 "loader: batch {} of epoch {}, but an epoch has {}", index, epoch, batches_per_epoch());
  const Order order = order_of(epoch);
  const std::int64_t begin = index * options_.batch_size;
  const std::int64_t count = std::min(options_.batch_size, size() - begin);
  const std::int64_t* samples = order->data() + begin;

  const auto shape = images_.shape();
  const std::int64_t channels = shape[0], height = shape[1], width = shape[2];
  const std::int64_t plane = height * width, image = channels * plane;
  Batch batch{torch::empty({count, channels, height, width}, torch::kFloat32), torch::empty({count}, torch::kInt64)};
  const std::int64_t* labels_in = images_.labels.data_ptr<std::int64_t>();
  float* out = batch.images.data_ptr<float>();
  std::int64_t* labels_out = batch.labels.data_ptr<std::int64_t>();
  const RandomStream stream(options_.seed, Purpose::augment, static_cast<std::uint64_t>(epoch));

  if (images_.source) {
    read_into(batch, samples, epoch);
    return batch;
  }
  const std::uint8_t* in = images_.pixels.data_ptr<std::uint8_t>();

  // A thread gets at least 512 KiB of pixels, about 0.3 ms of work: a thread's wake-up costs a small batch more than it
  // brings, and on a busy machine far more (128 images of MNIST: 45,000 samples/s by two threads, 780,000 by one).
  const std::int64_t grain = std::max<std::int64_t>(1, (512 << 10) / image);
  at::parallel_for(0, count, grain, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t k = from; k < to; ++k) {
      const std::int64_t sample = samples[k];
      labels_out[k] = labels_in[sample];
      const Cut cut = crop_ || flip_ ? draw_cut(stream, sample, crop_, flip_) : Cut{};
      for (std::int64_t c = 0; c < channels; ++c) {
        const std::uint8_t* source = in + sample * image + c * plane;
        float* target = out + k * image + c * plane;
        const float scale = scale_[static_cast<std::size_t>(c)], shift = shift_[static_cast<std::size_t>(c)];
        if (crop_ || flip_) {
          convert_cut(source, target, height, width, cut, scale, shift);
        } else {
          convert(source, target, plane, scale, shift);
        }
      }
    }
  });
  if (images_.order.defined()) {
    batch.images =
        batch.images.view({count, channels, plane}).index_select(2, images_.order).view(batch.images.sizes());
  }
  return batch;
}

void Loader::read_into(Batch& batch, const std::int64_t* samples, std::int64_t epoch) const {
  const auto* labels = images_.labels.data_ptr<std::int64_t>();
  const std::int64_t channels = batch.images.size(1), plane = images_.side * images_.side;
  auto* out = batch.images.data_ptr<float>();
  FirstError first_error;
  at::parallel_for(0, batch.size(), 1, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t k = from; k < to && !first_error.before(k); ++k) {
      try {
        const std::int64_t sample = samples[k];
        batch.labels.data_ptr<std::int64_t>()[k] = labels[sample];
        RandomStream random(options_.seed, Purpose::augment, static_cast<std::uint64_t>(epoch),
                            static_cast<std::uint64_t>(sample));
        const bool mirror = flip_ && random.below(2) == 1;
        const torch::Tensor image =
            part_ ? images_.source->read(sample, images_.side,
                                         [&](std::int64_t w, std::int64_t h) { return random_part(w, h, random); })
                  : read_middle(images_, sample);
        const auto* in = image.data_ptr<float>();
        for (std::int64_t c = 0; c < channels; ++c) {
          const float scale = scale_[static_cast<std::size_t>(c)], shift = shift_[static_cast<std::size_t>(c)];
          for (std::int64_t y = 0; y < images_.side; ++y) {
            const float* row = in + c * plane + y * images_.side;
            float* target = out + (k * channels + c) * plane + y * images_.side;
            for (std::int64_t x = 0; x < images_.side; ++x) {
              target[x] = row[mirror ? images_.side - 1 - x : x] * scale + shift;
            }
          }
        }
      } catch (...) {
        first_error.add(k, std::current_exception());
      }
    }
  });
  first_error.rethrow();
}

}  // namespace espalier::data
