#include <fmt/format.h>

#include <algorithm>

#include "espalier/bench/bench.h"
#include "espalier/core/error.h"
#include "espalier/ops/sparse_conv.h"

namespace espalier::bench {
namespace {

/// Padding that keeps the size for odd kernels and stride 1.
std::int64_t keeping(std::int64_t kernel, std::int64_t dilation) { return dilation * (kernel - 1) / 2; }

/// Reads a text from the left.
class Reader {
 public:
  Reader(std::string text, std::string where) : text_(std::move(text)), where_(std::move(where)) {}

  bool at_end() const { return at_ == text_.size(); }
  bool take(char c) {
    if (at_end() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) wrong();
  }
  std::int64_t number() {
    const auto end = std::min(text_.find_first_not_of("0123456789", at_), text_.size());
    if (end == at_ || end - at_ > 9) wrong();
    const std::int64_t n = std::stoll(text_.substr(at_, end - at_));
    at_ = end;
    return n;
  }
  [[noreturn]] void wrong() const {
    fail(ErrorKind::usage,
         "{}: shape \"{}\": expected channels in x out @ pixels such as 64x128@32, then what differs from a 3x3 kernel "
         "with stride 1: 64x128@32:k5:s2:p2:d1:g4 (kernel, stride, padding, dilation, groups)",
         where_, text_);
  }

 private:
  std::string text_, where_;
  std::size_t at_ = 0;
};

}  // namespace

ConvCase conv_case(const std::string& text, const std::string& where) {
  Reader reader(text, where);
  ConvCase c;
  c.shape.in = reader.number();
  reader.expect('x');
  c.shape.out = reader.number();
  reader.expect('@');
  c.height = c.width = reader.number();
  if (reader.take('x')) c.width = reader.number();
  std::int64_t kernel = 3, stride = 1, padding = -1, dilation = 1;
  const std::pair<char, std::int64_t*> known[] = {
      {'k', &kernel}, {'s', &stride}, {'p', &padding}, {'d', &dilation}, {'g', &c.shape.groups}};
  std::string given;
  while (!reader.at_end()) {
    reader.expect(':');
    const auto* const found =
        std::find_if(std::begin(known), std::end(known), [&](const auto& k) { return reader.take(k.first); });
    if (found == std::end(known) || given.find(found->first) != std::string::npos) reader.wrong();
    given += found->first;
    *found->second = reader.number();
  }
  if (padding < 0) padding = keeping(kernel, dilation);
  c.shape.kernel = {kernel, kernel};
  c.shape.stride = {stride, stride};
  c.shape.padding = {padding, padding};
  c.shape.dilation = {dilation, dilation};
  try {
    ops::check_conv(c.shape);
  } catch (const Error& e) {
    fail(e.kind(), "{}: shape \"{}\": {}", where, text, e.what());
  }
  ESPALIER_CHECK(c.shape.output(0, c.height) > 0 && c.shape.output(1, c.width) > 0, ErrorKind::usage,
                 "{}: shape \"{}\": images of {}x{} pixels with padding {} are smaller than the kernel", where, text,
                 c.height, c.width, padding);
  return c;
}

std::string to_text(const ConvCase& c) {
  const kernels::ConvShape& s = c.shape;
  for (const auto& pair : {s.kernel, s.stride, s.padding, s.dilation}) ESPALIER_ASSERT(pair[0] == pair[1]);
  std::string text = fmt::format("{}x{}@{}", s.in, s.out, c.height);
  if (c.width != c.height) text += fmt::format("x{}", c.width);
  const auto add = [&](char letter, std::int64_t n, std::int64_t usual) {
    if (n != usual) text += fmt::format(":{}{}", letter, n);
  };
  add('k', s.kernel[0], 3);
  add('s', s.stride[0], 1);
  add('p', s.padding[0], keeping(s.kernel[0], s.dilation[0]));
  add('d', s.dilation[0], 1);
  add('g', s.groups, 1);
  return text;
}

}  // namespace espalier::bench
