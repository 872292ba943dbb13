#include "espalier/train/safetensors.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>

#include "espalier/core/random.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

using testing::contains;
using testing::error_of;
using testing::read_bytes;
using testing::TemporaryDirectory;
using testing::write_bytes;
using namespace std::string_literals;

// A file around a header, by the format's description and not by our writer.
std::string file_bytes(const std::string& header, const std::string& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return bytes + header + data;
}

std::string error_for(const std::string& header, const std::string& data) {
  TemporaryDirectory folder;
  write_bytes(folder / "x.safetensors", file_bytes(header, data));
  const std::string message = error_of(ErrorKind::data, [&] { load_safetensors(folder / "x.safetensors"); });
  EXPECT_TRUE(contains(message, "x.safetensors")) << message;
  return message;
}

// Every dtype of the format that torch 1.13 has; the bytes worked out by hand from IEEE 754 and two's complement.
const std::string kGoldenHeader = R"({"__metadata__":{"a":"1","format":"pt"},)"
                                  R"("f64":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},)"
                                  R"("i64":{"dtype":"I64","shape":[],"data_offsets":[8,16]},)"
                                  R"("f32":{"dtype":"F32","shape":[2,1],"data_offsets":[16,24]},)"
                                  R"("i32":{"dtype":"I32","shape":[1],"data_offsets":[24,28]},)"
                                  R"("f16":{"dtype":"F16","shape":[1],"data_offsets":[28,30]},)"
                                  R"("bf16":{"dtype":"BF16","shape":[1],"data_offsets":[30,32]},)"
                                  R"("i16":{"dtype":"I16","shape":[1],"data_offsets":[32,34]},)"
                                  R"("i8":{"dtype":"I8","shape":[1],"data_offsets":[34,35]},)"
                                  R"("u8":{"dtype":"U8","shape":[2],"data_offsets":[35,37]},)"
                                  R"("bool":{"dtype":"BOOL","shape":[2],"data_offsets":[37,39]},)"
                                  R"("none":{"dtype":"BOOL","shape":[0,3],"data_offsets":[39,39]}})";
const std::string kGoldenData =
    "\x00\x00\x00\x00\x00\x00\xf8\x3f"s  // 1.5
    "\xfe\xff\xff\xff\xff\xff\xff\xff"s  // -2
    "\x00\x00\x80\x3f\x00\x00\x20\xc0"s  // 1, -2.5
    "\x78\x56\x34\x12"s                  // 0x12345678
    "\x00\x3c"s                          // 1
    "\x80\xbf"s                          // -1
    "\x00\x80"s                          // -32768
    "\x80"s                              // -128
    "\x07\xff"s                          // 7, 255
    "\x01\x00"s;                         // true, false

NamedTensors golden_tensors() {
  return {{"u8", torch::tensor({7, 255}, torch::kByte)},
          {"f32", torch::tensor({{1.0f}, {-2.5f}})},
          {"bool", torch::tensor({true, false})},
          {"f16", torch::tensor({1.0}, torch::kHalf)},
          {"i64", torch::tensor(-2, torch::kLong)},
          {"bf16", torch::tensor({-1.0}, torch::kBFloat16)},
          {"f64", torch::tensor({1.5}, torch::kDouble)},
          {"i16", torch::tensor({-32768}, torch::kShort)},
          {"i32", torch::tensor({0x12345678}, torch::kInt)},
          {"i8", torch::tensor({-128}, torch::kChar)},
          {"none", torch::empty({0, 3}, torch::kBool)}};
}

TEST(Safetensors, ReadsBytesWrittenByHand) {
  TemporaryDirectory folder;
  write_bytes(folder / "golden.safetensors", file_bytes(kGoldenHeader, kGoldenData));
  const SafetensorsContent content = load_safetensors(folder / "golden.safetensors");
  EXPECT_EQ(content.metadata, (std::map<std::string, std::string>{{"a", "1"}, {"format", "pt"}}));
  ASSERT_EQ(content.tensors.size(), 11u);
  EXPECT_EQ(content.tensors.front().first, "f64");
  EXPECT_EQ(content.tensors.back().first, "none");
  for (const auto& [name, expected] : golden_tensors()) {
    bool found = false;
    for (const auto& [other, tensor] : content.tensors) {
      if (other != name) continue;
      found = true;
      EXPECT_EQ(tensor.scalar_type(), expected.scalar_type()) << name;
      EXPECT_EQ(tensor.sizes(), expected.sizes()) << name;
      EXPECT_TRUE(torch::equal(tensor, expected)) << name;
    }
    EXPECT_TRUE(found) << name;
  }
}

