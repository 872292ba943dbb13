#include "espalier/data/image_folder.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data/files.h"
#include "data/image_file.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/data/dataset.h"
#include "espalier/data/loader.h"

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

// --- images of any size
// -----------------------------------------------------------------------------------------------

Bytes plain(int width, int height, std::uint8_t r, std::uint8_t g, std::uint8_t b) {
  Bytes pixels;
  for (int i = 0; i < width * height; ++i) pixels.insert(pixels.end(), {r, g, b});
  return pixels;
}

ImageSource::Choose all_of_it() {
  return [](std::int64_t w, std::int64_t h) { return Region{0, 0, w, h}; };
}

TEST(DecodeRegion, CutsTheRegionThatWasChosen) {
  const Bytes file = png_bytes(5, 4, PNG_FORMAT_RGB, ramp(60, 3));
  std::int64_t width = 0, height = 0;
  const DecodedImage part = decode_region(file, "x", 8, [&](std::int64_t w, std::int64_t h) {
    width = w;
    height = h;
    return Region{1, 2, 3, 2};
  });
  EXPECT_EQ(width, 5);
  EXPECT_EQ(height, 4);
  EXPECT_EQ(part.shape, (ImageShape{3, 2, 3}));
  Bytes expected;
  for (int y = 2; y < 4; ++y)
    for (int i = 3 * (5 * y + 1); i < 3 * (5 * y + 4); ++i)
      expected.push_back(ramp(60, 3)[static_cast<std::size_t>(i)]);
  EXPECT_EQ(part.pixels, expected);
  for (const Region& outside : {Region{3, 0, 3, 1}, Region{0, 0, 5, 5}, Region{-1, 0, 2, 2}, Region{0, 0, 0, 1}}) {
    EXPECT_SAYS(data_error([&] { decode_region(file, "x", 8, [&](std::int64_t, std::int64_t) { return outside; }); }),
                "x: a region of");
  }
}

TEST(DecodeRegion, EveryColourBecomesRgb) {
  const auto pixels = [](const Bytes& file) { return decode_region(file, "x", 8, all_of_it()).pixels; };
  EXPECT_EQ(pixels(png_bytes(2, 1, PNG_FORMAT_GRAY, {7, 200})), (Bytes{7, 7, 7, 200, 200, 200}));
  EXPECT_EQ(pixels(png_bytes(1, 1, PNG_FORMAT_RGBA, {1, 2, 3, 255})), (Bytes{1, 2, 3}));
  EXPECT_EQ(pixels(png_of(3, 1, 1, PNG_COLOR_TYPE_GRAY, 0, {{0xa0}})), (Bytes{255, 255, 255, 0, 0, 0, 255, 255, 255}));
  EXPECT_EQ(pixels(png_of(2, 1, 1, PNG_COLOR_TYPE_PALETTE, 0, {{0x80}})), (Bytes{200, 100, 50, 1, 2, 3}));
  EXPECT_EQ(pixels(png_of(1, 1, 16, PNG_COLOR_TYPE_GRAY, 0, {{128, 128}})), (Bytes{128, 128, 128}));
  EXPECT_EQ(pixels(png_of(1, 1, 8, PNG_COLOR_TYPE_GRAY_ALPHA, 0, {{9, 100}})), (Bytes{9, 9, 9}));
  EXPECT_EQ(pixels(jpeg_bytes(8, 8, 1, Bytes(64, 77))), Bytes(192, 77));
  // CMYK as it stands in a JPEG, here with Adobe's marker, which means light for ink: (c, m, y) k / 255.
  Bytes cmyk;
  for (int i = 0; i < 64; ++i) cmyk.insert(cmyk.end(), {255, 51, 0, 204});
  const Bytes rgb = pixels(jpeg_bytes(8, 8, 4, cmyk));
  ASSERT_EQ(rgb.size(), 192u);
  EXPECT_NEAR(rgb[0], 204, 3);
  EXPECT_NEAR(rgb[1], 41, 3);
  EXPECT_NEAR(rgb[2], 0, 3);
}

