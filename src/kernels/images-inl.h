// The text of the kernels of images.h, included once by the file of each instruction set after vector-inl.h.

/// Vectors of a pixel: the 16 images that stand at one place.
template <class T>
constexpr int kPixelVectors = kImageLanes / kLanes<T>;

inline std::int64_t row_of(const ImagePlane& p) { return (p.width + 2 * p.halo) * kImageLanes; }
/// Where the image begins, behind the halo above and to the left.
inline std::int64_t first_of(const ImagePlane& p) { return p.halo * (row_of(p) + kImageLanes); }

template <class T>
inline void set_zero(T* from, T* to) {
  if (to > from) __builtin_memset(from, 0, static_cast<std::size_t>(to - from) * sizeof(T));
}

/// The halo runs on from the right of one row to the left of the next.
template <class T>
void clear_halo(const ImagePlane& p, T* plane) {
  if (p.halo == 0) return;
  T* zeros = plane;
  T* image = plane + first_of(p);
  for (std::int64_t y = 0; y < p.height; ++y, image += row_of(p)) {
    set_zero(zeros, image);
    zeros = image + p.width * kImageLanes;
  }
  set_zero(zeros, plane + (p.height + 2 * p.halo) * row_of(p));
}

/// f(entry) for `count` pixels of the image in order, beginning with the one that `at` and `x` (its column) stand for.
template <class T, class F>
inline void each_pixel(const ImagePlane& p, T*& at, std::int64_t& x, int count, const F& f) {
  for (int i = 0; i < count; ++i) {
    f(at, i);
    at += kImageLanes;
    if (++x == p.width) {
      x = 0;
      at += 2 * p.halo * kImageLanes;
    }
  }
}

// Between images and planes, blocks of as many pixels as a vector has lanes are transposed. Images are read without
// regard for rows, so narrow ones fill their blocks too.

template <class T>
void to_plane(const T* channel, std::int64_t stride, int images, const ImagePlane& plane, T* to) {
  clear_halo(plane, to);
  const std::int64_t pixels = plane.height * plane.width;
  T* at = to + first_of(plane);
  std::int64_t x = 0;
  for (std::int64_t p = 0; p < pixels; p += kLanes<T>) {
    const auto n = static_cast<int>(std::min<std::int64_t>(kLanes<T>, pixels - p));
    T* next = at;
    std::int64_t next_x = x;
    for (int s = 0; s < kImageLanes; s += kLanes<T>) {
      Vec<T> block[kLanes<T>] = {};
      for (int i = 0; i < std::min(kLanes<T>, images - s); ++i) {
        const T* const from = channel + (s + i) * stride + p;
        if (n == kLanes<T>)
          block[i] = load(from);
        else
          __builtin_memcpy(&block[i], from, static_cast<std::size_t>(n) * sizeof(T));
      }
      transpose<T>(block);
      next = at;
      next_x = x;
      each_pixel(plane, next, next_x, n, [&](T* pixel, int i) { store(pixel + s, block[i]); });
    }
    at = next;
    x = next_x;
  }
}

template <class T>
void from_plane(const T* from, const ImagePlane& plane, T* channel, std::int64_t stride, int images) {
  const std::int64_t pixels = plane.height * plane.width;
  const T* at = from + first_of(plane);
  std::int64_t x = 0;
  for (std::int64_t p = 0; p < pixels; p += kLanes<T>) {
    const auto n = static_cast<int>(std::min<std::int64_t>(kLanes<T>, pixels - p));
    const T* next = at;
    std::int64_t next_x = x;
    for (int s = 0; s < images; s += kLanes<T>) {
      Vec<T> block[kLanes<T>] = {};
      next = at;
      next_x = x;
      each_pixel(plane, next, next_x, n, [&](const T* pixel, int i) { block[i] = load(pixel + s); });
      transpose<T>(block);
      for (int i = 0; i < std::min(kLanes<T>, images - s); ++i) {
        T* const to = channel + (s + i) * stride + p;
        if (n == kLanes<T>)
          store(to, block[i]);
        else
          __builtin_memcpy(to, &block[i], static_cast<std::size_t>(n) * sizeof(T));
      }
    }
    at = next;
    x = next_x;
  }
}

template <class T>
void with_halo(const T* from, const ImagePlane& plane, std::int64_t halo, T* to) {
  const ImagePlane wanted{plane.height, plane.width, halo};
  clear_halo(wanted, to);
  for (std::int64_t y = 0; y < plane.height; ++y) {
    __builtin_memcpy(to + first_of(wanted) + y * row_of(wanted), from + first_of(plane) + y * row_of(plane),
                     static_cast<std::size_t>(plane.width) * kImageLanes * sizeof(T));
  }
}

template <class T>
constexpr ImageKernels<T> image_kernels() {
  return {&to_plane<T>, &from_plane<T>, &clear_halo<T>, &with_halo<T>};
}