TEST(Safetensors, WritesTheSameBytesSortedByAlignment) {
  // i64 comes before f64 where it was given first; the golden file has f64 first: same element size, order as given.
  NamedTensors in_order;
  for (const char* name : {"u8", "f32", "i32", "bool", "f64", "f16", "i8", "bf16", "i64", "none", "i16"}) {
    for (const auto& pair : golden_tensors()) {
      if (pair.first == name) in_order.push_back(pair);
    }
  }
  TemporaryDirectory folder;
  const FileDigest digest = save_safetensors(folder / "a", in_order, {{"format", "pt"}, {"a", "1"}});
  const std::string bytes = read_bytes(folder / "a");

  // By hand: 8-byte elements f64 i64, 4-byte f32 i32, 2-byte f16 bf16 i16, 1-byte u8 bool i8 none.
  const std::string tail = R"("u8":{"dtype":"U8","shape":[2],"data_offsets":[34,36]},)"
                           R"("bool":{"dtype":"BOOL","shape":[2],"data_offsets":[36,38]},)"
                           R"("i8":{"dtype":"I8","shape":[1],"data_offsets":[38,39]},)"
                           R"("none":{"dtype":"BOOL","shape":[0,3],"data_offsets":[39,39]}})";
  std::string header = kGoldenHeader.substr(0, kGoldenHeader.find(R"("i8")")) + tail;
  header.append((8 - header.size() % 8) % 8, ' ');
  EXPECT_EQ(bytes, file_bytes(header, kGoldenData.substr(0, 34) + "\x07\xff\x01\x00\x80"s));
  EXPECT_EQ(digest, digest_of(bytes));
  EXPECT_EQ(load_safetensors(folder / "a").digest, digest);
}

TEST(Safetensors, AnEmptyFileIsAnEmptyObject) {
  TemporaryDirectory folder;
  save_safetensors(folder / "a", {});
  EXPECT_EQ(read_bytes(folder / "a"), "\x08\0\0\0\0\0\0\0{}      "s);
  EXPECT_TRUE(load_safetensors(folder / "a").tensors.empty());
}

TEST(Safetensors, StridesViewsAndGradientsAreStoredByValue) {
  TemporaryDirectory folder;
  const auto matrix = torch::arange(6, torch::kFloat).view({2, 3});
  auto parameter = torch::ones({2}, torch::requires_grad());
  save_safetensors(
      folder / "a",
      {{"t", matrix.t()}, {"column", matrix.select(1, 1)}, {"one", torch::ones({1}).expand({4})}, {"p", parameter}});
  const auto tensors = load_safetensors(folder / "a").tensors;
  EXPECT_TRUE(torch::equal(tensors[0].second, torch::tensor({{0.f, 3.f}, {1.f, 4.f}, {2.f, 5.f}})));
  EXPECT_TRUE(torch::equal(tensors[1].second, torch::tensor({1.f, 4.f})));
  EXPECT_TRUE(torch::equal(tensors[2].second, torch::ones({4})));
  EXPECT_FALSE(tensors[3].second.requires_grad());
}

TEST(Safetensors, EveryBitOfAFloatSurvives) {
  TemporaryDirectory folder;
  const std::vector<std::int32_t> bits{0x7fc00001, static_cast<std::int32_t>(0xffa00000), 0x00000001,
                                       static_cast<std::int32_t>(0x80000000), 0x7f800000};
  const auto raw = torch::tensor(bits, torch::kInt);
  save_safetensors(folder / "a", {{"x", raw.view(torch::kFloat)}});
  EXPECT_TRUE(torch::equal(load_safetensors(folder / "a").tensors[0].second.view(torch::kInt), raw));
}