TEST(DecodeRegion, LargeJpegsAreDecodedSmaller) {
  Bytes left_red;  // 256 x 128: the left half red, the right half blue
  for (int y = 0; y < 128; ++y)
    for (int x = 0; x < 256; ++x)
      left_red.insert(left_red.end(), {std::uint8_t(x < 128 ? 200 : 0), 0, std::uint8_t(x < 128 ? 0 : 200)});
  const Bytes file = jpeg_bytes(256, 128, 3, left_red);
  const auto shape = [&](std::int64_t side, const Region& r) {
    return decode_region(file, "x", side, [r](std::int64_t, std::int64_t) { return r; }).shape;
  };
  EXPECT_EQ(shape(64, {0, 0, 256, 128}), (ImageShape{3, 128, 256}));
  EXPECT_EQ(shape(32, {0, 0, 256, 128}), (ImageShape{3, 64, 128}));     // at a half: twice 32 are left
  EXPECT_EQ(shape(16, {0, 0, 256, 128}), (ImageShape{3, 32, 64}));      // a quarter
  EXPECT_EQ(shape(2, {0, 0, 256, 128}), (ImageShape{3, 16, 32}));       // no less than an eighth
  EXPECT_EQ(shape(32, {128, 0, 128, 127}), (ImageShape{3, 127, 128}));  // a part that is small enough already
  const DecodedImage right = decode_region(file, "x", 8, [](std::int64_t, std::int64_t) {
    return Region{128, 0, 128, 128};
  });
  EXPECT_EQ(right.shape, (ImageShape{3, 16, 16}));
  EXPECT_NEAR(right.pixels[3 * (8 * 16 + 8)], 0, 4);
  EXPECT_NEAR(right.pixels[3 * (8 * 16 + 8) + 2], 200, 4);
}

TEST(DecodeRegion, DamageIsAnError) {
  const Bytes png = png_bytes(9, 9, PNG_FORMAT_RGB, ramp(243, 3)), jpeg = jpeg_bytes(16, 16, 3, ramp(768, 3), 75);
  for (const Bytes& whole : {png, jpeg}) {
    for (std::size_t n = 0; n < whole.size(); n += 3) {
      const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
      EXPECT_SAYS(data_error([&] { decode_region(part, "cut", 4, all_of_it()); }), "cut: ");
    }
    EXPECT_NO_THROW(decode_region(whole, "whole", 4, all_of_it()));
  }
  // Bytes between the segments of a file are passed over, as in some of ImageNet's; reading it whole is stricter.
  Bytes stray = jpeg;
  stray.insert(stray.begin() + 20, {1, 2, 3});  // after the first segment: 2 bytes of start, 18 of JFIF
  EXPECT_NO_THROW(decode_region(stray, "stray", 4, all_of_it()));
  EXPECT_SAYS(data_error([&] { decode_image(stray, "stray"); }), "stray: ");
}

// The filter of two pixels to one: distances .5 and 1.5 of a triangle of half width 2 weigh 3/4 and 1/4.
TEST(ResizedRegion, IsATriangleFilter) {
  DecodedImage image;
  image.shape = {3, 1, 4};
  for (const int v : {0, 80, 160, 240})
    for (int c = 0; c < 3; ++c) image.pixels.push_back(static_cast<std::uint8_t>(v + c));
  const torch::Tensor two = resized_region(image, 2);
  EXPECT_EQ(two.sizes(), (std::vector<std::int64_t>{3, 2, 2}));
  EXPECT_NEAR(two[0][0][0].item<double>(), (0.75 * 0 + 0.75 * 80 + 0.25 * 160) / 1.75, 1e-4);
  EXPECT_NEAR(two[0][1][1].item<double>(), (0.25 * 80 + 0.75 * 160 + 0.75 * 240) / 1.75, 1e-4);
  EXPECT_NEAR(two[2][0][0].item<double>(), 2 + (0.75 * 0 + 0.75 * 80 + 0.25 * 160) / 1.75, 1e-4);
  // Four to eight: between the centres of pixels, linear.
  const torch::Tensor eight = resized_region(image, 8);
  EXPECT_NEAR(eight[0][0][0].item<double>(), 0, 1e-4);
  EXPECT_NEAR(eight[0][0][1].item<double>(), 20, 1e-4);
  EXPECT_NEAR(eight[0][5][2].item<double>(), 60, 1e-4);
}

