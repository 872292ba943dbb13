#include "espalier/data/image_folder.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data/files.h"
#include "data/image_file.h"
#include "espalier/core/log.h"

namespace espalier::data {
namespace {

Bytes ramp(int n, int start) {
  Bytes bytes;
  for (int i = 0; i < n; ++i) bytes.push_back(static_cast<std::uint8_t>((start + 7 * i) % 256));
  return bytes;
}

const Bytes kGrey = png_bytes(3, 2, PNG_FORMAT_GRAY, {0, 10, 20, 30, 40, 50});

/// Writes a PNG by libpng's own low level, for forms that its simple interface does not write.
Bytes png_of(int width, int height, int depth, int colour, int interlace, std::vector<Bytes> rows) {
  Bytes out;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &out,
      [](png_structp p, png_bytep data, std::size_t n) {
        auto* bytes = static_cast<Bytes*>(png_get_io_ptr(p));
        bytes->insert(bytes->end(), data, data + n);
      },
      nullptr);
  png_set_IHDR(png, info, static_cast<unsigned>(width), static_cast<unsigned>(height), depth, colour, interlace,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  const png_color palette[2] = {{1, 2, 3}, {200, 100, 50}};
  if (colour == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette, 2);
  png_write_info(png, info);
  std::vector<png_bytep> pointers;
  for (Bytes& row : rows) pointers.push_back(row.data());
  png_write_image(png, pointers.data());
  png_write_end(png, nullptr);
  png_destroy_write_struct(&png, &info);
  return out;
}

TEST(ImageFile, DecodesPngExactly) {
  DecodedImage image = decode_image(kGrey, "grey");
  EXPECT_EQ(image.shape, (ImageShape{1, 2, 3}));
  EXPECT_EQ(image.pixels, (Bytes{0, 10, 20, 30, 40, 50}));
  const Bytes colours = ramp(5 * 4 * 3, 9);
  image = decode_image(png_bytes(5, 4, PNG_FORMAT_RGB, colours), "rgb");
  EXPECT_EQ(image.shape, (ImageShape{3, 4, 5}));
  EXPECT_EQ(image.pixels, colours);
  // 1 bit a pixel: 10100000 -> 255 0 255; palette: index 1, 0.
  EXPECT_EQ(decode_image(png_of(3, 1, 1, PNG_COLOR_TYPE_GRAY, 0, {{0xa0}}), "bits").pixels, (Bytes{255, 0, 255}));
  EXPECT_EQ(decode_image(png_of(2, 1, 1, PNG_COLOR_TYPE_PALETTE, 0, {{0x80}}), "palette").pixels,
            (Bytes{200, 100, 50, 1, 2, 3}));
  EXPECT_EQ(decode_image(png_of(2, 2, 8, PNG_COLOR_TYPE_GRAY, PNG_INTERLACE_ADAM7, {{1, 2}, {3, 4}}), "adam7").pixels,
            (Bytes{1, 2, 3, 4}));
}

TEST(ImageFile, DecodesJpegClosely) {
  // A constant survives JPEG up to the rounding of its colour transform.
  const DecodedImage grey = decode_image(jpeg_bytes(8, 8, 1, Bytes(64, 77)), "grey");
  EXPECT_EQ(grey.shape, (ImageShape{1, 8, 8}));
  EXPECT_EQ(grey.pixels, Bytes(64, 77));
  Bytes red;
  for (int i = 0; i < 64; ++i) red.insert(red.end(), {200, 30, 60});
  const DecodedImage rgb = decode_image(jpeg_bytes(8, 8, 3, red), "rgb");
  EXPECT_EQ(rgb.shape, (ImageShape{3, 8, 8}));
  for (std::size_t i = 0; i < red.size(); ++i) EXPECT_NEAR(rgb.pixels[i], red[i], 2);
}

TEST(ImageFile, RefusesWhatWouldLoseInformation) {
  EXPECT_SAYS(data_error([] {
                decode_image(png_of(1, 1, 16, PNG_COLOR_TYPE_GRAY, 0, {{1, 2}}), "x.png");
              }),
              "x.png: PNG of 16 bits a channel, expected 8");
  EXPECT_SAYS(data_error([] {
                decode_image(png_bytes(1, 1, PNG_FORMAT_RGBA, {1, 2, 3, 4}), "x.png");
              }),
              "transparency");
  EXPECT_SAYS(data_error([] { decode_image(jpeg_bytes(8, 8, 4, Bytes(256, 9)), "x.jpg"); }), "JPEG of 4 channels");
  EXPECT_SAYS(data_error([] { decode_image({'G', 'I', 'F', '8'}, "x.png"); }), "neither PNG nor JPEG");
  EXPECT_SAYS(data_error([] { decode_image({}, "x.png"); }), "the file is empty");
}

TEST(ImageFile, RefusesLargeImagesBeforeTakingMemory) {
  const std::int64_t before = peak_rss_bytes();
  // 60,000 x 60,000 RGB, 10.8 GB of pixels, written into the header of a small file; the chunk's CRC is mended.
  Bytes png = png_bytes(2, 2, PNG_FORMAT_RGB, Bytes(12, 5));
  for (const std::size_t at : {std::size_t{18}, std::size_t{22}}) {
    png[at] = 60000 >> 8;
    png[at + 1] = 60000 & 255;
  }
  const auto sum = crc32(0, png.data() + 12, 17);
  for (std::size_t i = 0; i < 4; ++i) png[29 + i] = static_cast<std::uint8_t>(sum >> (24 - 8 * i));
  EXPECT_SAYS(data_error([&] { decode_image(png, "x.png"); }), "60000x60000 RGB pixels, expected sides of 1 to 4096");
  Bytes jpeg = jpeg_bytes(8, 8, 1, Bytes(64, 5));
  for (std::size_t i = 0; i + 8 < jpeg.size(); ++i) {
    if (jpeg[i] == 0xff && jpeg[i + 1] == 0xc0) jpeg[i + 5] = jpeg[i + 7] = 0xf0;  // SOF0: height and width
  }
  EXPECT_SAYS(data_error([&] { decode_image(jpeg, "x.jpg"); }), "expected sides of 1 to 4096");
  EXPECT_LT(peak_rss_bytes() - before, 8 << 20);
}

TEST(ImageFile, EveryTruncationIsAnError) {
  const Bytes png = png_bytes(9, 9, PNG_FORMAT_RGB, ramp(243, 3));
  const Bytes jpeg = jpeg_bytes(16, 16, 3, ramp(768, 3), 75);
  for (const Bytes& whole : {png, jpeg}) {
    for (std::size_t n = 0; n < whole.size(); ++n) {
      const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
      EXPECT_SAYS(data_error([&] { decode_image(part, "cut"); }), "cut: ");
    }
    EXPECT_NO_THROW(decode_image(whole, "whole"));
  }
}

TEST(ImageFolder, ClassesAndFilesInOrder) {
  const Folder folder;
  const auto grey = [](std::uint8_t v) {
    return png_bytes(2, 1, PNG_FORMAT_GRAY, {v, static_cast<std::uint8_t>(v + 1)});
  };
  folder.write("train/zebra/a.png", grey(1));
  folder.write("train/ant/10.png", grey(3));
  folder.write("train/ant/02.PNG", grey(5));
  folder.write("train/ant/.hidden.png", {1, 2, 3});
  folder.write("train/ant/notes.txt", {1});
  folder.write("train/.cache/x.png", {1});
  folder.write("val/zebra/v.jpg", grey(7));  // a PNG whose name says otherwise
  std::string warning;
  set_log_sink([&](LogLevel, const std::string& text) { warning = text; });
  const Dataset set = read_image_folder(folder.path());
  set_log_sink({});
  EXPECT_EQ(set.classes, (std::vector<std::string>{"ant", "zebra"}));
  EXPECT_TRUE(set.train.labels.equal(torch::tensor({0, 0, 1}, torch::kInt64)));
  EXPECT_TRUE(set.train.pixels.flatten().equal(torch::tensor({5, 6, 3, 4, 1, 2}, torch::kUInt8)));
  EXPECT_TRUE(set.test.labels.equal(torch::tensor({1}, torch::kInt64)));
  EXPECT_SAYS(warning, "1 files are not .png");
}

TEST(ImageFolder, ColoursBecomePlanes) {
  const Folder folder;
  const Bytes file = png_bytes(2, 1, PNG_FORMAT_RGB, {1, 2, 3, 4, 5, 6});
  folder.write("train/a/x.png", file);
  folder.write("test/a/x.png", file);
  EXPECT_TRUE(read_image_folder(folder.path())
                  .train.pixels.equal(torch::tensor({1, 4, 2, 5, 3, 6}, torch::kUInt8).reshape({1, 3, 1, 2})));
}

TEST(ImageFolder, ErrorsNameTheFirstFileAtFault) {
  const int threads = at::get_num_threads();
  at::set_num_threads(4);  // so that the second bad file may well be met first
  for (const auto& [bad, expected] : std::vector<std::pair<Bytes, std::string>>{
           {png_bytes(2, 2, PNG_FORMAT_GRAY, {1, 2, 3, 4}), "2x2 grey, expected 3x2 grey"},
           {png_bytes(3, 2, PNG_FORMAT_RGB, ramp(18, 0)), "3x2 RGB, expected 3x2 grey"},
           {{1, 2, 3}, "neither PNG nor JPEG"}}) {
    const Folder folder;
    for (int i = 100; i < 200; ++i) folder.write(fmt::format("train/a/{}.png", i), i == 142 || i == 187 ? bad : kGrey);
    folder.write("test/a/1.png", kGrey);
    const std::string message = data_error([&] { read_image_folder(folder.path()); });
    EXPECT_SAYS(message, (folder.path() / "train/a/142.png").string());
    EXPECT_SAYS(message, expected);
  }
  at::set_num_threads(threads);
}

TEST(ImageFolder, MissingPartsAreNamed) {
  const Folder folder;
  EXPECT_SAYS(data_error([&] { read_image_folder(folder.path()); }), "no train/");
  folder.write("train/a/1.png", kGrey);
  EXPECT_SAYS(data_error([&] { read_image_folder(folder.path()); }), "no test/, val/ or valid/");
  folder.write("test/b/1.png", kGrey);
  EXPECT_SAYS(data_error([&] { read_image_folder(folder.path()); }), "test/b: a class that train/ does not have");
  fs::remove_all(folder.path() / "test/b");
  EXPECT_SAYS(data_error([&] { read_image_folder(folder.path()); }), "no images");
}

}  // namespace
}  // namespace espalier::data