TEST(Safetensors, RefusesToWriteWhatTheFormatCannotHold) {
  TemporaryDirectory folder;
  const auto refused = [&](const NamedTensors& tensors, const std::map<std::string, std::string>& metadata = {}) {
    const auto message = error_of(ErrorKind::usage, [&] { save_safetensors(folder / "a", tensors, metadata); });
    EXPECT_FALSE(std::filesystem::exists(folder / "a"));
    return message;
  };
  const auto x = torch::ones({1});
  EXPECT_TRUE(contains(refused({{"x", x}, {"x", x}}), "\"x\" is used twice"));
  EXPECT_TRUE(contains(refused({{"__metadata__", x}}), "reserved"));
  EXPECT_TRUE(contains(refused({{"x", torch::Tensor()}}), "undefined"));
  EXPECT_TRUE(contains(refused({{"x", torch::eye(2).to_sparse()}}), "sparse"));
  EXPECT_TRUE(contains(refused({{"x", torch::ones({1}, torch::kComplexFloat)}}), "ComplexFloat"));
  EXPECT_TRUE(contains(refused({{"\xff", x}}), "UTF-8"));
  EXPECT_TRUE(contains(refused({{"x", x}}, {{"k", "\xff"}}), "UTF-8"));
}

TEST(Safetensors, NamesTheFileAndTheReasonWhenItCannotWrite) {
  TemporaryDirectory folder;
  const auto message = error_of(ErrorKind::failed, [&] { save_safetensors(folder / "no" / "a", {}); });
  EXPECT_TRUE(contains(message, "no/a: cannot create: No such file or directory")) << message;
}

TEST(Safetensors, ReadsWhatOthersWrite) {
  TemporaryDirectory folder;
  // Header not padded, keys in another order than the bytes, spaces, a tensor that is not aligned.
  write_bytes(folder / "a", file_bytes(R"({ "b" : {"data_offsets":[1,5],"dtype":"F32","shape":[1]},
      "a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]} } )",
                                       "\x05\x00\x00\x80\x3f"s));
  const auto content = load_safetensors(folder / "a");
  EXPECT_EQ(content.tensors[0].first, "a");
  EXPECT_EQ(content.tensors[0].second.item<int>(), 5);
  EXPECT_EQ(content.tensors[1].second.item<float>(), 1.0f);
  EXPECT_TRUE(content.metadata.empty());
}

TEST(Safetensors, RefusesInconsistentHeaders) {
  const std::string four(4, '\0');
  const std::string eight(8, '\0');
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  EXPECT_TRUE(contains(error_for("", ""), "too few"));
  EXPECT_TRUE(contains(error_for("nonsense", ""), "not JSON"));
  EXPECT_TRUE(contains(error_for("[1,2]", ""), "array"));
  EXPECT_TRUE(contains(error_for(R"({"x":1})", ""), "number"));
  EXPECT_TRUE(contains(error_for(R"({"x":{"dtype":"F32","shape":[1]}})", four), "no data_offsets"));
  EXPECT_TRUE(contains(error_for(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"y":1}})", four), "4 keys"));
  EXPECT_TRUE(contains(error_for(entry("C64", "[1]", "[0,8]"), eight), "\"C64\" is not supported"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[-1]", "[0,4]"), four), "shape holds -1"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[1.0]", "[0,4]"), four), "shape holds 1.0"));
  EXPECT_TRUE(contains(error_for(entry("F32", "1", "[0,4]"), four), "expected a list"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[9223372036854775808]", "[0,4]"), four), "2^63"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[1]", "[0]"), four), "expected [begin, end]"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[1]", "[4,0]"), four), "expected [begin, end]"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[2]", "[0,4]"), four), "takes 8 bytes"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[2]", "[0,8]"), four), "truncated"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[1]", "[4,8]"), eight), "hole"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[1]", "[0,4]"), eight), "4 bytes follow"));
  EXPECT_TRUE(contains(error_for(entry("BOOL", "[4]", "[0,4]"), "\0\1\2\1"s), "entry 2 is 2"));
  // 2^62 * 4 bytes wrap to 0; a 0 in the shape hides a product that would wrap in the strides.
  EXPECT_TRUE(contains(error_for(entry("F32", "[4611686018427387904]", "[0,0]"), ""), "larger than any memory"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[4294967296,4294967296,0]", "[0,0]"), ""), "larger than any memory"));
  EXPECT_TRUE(contains(error_for(entry("F32", "[0,4294967296,4294967296]", "[0,0]"), ""), "larger than any memory"));
  EXPECT_TRUE(contains(error_for(R"({"__metadata__":{"a":1}})", ""), "expected a string"));
  EXPECT_TRUE(contains(error_for(R"({"__metadata__":"a"})", ""), "expected an object"));
  EXPECT_TRUE(contains(error_for(R"({"x":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},)"
                                 R"("y":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}})",
                                 "\0\0"s),
                       "overlaps"));
  EXPECT_TRUE(contains(error_for(R"({"x":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},)"
                                 R"("x":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}})",
                                 "\0\0"s),
                       "\"x\" appears twice"));
  EXPECT_TRUE(contains(error_for(R"({"x":{"dtype":"I8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "\0"s),
                       "\"dtype\" appears twice"));
  EXPECT_TRUE(contains(error_for("{\"x\":" + std::string(1'000'000, '['), ""), "too deeply"));
  std::string ones = "[1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  EXPECT_TRUE(contains(error_for(entry("F32", ones + "]", "[0,4]"), four), "65 dimensions"));
}