TEST(ImageFolder, ImagesOfAnySizeAreReadWhenTheyAreNeeded) {
  const Folder folder;
  folder.write("train/b/1.JPEG", jpeg_bytes(40, 24, 3, plain(40, 24, 250, 10, 10)));
  folder.write("train/a/2.png", png_bytes(10, 30, PNG_FORMAT_GRAY, Bytes(300, 60)));
  folder.write("train/a/1.png", png_bytes(33, 17, PNG_FORMAT_RGB, plain(33, 17, 1, 2, 3)));
  folder.write("val/b/3.jpg", jpeg_bytes(64, 64, 3, plain(64, 64, 0, 0, 255)));
  const Dataset set = open_image_folder(folder.path(), 12);
  EXPECT_EQ(set.classes, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(set.train.size(), 3);
  EXPECT_EQ(set.train.shape(), (std::vector<std::int64_t>{3, 12, 12}));
  EXPECT_FALSE(set.train.pixels.defined());
  EXPECT_TRUE(set.train.labels.equal(torch::tensor({0, 0, 1}, torch::kInt64)));
  const Loader plain_loader(set.train, {2, 0, 1}, {{0, 0, 0}, {1, 1, 1}}, {});
  const Batch batch = plain_loader.batch(0, 0);
  EXPECT_EQ(batch.images.sizes(), (std::vector<std::int64_t>{3, 3, 12, 12}));
  EXPECT_TRUE(batch.labels.equal(torch::tensor({1, 0, 0}, torch::kInt64)));
  EXPECT_TRUE(torch::allclose(batch.images[0][0], torch::full({12, 12}, 250 / 255.), 0, 0.01));
  EXPECT_TRUE(torch::allclose(batch.images[1].mean({1, 2}), torch::tensor({1.f, 2.f, 3.f}) / 255, 1e-5));
  EXPECT_TRUE(torch::allclose(batch.images[2], torch::full({3, 12, 12}, 60 / 255.), 1e-5));
  const Images one = set.train.at(torch::tensor({2}, torch::kInt64));
  EXPECT_EQ(one.size(), 1);
  EXPECT_TRUE(one.labels.equal(torch::tensor({1}, torch::kInt64)));
  EXPECT_TRUE(torch::equal(Loader(one, {0}, {{0, 0, 0}, {1, 1, 1}}, {}).batch(0, 0).images[0], batch.images[0]));
  // A file that is damaged is met when its batch is, and named.
  folder.write("train/a/2.png", {1, 2, 3});
  EXPECT_SAYS(data_error([&] { plain_loader.batch(0, 0); }), (folder.path() / "train/a/2.png").string());
  EXPECT_SAYS(data_error([&] { read_image_folder(folder.path()); }), "train/a/2.png");
}

/// A source that only knows its sizes: the regions that it is asked for.
class Asked : public ImageSource {
 public:
  Asked(std::int64_t width, std::int64_t height) : width_(width), height_(height) {}
  std::int64_t size() const override { return 1000; }
  torch::Tensor read(std::int64_t, std::int64_t side, const Choose& choose) const override {
    regions.push_back(choose(width_, height_));
    // The column says which side is left.
    return torch::arange(side, torch::kFloat32).expand({3, side, side}).contiguous();
  }
  mutable std::vector<Region> regions;

 private:
  std::int64_t width_, height_;
};

struct AskedFor {
  std::vector<Region> regions;
  torch::Tensor images;
};
AskedFor asked(std::int64_t width, std::int64_t height, const std::string& augment, std::int64_t epoch = 0) {
  auto source = std::make_shared<Asked>(width, height);
  Images images;
  images.labels = torch::zeros({1000}, torch::kInt64);
  images.source = source;
  images.side = 4;
  LoaderOptions options;
  options.augment = augment;
  options.batch_size = 1000;
  options.seed = 3;
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < 1000; ++i) all.push_back(i);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const torch::Tensor read = Loader(images, all, {{0, 0, 0}, {1, 1, 1}}, options).batch(epoch, 0).images;
  at::set_num_threads(threads);
  return {source->regions, read};
}

// 7/8 of the shorter side, in the middle: 256 to 224.
TEST(Loader, EvaluatesTheMiddle) {
  const Region wide = asked(512, 256, "none").regions[7];
  EXPECT_EQ(wide.width, 224);
  EXPECT_EQ(wide.height, 224);
  EXPECT_EQ(wide.left, 144);
  EXPECT_EQ(wide.top, 16);
  const Region tiny = asked(1, 3, "none").regions[0];
  EXPECT_EQ(tiny.width, 1);
  EXPECT_EQ(tiny.height, 1);
}

