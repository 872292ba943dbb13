#include "bench/sparse_peers.h"

#include <torch/torch.h>

#include <limits>
#include <memory>

#ifdef ESPALIER_LIBXSMM
#include <libxsmm.h>
#endif
#ifdef ESPALIER_XNNPACK
#include <pthreadpool.h>
#include <xnnpack.h>
#endif

namespace espalier::bench {
namespace {

#ifdef ESPALIER_LIBXSMM
/// libxsmm's product with a matrix that turns out sparse ("spmdm"): blocks of it in compressed form.
class Libxsmm {
 public:
  Libxsmm(const at::Tensor& w, const at::Tensor& x, const at::Tensor& y) : x_(x), y_(y) {
    libxsmm_spmdm_init(static_cast<int>(w.size(0)), static_cast<int>(x.size(1)), static_cast<int>(w.size(1)),
                       at::get_num_threads(), &handle_, &slices_);
    for (int block = 0; block < libxsmm_spmdm_get_num_createSparseSlice_blocks(&handle_); ++block) {
      libxsmm_spmdm_createSparseSlice_fp32_thread(&handle_, 'N', w.data_ptr<float>(), slices_, block, 0, 1);
    }
  }
  ~Libxsmm() { libxsmm_spmdm_destroy(&handle_); }
  Libxsmm(const Libxsmm&) = delete;
  Libxsmm& operator=(const Libxsmm&) = delete;

  void run() {
    const float one = 1, zero = 0;
    at::parallel_for(0, libxsmm_spmdm_get_num_compute_blocks(&handle_), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block) {
        libxsmm_spmdm_compute_fp32_thread(&handle_, 'N', 'N', &one, slices_, x_.data_ptr<float>(), 'N', &zero,
                                          y_.data_ptr<float>(), static_cast<int>(block), at::get_thread_num(),
                                          at::get_num_threads());
      }
    });
  }

 private:
  at::Tensor x_, y_;
  libxsmm_spmdm_handle handle_{};
  libxsmm_CSR_sparseslice* slices_ = nullptr;
};
#endif

#ifdef ESPALIER_XNNPACK
/// XNNPACK multiplies by a sparse matrix in its 1x1 convolutions of channels-first images: here one row of pixels, the
/// batch.
class Xnnpack {
 public:
  Xnnpack(const at::Tensor& w, const at::Tensor& x, const at::Tensor& y)
      : pool_(pthreadpool_create(static_cast<std::size_t>(at::get_num_threads())), pthreadpool_destroy) {
    // It may read a little beyond the end.
    x_ = torch::zeros({x.numel() + XNN_EXTRA_BYTES});
    x_.narrow(0, 0, x.numel()).copy_(x.view({-1}));
    const auto in = static_cast<std::size_t>(w.size(1)), out = static_cast<std::size_t>(w.size(0));
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    xnn_operator_t created = nullptr;
    good_ = xnn_initialize(nullptr) == xnn_status_success &&
            xnn_create_convolution2d_nchw_f32(0, 0, 0, 0, 1, 1, 1, 1, 1, 1, /*groups=*/1, in, out, in, out,
                                              w.data_ptr<float>(), nullptr, -kInfinity, kInfinity, 0,
                                              &created) == xnn_status_success;
    operator_.reset(created);
    good_ = good_ &&
            xnn_setup_convolution2d_nchw_f32(created, 1, 1, static_cast<std::size_t>(x.size(1)), x_.data_ptr<float>(),
                                             y.data_ptr<float>(), pool_.get()) == xnn_status_success;
  }
  bool good() const { return good_; }
  void run() { xnn_run_operator(operator_.get(), pool_.get()); }

 private:
  struct Delete {
    void operator()(xnn_operator_t o) const { xnn_delete_operator(o); }
  };
  at::Tensor x_;
  bool good_ = false;
  std::unique_ptr<pthreadpool, decltype(&pthreadpool_destroy)> pool_;
  std::unique_ptr<xnn_operator, Delete> operator_;
};
#endif

template <class Peer>
[[maybe_unused]] SparsePeer peer(const char* name, const std::shared_ptr<Peer>& product, const at::Tensor& y) {
  return {name, [product] { product->run(); }, y};
}

}  // namespace

std::vector<SparsePeer> sparse_peers([[maybe_unused]] const at::Tensor& w, [[maybe_unused]] const at::Tensor& x) {
  std::vector<SparsePeer> peers;
#ifdef ESPALIER_LIBXSMM
  {
    const at::Tensor y = torch::zeros({w.size(0), x.size(1)});
    peers.push_back(peer("libxsmm", std::make_shared<Libxsmm>(w, x, y), y));
  }
#endif
#ifdef ESPALIER_XNNPACK
  {
    const at::Tensor y = torch::zeros({w.size(0), x.size(1)});
    const auto product = std::make_shared<Xnnpack>(w, x, y);
    if (product->good()) peers.push_back(peer("XNNPACK", product, y));
  }
#endif
  return peers;
}

}  // namespace espalier::bench
