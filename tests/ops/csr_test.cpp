#include "espalier/ops/csr.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "espalier/kernels/compressed.h"

namespace espalier::ops {
namespace {

using torch::Tensor;

Tensor integers(std::vector<std::int64_t> numbers) { return torch::tensor(numbers, torch::kInt64); }

// [[0, x, 0], [0, 0, 0], [x, 0, x]]
const std::vector<std::int64_t> kPositions = {1, 6, 8};

TEST(Csr, OfPositionsAndBack) {
  const auto list = kernels::list_of(3, 3, kPositions.data(), 3, 1);
  const Csr csr = csr_of(list);
  EXPECT_TRUE(csr.crow_indices.equal(integers({0, 1, 1, 3})));
  EXPECT_TRUE(csr.col_indices.equal(integers({1, 0, 2})));
  const auto back = list_of(csr, 3, 3, "w", ErrorKind::usage);
  EXPECT_EQ(back.start, list.start);
  EXPECT_EQ(back.column, list.column);
  const auto empty = list_of(csr_of(kernels::list_of(2, 5, nullptr, 0, 1)), 2, 5, "w", ErrorKind::usage);
  EXPECT_EQ(empty.start, (std::vector<std::uint32_t>{0, 0, 0}));
  EXPECT_TRUE(empty.column.empty());
}

TEST(Csr, RefusesWhatIsNotOne) {
  const Tensor crow = integers({0, 1, 1, 3}), col = integers({1, 0, 2});
  const auto message = [](const Csr& csr) -> std::string {
    try {
      list_of(csr, 3, 3, "fc1.weight", ErrorKind::data);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::data);
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(message({Tensor(), col}),
            "fc1.weight: crow_indices must be a one-dimensional int64 tensor on the CPU; found none");
  EXPECT_EQ(message({crow, col.to(torch::kInt)}),
            "fc1.weight: col_indices must be a one-dimensional int64 tensor on the CPU; found Int [3] on cpu");
  EXPECT_EQ(message({integers({0, 3}), col}), "fc1.weight: crow_indices has 2 entries; a matrix [3, 3] needs 4");
  EXPECT_EQ(message({integers({0, 1, 1, 2}), col}),
            "fc1.weight: crow_indices begins with 0 and ends with 2; expected 0 and the number of col_indices, 3");
  EXPECT_EQ(message({integers({0, 9, 1, 3}), col}),
            "fc1.weight: crow_indices must not descend; found 9 before 1 at row 1");
  EXPECT_EQ(message({crow, integers({3, 0, 2})}),
            "fc1.weight: the col_indices of a row must ascend within [0, 3); found 3 at number 0, in row 0");
  EXPECT_EQ(message({crow, integers({1, 2, 2})}),
            "fc1.weight: the col_indices of a row must ascend within [0, 3); found 2 at number 2, in row 2");
}

TEST(Csr, ValuesGoToTheirCanonicalPlacesAndBack) {
  kernels::EntryIndices place;
  kernels::compress(3, 3, kPositions.data(), 3, place, 1);
  const Tensor values = torch::tensor({1.0, 2.0, 3.0}, torch::kDouble);
  const Tensor canonical = to_canonical(values, place);
  EXPECT_TRUE(canonical.equal(torch::tensor({2.0, 1.0, 3.0}, torch::kDouble))) << canonical;  // by columns
  EXPECT_TRUE(from_canonical(canonical, place).equal(values));
}

}  // namespace
}  // namespace espalier::ops
