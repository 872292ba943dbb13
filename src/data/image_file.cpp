#include "data/image_file.h"

#include <png.h>

#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>

// jpeglib.h needs size_t and FILE declared before it.
#include <jpeglib.h>

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
  if (level < 0) jpeg_failed(info);
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
  j.info.out_color_space = j.info.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
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

}  // namespace

DecodedImage decode_image(const std::vector<std::uint8_t>& file, const std::string& name, const ImageShape* expected) {
  constexpr std::uint8_t kPng[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  constexpr std::uint8_t kJpeg[] = {0xff, 0xd8, 0xff};
  if (file.size() >= sizeof kPng && std::memcmp(file.data(), kPng, sizeof kPng) == 0) {
    return decode_png(file, name, expected);
  }
  if (file.size() >= sizeof kJpeg && std::memcmp(file.data(), kJpeg, sizeof kJpeg) == 0) {
    return decode_jpeg(file, name, expected);
  }
  fail(ErrorKind::data, "{}: {}, expected a PNG or JPEG image", name,
       file.empty() ? "the file is empty" : "neither PNG nor JPEG by its first bytes");
}

}  // namespace espalier::data