TEST(Safetensors, RefusesAHeaderLengthThatIsTooLarge) {
  TemporaryDirectory folder;
  write_bytes(folder / "a", "\xff\xff\xff\xff\xff\xff\xff\xff{}"s);
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { load_safetensors(folder / "a"); }), "at most 100000000"));
  write_bytes(folder / "a", "\x03\0\0\0\0\0\0\0{}"s);
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { load_safetensors(folder / "a"); }), "only 2 follow"));
}

TEST(Safetensors, RefusesWhatIsNotAFile) {
  TemporaryDirectory folder;
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { load_safetensors(folder / "none"); }), "No such file"));
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { load_safetensors(folder.path()); }), "expected a file"));
}

TEST(Safetensors, NeverLoadsATruncatedFile) {
  TemporaryDirectory folder;
  const std::string whole = file_bytes(kGoldenHeader, kGoldenData);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_bytes(folder / "a", whole.substr(0, length));
    EXPECT_THROW(load_safetensors(folder / "a"), Error) << length;
  }
  write_bytes(folder / "a", whole + "x");
  EXPECT_THROW(load_safetensors(folder / "a"), Error);
}

// Damage of the header gives an Error or a file that is consistent, never anything else (another exception, a crash,
// memory that is not there). The digest tells every single one from the original.
TEST(Safetensors, FlippedBitsNeverCrash) {
  TemporaryDirectory folder;
  const std::string whole = file_bytes(kGoldenHeader, kGoldenData);
  std::int64_t loaded = 0;
  std::int64_t refused = 0;
  const auto attempt = [&](const std::string& bytes) {
    write_bytes(folder / "a", bytes);
    try {
      const auto content = load_safetensors(folder / "a");
      std::size_t data = 0;
      for (const auto& pair : content.tensors) data += pair.second.nbytes();
      EXPECT_LT(data, bytes.size());
      EXPECT_FALSE(content.digest == digest_of(whole));
      ++loaded;
    } catch (const Error& e) {
      EXPECT_EQ(static_cast<int>(e.kind()), 3) << e.what();
      ++refused;
    }
  };
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    attempt(bytes);
  }
  RandomStream random(7, Purpose::test);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    for (std::uint64_t n = 1 + random.below(4); n > 0; --n) {
      const std::size_t at = random.below(bytes.size());
      switch (random.below(3)) {
        case 0: bytes[at] = static_cast<char>(random.below(256)); break;
        case 1: bytes.erase(at, 1 + random.below(8)); break;
        default: bytes.insert(at, 1, "0123456789[]{},:\""[random.below(17)]);
      }
    }
    if (bytes != whole) attempt(bytes);
  }
  EXPECT_GT(loaded, 100);  // flips in the data and in names
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace espalier::train
