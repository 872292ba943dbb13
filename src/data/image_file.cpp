#include "data/image_file.h"

#include <png.h>

#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>

// jpeglib.h needs size_t and FILE declared before it.
#include <jpeglib.h>
// After it.
#include <jerror.h>
#include <torch/torch.h>

#include <algorithm>
#include <utility>

#include "espalier/core/error.h"
#include "espalier/data/images.h"

// libpng and libjpeg report errors by longjmp. The functions that may jump (png_open, png_pixels, jpeg_open,
// jpeg_pixels) therefore own no object with a destructor: what they fill lives in their caller, and the libraries' own
// memory in a struct whose destructor frees it.

namespace espalier::data {
namespace {

std::string shape_text(const ImageShape& s) {
  return fmt::format("{}x{} {}", s.width, s.height, s.channels == 1 ? "grey" : "RGB");
}

void check_shape(const std::string& name, const ImageShape& shape, const ImageShape* expected) {
  ESPALIER_CHECK(shape.width >= 1 && shape.height >= 1 && shape.width <= kMaxImageSide && shape.height <= kMaxImageSide,
                 ErrorKind::data, "{}: {} pixels, expected sides of 1 to {}", name, shape_text(shape), kMaxImageSide);
  ESPALIER_CHECK(expected == nullptr || shape == *expected, ErrorKind::data,
                 "{}: {}, expected {} like the first image; all images of a set have one size and one colour form",
                 name, shape_text(shape), shape_text(*expected));
}

// --- PNG ------------------------------------------------------------------------------------------------------------

struct Png {
  png_structp png = nullptr;
  png_infop info = nullptr;
  const std::uint8_t* next = nullptr;
  std::size_t left = 0;
  std::jmp_buf jump;
  char message[256] = "";
  std::uint32_t width = 0, height = 0;
  int depth = 0, colour = 0;
  bool transparent = false;
  bool to_rgb = false;  // whatever it is
  ~Png() { png_destroy_read_struct(&png, &info, nullptr); }
};

void png_failed(png_structp png, png_const_charp text) {
  auto* p = static_cast<Png*>(png_get_error_ptr(png));
  std::snprintf(p->message, sizeof p->message, "%s", text);
  std::longjmp(p->jump, 1);
}

// What libpng only warns of (a damaged text chunk, an unknown profile) does not touch the pixels.
void png_ignore(png_structp, png_const_charp) {}

void png_take(png_structp png, png_bytep out, std::size_t n) {
  auto* p = static_cast<Png*>(png_get_io_ptr(png));
  if (n > p->left) png_error(png, "the file is truncated");
  std::memcpy(out, p->next, n);
  p->next += n;
  p->left -= n;
}

bool png_open(Png& p) {
  if (setjmp(p.jump) != 0) return false;
  p.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &p, &png_failed, &png_ignore);
  if (p.png == nullptr) return false;
  p.info = png_create_info_struct(p.png);
  if (p.info == nullptr) return false;
  png_set_read_fn(p.png, &p, &png_take);
  // Larger sides than ours pass here, so that the message on them is ours.
  png_set_user_limits(p.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
  png_set_chunk_malloc_max(p.png, png_alloc_size_t{1} << 23);
  png_read_info(p.png, p.info);
  p.width = png_get_image_width(p.png, p.info);
  p.height = png_get_image_height(p.png, p.info);
  p.depth = png_get_bit_depth(p.png, p.info);
  p.colour = png_get_color_type(p.png, p.info);
  p.transparent = (p.colour & PNG_COLOR_MASK_ALPHA) != 0 || png_get_valid(p.png, p.info, PNG_INFO_tRNS) != 0;
  return true;
}

bool png_pixels(Png& p, std::uint8_t** rows, std::size_t row_bytes) {
  if (setjmp(p.jump) != 0) return false;
  if (p.colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(p.png);
  if (p.to_rgb) {
    if (p.depth == 16) png_set_scale_16(p.png);
    if (p.transparent) png_set_strip_alpha(p.png);
    if ((p.colour & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(p.png);
  }
  if (p.colour == PNG_COLOR_TYPE_GRAY && p.depth < 8) png_set_expand_gray_1_2_4_to_8(p.png);
  png_set_interlace_handling(p.png);
  png_read_update_info(p.png, p.info);
  if (png_get_rowbytes(p.png, p.info) != row_bytes) png_error(p.png, "unexpected row size");
  png_read_image(p.png, rows);
  png_read_end(p.png, nullptr);
  return true;
}

DecodedImage decode_png(const std::vector<std::uint8_t>& file, const std::string& name, const ImageShape* expected) {
  Png p;
  p.next = file.data();
  p.left = file.size();
  ESPALIER_CHECK(png_open(p), ErrorKind::data, "{}: PNG cannot be decoded: {}", name, p.message);
  ESPALIER_CHECK(p.depth <= 8, ErrorKind::data, "{}: PNG of {} bits a channel, expected 8", name, p.depth);
  ESPALIER_CHECK(!p.transparent, ErrorKind::data,
                 "{}: PNG with transparency, expected plain grey or RGB; flatten it onto a background first", name);
  DecodedImage image;
  image.shape = {(p.colour & PNG_COLOR_MASK_COLOR) != 0 ? 3 : 1, p.height, p.width};
  check_shape(name, image.shape, expected);
  const auto row_bytes = static_cast<std::size_t>(image.shape.width * image.shape.channels);
  image.pixels.resize(row_bytes * p.height);
  std::vector<std::uint8_t*> rows;
  for (std::uint32_t y = 0; y < p.height; ++y) rows.push_back(image.pixels.data() + y * row_bytes);
  ESPALIER_CHECK(png_pixels(p, rows.data(), row_bytes), ErrorKind::data, "{}: PNG cannot be decoded: {}", name,
                 p.message);
  return image;
}

// --- JPEG -----------------------------------------------------------------------------------------------------------

struct Jpeg {
  bool strict = true;  // every warning is an error
  unsigned scale = 1;  // decode at 1 / scale
  jpeg_error_mgr errors{};
  jpeg_decompress_struct info{};
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";
  ~Jpeg() { jpeg_destroy_decompress(&info); }
};

[[noreturn]] void jpeg_failed(j_common_ptr info) {
  auto* j = static_cast<Jpeg*>(info->client_data);
  info->err->format_message(info, j->message);
  std::longjmp(j->jump, 1);
}

// A warning of libjpeg (level -1) says that it went on by guessing, e.g. after a truncated file: not our pixels.
void jpeg_message(j_common_ptr info, int level) {
  const int code = info->err->msg_code;
  const bool ends_early = code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER;
  if (level < 0 && (static_cast<Jpeg*>(info->client_data)->strict || ends_early)) jpeg_failed(info);
}

void jpeg_silent(j_common_ptr) {}

bool jpeg_open(Jpeg& j, const std::uint8_t* bytes, std::size_t size) {
  if (setjmp(j.jump) != 0) return false;
  j.info.err = jpeg_std_error(&j.errors);
  j.errors.error_exit = &jpeg_failed;
  j.errors.emit_message = &jpeg_message;
  j.errors.output_message = &jpeg_silent;
  j.info.client_data = &j;
  jpeg_create_decompress(&j.info);
  jpeg_mem_src(&j.info, bytes, static_cast<unsigned long>(size));
  jpeg_read_header(&j.info, TRUE);
  return true;
}

bool jpeg_pixels(Jpeg& j, std::uint8_t* out, std::size_t row_bytes) {
  if (setjmp(j.jump) != 0) return false;
  j.info.out_color_space = j.info.num_components == 4 ? JCS_CMYK : j.info.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
  j.info.scale_num = 1;
  j.info.scale_denom = j.scale;
  jpeg_start_decompress(&j.info);
  while (j.info.output_scanline < j.info.output_height) {
    std::uint8_t* row = out + j.info.output_scanline * row_bytes;
    jpeg_read_scanlines(&j.info, &row, 1);
  }
  jpeg_finish_decompress(&j.info);
  return true;
}

DecodedImage decode_jpeg(const std::vector<std::uint8_t>& file, const std::string& name, const ImageShape* expected) {
  Jpeg j;
  ESPALIER_CHECK(jpeg_open(j, file.data(), file.size()), ErrorKind::data, "{}: JPEG cannot be decoded: {}", name,
                 j.message);
  ESPALIER_CHECK(j.info.num_components == 1 || j.info.num_components == 3, ErrorKind::data,
                 "{}: JPEG of {} channels, expected grey or RGB", name, j.info.num_components);
  DecodedImage image;
  image.shape = {j.info.num_components, j.info.image_height, j.info.image_width};
  check_shape(name, image.shape, expected);
  const auto row_bytes = static_cast<std::size_t>(image.shape.width * image.shape.channels);
  image.pixels.resize(row_bytes * static_cast<std::size_t>(image.shape.height));
  ESPALIER_CHECK(jpeg_pixels(j, image.pixels.data(), row_bytes), ErrorKind::data, "{}: JPEG cannot be decoded: {}",
                 name, j.message);
  return image;
}

// --- a region of an image of any size --------------------------------------------------------------------------------

constexpr std::int64_t kMaxPixels = std::int64_t{1} << 28;
constexpr std::uint8_t kPng[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
constexpr std::uint8_t kJpeg[] = {0xff, 0xd8, 0xff};

template <std::size_t n>
bool begins_with(const std::vector<std::uint8_t>& file, const std::uint8_t (&magic)[n]) {
  return file.size() >= n && std::memcmp(file.data(), magic, n) == 0;
}

[[noreturn]] void fail_by_first_bytes(const std::vector<std::uint8_t>& file, const std::string& name) {
  fail(ErrorKind::data, "{}: {}, expected a PNG or JPEG image", name,
       file.empty() ? "the file is empty" : "neither PNG nor JPEG by its first bytes");
}

void check_pixels(const std::string& name, std::int64_t width, std::int64_t height) {
  ESPALIER_CHECK(width >= 1 && height >= 1 && width <= kMaxPixels / height, ErrorKind::data,
                 "{}: {}x{} pixels, expected 1 to {} in all", name, width, height, kMaxPixels);
}

Region checked(const Region& r, std::int64_t width, std::int64_t height, const std::string& name) {
  ESPALIER_CHECK(r.left >= 0 && r.top >= 0 && r.width >= 1 && r.height >= 1 && r.left + r.width <= width &&
                     r.top + r.height <= height,
                 ErrorKind::data, "{}: a region of {}x{} at ({}, {}) of {}x{} pixels", name, r.width, r.height, r.left,
                 r.top, width, height);
  return r;
}

/// Ink to light: without a profile, each ink takes its share of all that is there. Adobe's files have light for ink.
void cmyk_to_rgb(const std::vector<std::uint8_t>& in, bool inverted, std::vector<std::uint8_t>& out) {
  for (std::size_t i = 0, n = in.size() / 4; i < n; ++i) {
    const auto light = [&](std::size_t c) { return inverted ? in[4 * i + c] : 255 - in[4 * i + c]; };
    for (std::size_t c = 0; c < 3; ++c) out[3 * i + c] = static_cast<std::uint8_t>((light(c) * light(3) + 127) / 255);
  }
}

DecodedImage cut(const DecodedImage& image, const Region& r) {
  DecodedImage part;
  part.shape = {image.shape.channels, r.height, r.width};
  const auto pixel = static_cast<std::size_t>(image.shape.channels);
  const auto row = static_cast<std::size_t>(r.width) * pixel;
  part.pixels.resize(row * static_cast<std::size_t>(r.height));
  for (std::int64_t y = 0; y < r.height; ++y) {
    const auto from = static_cast<std::size_t>((r.top + y) * image.shape.width + r.left) * pixel;
    std::copy_n(image.pixels.data() + from, row, part.pixels.data() + static_cast<std::size_t>(y) * row);
  }
  return part;
}

DecodedImage png_region(const std::vector<std::uint8_t>& file, const std::string& name,
                        const ImageSource::Choose& choose) {
  Png p;
  p.next = file.data();
  p.left = file.size();
  p.to_rgb = true;
  ESPALIER_CHECK(png_open(p), ErrorKind::data, "{}: PNG cannot be decoded: {}", name, p.message);
  check_pixels(name, p.width, p.height);
  const Region region = checked(choose(p.width, p.height), p.width, p.height, name);
  DecodedImage image;
  image.shape = {3, p.height, p.width};
  const std::size_t row_bytes = std::size_t{3} * p.width;
  image.pixels.resize(row_bytes * p.height);
  std::vector<std::uint8_t*> rows;
  for (std::uint32_t y = 0; y < p.height; ++y) rows.push_back(image.pixels.data() + y * row_bytes);
  ESPALIER_CHECK(png_pixels(p, rows.data(), row_bytes), ErrorKind::data, "{}: PNG cannot be decoded: {}", name,
                 p.message);
  return cut(image, region);
}

DecodedImage jpeg_region(const std::vector<std::uint8_t>& file, const std::string& name, std::int64_t side,
                         const ImageSource::Choose& choose) {
  Jpeg j;
  j.strict = false;
  ESPALIER_CHECK(jpeg_open(j, file.data(), file.size()), ErrorKind::data, "{}: JPEG cannot be decoded: {}", name,
                 j.message);
  const std::int64_t full_width = j.info.image_width, full_height = j.info.image_height;
  const int channels = j.info.num_components;
  ESPALIER_CHECK(channels == 1 || channels == 3 || channels == 4, ErrorKind::data,
                 "{}: JPEG of {} channels, expected grey, RGB or CMYK", name, channels);
  check_pixels(name, full_width, full_height);
  Region region = checked(choose(full_width, full_height), full_width, full_height, name);
  // Twice as many pixels as are wanted are left for the filter.
  while (j.scale < 8 && std::min(region.width, region.height) >= 4 * side * j.scale) j.scale *= 2;

  const std::int64_t scale = j.scale;
  const auto shrunk = [scale](std::int64_t n) { return (n + scale - 1) / scale; };
  DecodedImage image;
  image.shape = {channels, shrunk(full_height), shrunk(full_width)};
  const auto row_bytes = static_cast<std::size_t>(image.shape.width * channels);
  image.pixels.resize(row_bytes * static_cast<std::size_t>(image.shape.height));
  ESPALIER_CHECK(jpeg_pixels(j, image.pixels.data(), row_bytes), ErrorKind::data, "{}: JPEG cannot be decoded: {}",
                 name, j.message);
  region.left /= scale;
  region.top /= scale;
  region.width = std::min(std::max<std::int64_t>(1, region.width / scale), image.shape.width - region.left);
  region.height = std::min(std::max<std::int64_t>(1, region.height / scale), image.shape.height - region.top);
  DecodedImage part = cut(image, region);
  if (channels == 3) return part;
  DecodedImage rgb;
  rgb.shape = {3, part.shape.height, part.shape.width};
  rgb.pixels.resize(part.pixels.size() / static_cast<std::size_t>(channels) * 3);
  if (channels == 4) {
    cmyk_to_rgb(part.pixels, j.info.saw_Adobe_marker != 0, rgb.pixels);
  } else {
    for (std::size_t i = 0; i < part.pixels.size(); ++i) std::fill_n(rgb.pixels.data() + 3 * i, 3, part.pixels[i]);
  }
  return rgb;
}

}  // namespace

DecodedImage decode_region(const std::vector<std::uint8_t>& file, const std::string& name, std::int64_t side,
                           const ImageSource::Choose& choose) {
  if (begins_with(file, kPng)) return png_region(file, name, choose);
  if (begins_with(file, kJpeg)) return jpeg_region(file, name, side, choose);
  fail_by_first_bytes(file, name);
}

at::Tensor resized_region(const DecodedImage& image, std::int64_t side) {
  const torch::NoGradGuard no_grad;
  const at::Tensor pixels =
      torch::from_blob(const_cast<std::uint8_t*>(image.pixels.data()),
                       {1, image.shape.height, image.shape.width, image.shape.channels}, torch::kUInt8)
          .permute({0, 3, 1, 2})
          .to(torch::kFloat32)
          .contiguous();
  return torch::_upsample_bilinear2d_aa(pixels, {side, side}, /*align_corners=*/false).squeeze(0).contiguous();
}

DecodedImage decode_image(const std::vector<std::uint8_t>& file, const std::string& name, const ImageShape* expected) {
  if (begins_with(file, kPng)) return decode_png(file, name, expected);
  if (begins_with(file, kJpeg)) return decode_jpeg(file, name, expected);
  fail_by_first_bytes(file, name);
}

}  // namespace espalier::data