TEST(Loader, TrainsOnRandomParts) {
  const AskedFor first = asked(400, 300, "imagenet");
  double least = 1, most = 0, area_sum = 0;
  std::int64_t at_left = 0;
  for (const Region& r : first.regions) {
    ASSERT_TRUE(r.left >= 0 && r.top >= 0 && r.left + r.width <= 400 && r.top + r.height <= 300);
    const double area = static_cast<double>(r.width * r.height) / (400 * 300),
                 form = static_cast<double>(r.width) / static_cast<double>(r.height);
    least = std::min(least, area);
    most = std::max(most, area);
    area_sum += area;
    EXPECT_GE(form, 0.74);
    EXPECT_LE(form, 1.35);
    at_left += r.left < (400 - r.width) / 2 ? 1 : 0;
  }
  EXPECT_GE(least, 0.079);
  EXPECT_LT(least, 0.1);
  EXPECT_LE(most, 1);
  EXPECT_GT(most, 0.9);
  // .54 of .08 to 1, but large parts fit seldom and are drawn anew: .432 by simulation; deviation .25 / sqrt(1000) =
  // .008.
  EXPECT_NEAR(area_sum / 1000, 0.432, 0.03);
  EXPECT_NEAR(static_cast<double>(at_left), 500, 70);
  const torch::Tensor mirrored = first.images.select(3, 0).select(2, 0).select(1, 0).gt(0);
  EXPECT_NEAR(mirrored.sum().item<double>(), 500, 70);
  // The same in the same epoch, another in the next.
  EXPECT_TRUE(torch::equal(asked(400, 300, "imagenet").images, first.images));
  EXPECT_FALSE(torch::equal(asked(400, 300, "imagenet", 1).images, first.images));
  // So long that nothing fits: the middle, as wide as 4:3 allows.
  const Region strip = asked(10000, 30, "imagenet").regions[0];
  EXPECT_EQ(strip.width, 40);
  EXPECT_EQ(strip.height, 30);
  EXPECT_EQ(strip.left, 4980);
  EXPECT_EQ(asked(3, 900, "imagenet").regions[0].height, 4);
}

TEST(Loader, RefusesAugmentationsThatDoNotGoTogether) {
  EXPECT_THROW(asked(40, 30, "crop"), Error);
  Images small{torch::zeros({2, 3, 4, 4}, torch::kUInt8), torch::zeros({2}, torch::kInt64)};
  LoaderOptions options;
  options.augment = "imagenet";
  EXPECT_THROW(Loader(small, {0}, {{0, 0, 0}, {1, 1, 1}}, options), Error);
}

TEST(Normalisation, OfImagesThatAreReadWhenNeeded) {
  const Folder folder;
  folder.write("train/a/1.png", png_bytes(20, 20, PNG_FORMAT_RGB, plain(20, 20, 51, 102, 0)));
  folder.write("train/a/2.png", png_bytes(30, 20, PNG_FORMAT_RGB, plain(30, 20, 153, 102, 0)));
  folder.write("test/a/2.png", png_bytes(30, 20, PNG_FORMAT_RGB, plain(30, 20, 0, 0, 0)));
  DataOptions options;
  options.name = "image-folder";
  options.root = folder.path().string();
  options.image_size = 8;
  const Dataset set = load_dataset(options, 1);
  const Normalisation n = normalisation(set.train, {0, 1}, options);
  EXPECT_NEAR(n.mean[0], 0.4, 1e-6);
  EXPECT_NEAR(n.std[0], 0.2, 1e-6);
  EXPECT_NEAR(n.mean[1], 0.4, 1e-6);
  EXPECT_EQ(n.std[1], 1);  // a constant channel keeps its scale
  options.normalise = "imagenet";
  EXPECT_EQ(normalisation(set.train, {0, 1}, options).mean, (std::vector<float>{0.485f, 0.456f, 0.406f}));
  options.name = "mnist";
  EXPECT_THROW(load_dataset(options, 1), Error);
}

}  // namespace
}  // namespace espalier::data
