// The text of the kernels of images.h, included once by the file of each instruction set after vector-inl.h.

/// Vectors of a pixel: the 16 images that stand at one place.
template <class T>
constexpr int kPixelVectors = kImageLanes / kLanes<T>;

inline std::int64_t row_of(const ImagePlane& p) { return p.row() * kImageLanes; }
/// Where the image begins, behind the halo above and to the left.
inline std::int64_t first_of(const ImagePlane& p) { return p.first() * kImageLanes; }
inline std::int64_t entries_of(const ImagePlane& p) { return p.pixels() * kImageLanes; }

/// Whole pixels. Most are a few between two rows: too few for a call of memset, which the compiler would make of the
/// loop if it could.
template <class T>
inline void set_zero(T* from, T* to) {
  for (; from < to; from += kLanes<T>) {
    store(from, Vec<T>{});
    asm volatile("" : "+r"(from));
  }
}

/// All that is not image.
template <class T>
void clear_halo(const ImagePlane& p, T* plane) {
  T* zeros = plane;
  T* image = plane + first_of(p);
  for (std::int64_t y = 0; y < p.height; ++y, image += row_of(p)) {
    set_zero(zeros, image);
    zeros = image + p.width * kImageLanes;
  }
  set_zero(zeros, plane + entries_of(p));
}

/// f(entry) for `count` pixels of the image in order, beginning with the one that `at` and `x` (its column) stand for.
template <class T, class F>
inline void each_pixel(const ImagePlane& p, T*& at, std::int64_t& x, int count, const F& f) {
  for (int i = 0; i < count; ++i) {
    f(at, i);
    at += kImageLanes;
    if (++x == p.width) {
      x = 0;
      at += p.halo * kImageLanes;
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
      Vec<T> block[kLanes<T>];
      for (int i = 0; i < kLanes<T>; ++i) {
        Vec<T> pixels_of_image{};
        if (s + i < images) {
          const T* const from = channel + (s + i) * stride + p;
          if (n == kLanes<T>)
            pixels_of_image = load(from);
          else
            __builtin_memcpy(&pixels_of_image, from, static_cast<std::size_t>(n) * sizeof(T));
        }
        block[i] = pixels_of_image;
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
      Vec<T> block[kLanes<T>];
      for (int i = n; i < kLanes<T>; ++i) block[i] = Vec<T>{};
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

// --- sums -----------------------------------------------------------------------------------------------------------

template <class T, bool relu>
inline void add_rows(const T* a, std::int64_t a_row, const T* b, std::int64_t b_row, T* y, std::int64_t y_row,
                     std::int64_t rows, std::int64_t entries) {
  for (std::int64_t r = 0; r < rows; ++r, a += a_row, b += b_row, y += y_row) {
    for (std::int64_t i = 0; i < entries; i += kLanes<T>) {
      const Vec<T> sum = load(a + i) + load(b + i);
      store(y + i, relu ? (sum < T(0) ? Vec<T>{} : sum) : sum);  // NaN stays NaN
    }
  }
}

template <class T>
void add_planes(const T* a, std::int64_t a_halo, const T* b, std::int64_t b_halo, const ImagePlane& plane, bool relu,
                T* y) {
  const auto add = relu ? &add_rows<T, true> : &add_rows<T, false>;
  const bool in_place = y == a;                                     // its halo is zero already
  if (!in_place && a_halo == plane.halo && b_halo == plane.halo) {  // halos and all
    add(a, 0, b, 0, y, 0, 1, entries_of(plane));
    return;
  }
  const ImagePlane pa{plane.height, plane.width, a_halo}, pb{plane.height, plane.width, b_halo};
  if (!in_place) clear_halo(plane, y);
  add(a + first_of(pa), row_of(pa), b + first_of(pb), row_of(pb), y + first_of(plane), row_of(plane), plane.height,
      plane.width * kImageLanes);
}

// --- pools ----------------------------------------------------------------------------------------------------------

/// f(window, its pixel of the pooled plane, how many windows came before) for every window.
template <class T, class F>
inline void each_window(const ImagePlane& out, const PoolWindow* rows, const PoolWindow* columns, T* pooled,
                        const F& f) {
  std::int64_t window = 0;
  for (std::int64_t i = 0; i < out.height; ++i) {
    T* at = pooled + first_of(out) + i * row_of(out);
    for (std::int64_t j = 0; j < out.width; ++j, at += kImageLanes) f(rows[i], columns[j], at, window++);
  }
}

/// f(pixel, its number) for every pixel of a window, row by row.
template <class T, class F>
inline void each_pixel_of(const ImagePlane& plane, const PoolWindow& rows, const PoolWindow& columns, T* x,
                          const F& f) {
  T* row = x + first_of(plane) + rows.begin * row_of(plane);
  for (std::int64_t r = rows.begin; r < rows.end; ++r, row += row_of(plane)) {
    for (std::int64_t c = columns.begin; c < columns.end; ++c) f(row + c * kImageLanes, r * plane.width + c);
  }
}

template <class T>
inline Lanes<T> every_lane(std::int64_t pixel) {
  return broadcast(static_cast<Pixel<T>>(pixel));
}

template <class T>
void max_pool(const T* x, const ImagePlane& plane, const PoolWindow* rows, const PoolWindow* columns,
              const ImagePlane& out, T* y, Pixel<T>* pixels) {
  clear_halo(out, y);
  each_window(out, rows, columns, y, [&](const PoolWindow& r, const PoolWindow& c, T* to, std::int64_t window) {
    Vec<T> best[kPixelVectors<T>];
    Lanes<T> where[kPixelVectors<T>];
#pragma GCC unroll 8
    for (int v = 0; v < kPixelVectors<T>; ++v) {
      best[v] = broadcast(-std::numeric_limits<T>::infinity());
      where[v] = every_lane<T>(r.begin * plane.width + c.begin);
    }
    each_pixel_of(plane, r, c, x, [&](const T* pixel, std::int64_t number) {
#pragma GCC unroll 8
      for (int v = 0; v < kPixelVectors<T>; ++v) {
        const Vec<T> value = load(pixel + v * kLanes<T>);
        const Lanes<T> larger = (value > best[v]) | (value != value);
        best[v] = larger ? value : best[v];
        where[v] = larger ? every_lane<T>(number) : where[v];
      }
    });
#pragma GCC unroll 8
    for (int v = 0; v < kPixelVectors<T>; ++v) {
      store(to + v * kLanes<T>, best[v]);
      if (pixels != nullptr) store(pixels + window * kImageLanes + v * kLanes<T>, where[v]);
    }
  });
}

template <class T>
void max_pool_gradient(const T* dy, const Pixel<T>* pixels, const ImagePlane& out, const PoolWindow* rows,
                       const PoolWindow* columns, const ImagePlane& plane, T* dx) {
  set_zero(dx, dx + entries_of(plane));
  each_window(out, rows, columns, dy,
              [&](const PoolWindow& r, const PoolWindow& c, const T* from, std::int64_t window) {
                Vec<T> g[kPixelVectors<T>];
                Lanes<T> where[kPixelVectors<T>];
#pragma GCC unroll 8
                for (int v = 0; v < kPixelVectors<T>; ++v) {
                  g[v] = load(from + v * kLanes<T>);
                  where[v] = load(pixels + window * kImageLanes + v * kLanes<T>);
                }
                each_pixel_of(plane, r, c, dx, [&](T* pixel, std::int64_t number) {
#pragma GCC unroll 8
                  for (int v = 0; v < kPixelVectors<T>; ++v) {
                    T* const to = pixel + v * kLanes<T>;
                    store(to, load(to) + (where[v] == every_lane<T>(number) ? g[v] : Vec<T>{}));
                  }
                });
              });
}

inline double share_of(const PoolWindow& rows, const PoolWindow& columns, std::int64_t divisor) {
  const std::int64_t pixels = (rows.end - rows.begin) * (columns.end - columns.begin);
  return 1 / static_cast<double>(divisor == 0 ? pixels : divisor);
}

template <class T>
void average_pool(const T* x, const ImagePlane& plane, const PoolWindow* rows, const PoolWindow* columns,
                  std::int64_t divisor, const ImagePlane& out, T* y) {
  clear_halo(out, y);
  each_window(out, rows, columns, y, [&](const PoolWindow& r, const PoolWindow& c, T* to, std::int64_t) {
    const T share = static_cast<T>(share_of(r, c, divisor));
    Vec<T> sum[kPixelVectors<T>] = {};
    for (std::int64_t i = r.begin; i < r.end; ++i) {  // row by row: roundings grow with rows + columns
      Vec<T> row[kPixelVectors<T>] = {};
      each_pixel_of(plane, {i, i + 1}, c, x, [&](const T* pixel, std::int64_t) {
#pragma GCC unroll 8
        for (int v = 0; v < kPixelVectors<T>; ++v) row[v] += load(pixel + v * kLanes<T>);
      });
#pragma GCC unroll 8
      for (int v = 0; v < kPixelVectors<T>; ++v) sum[v] += row[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < kPixelVectors<T>; ++v) store(to + v * kLanes<T>, sum[v] * share);
  });
}

template <class T>
void average_pool_gradient(const T* dy, const ImagePlane& out, const PoolWindow* rows, const PoolWindow* columns,
                           std::int64_t divisor, const ImagePlane& plane, T* dx) {
  set_zero(dx, dx + entries_of(plane));
  each_window(out, rows, columns, dy, [&](const PoolWindow& r, const PoolWindow& c, const T* from, std::int64_t) {
    const T share = static_cast<T>(share_of(r, c, divisor));
    Vec<T> g[kPixelVectors<T>];
#pragma GCC unroll 8
    for (int v = 0; v < kPixelVectors<T>; ++v) g[v] = load(from + v * kLanes<T>) * share;
    each_pixel_of(plane, r, c, dx, [&](T* pixel, std::int64_t) {
#pragma GCC unroll 8
      for (int v = 0; v < kPixelVectors<T>; ++v) {
        T* const to = pixel + v * kLanes<T>;
        store(to, load(to) + g[v]);
      }
    });
  });
}

template <class T>
void largest(const T* x, const ImagePlane& plane, T* y) {
  const PoolWindow rows{0, plane.height}, columns{0, plane.width};
  max_pool<T>(x, plane, &rows, &columns, {1, 1, 0}, y, nullptr);
}

template <class T>
void largest_gradient(const T* x, const ImagePlane& plane, const T* y, const T* dy, T* dx) {
  clear_halo(plane, dx);
  const PoolWindow rows{0, plane.height}, columns{0, plane.width};
  for (int v = 0; v < kImageLanes; v += kLanes<T>) {
    const Vec<T> top = load(y + v);
    Vec<T> equals{};
    each_pixel_of(plane, rows, columns, x,
                  [&](const T* pixel, std::int64_t) { equals += load(pixel + v) == top ? broadcast(T(1)) : Vec<T>{}; });
    const Vec<T> share = load(dy + v) / equals;
    each_pixel_of(plane, rows, columns, dx, [&](T* pixel, std::int64_t) {
      store(pixel + v, load(x + (pixel - dx) + v) == top ? share : Vec<T>{});
    });
  }
}

// --- vectors --------------------------------------------------------------------------------------------------------

template <class T>
void to_features(const T* x, const ImagePlane& plane, T* tile, std::int64_t lanes) {
  each_pixel_of(plane, {0, plane.height}, {0, plane.width}, x, [&](const T* pixel, std::int64_t number) {
    for (int v = 0; v < kImageLanes; v += kLanes<T>) store(tile + number * lanes + v, load(pixel + v));
  });
}

template <class T>
void from_features(const T* tile, std::int64_t lanes, const ImagePlane& plane, T* x) {
  clear_halo(plane, x);
  each_pixel_of(plane, {0, plane.height}, {0, plane.width}, x, [&](T* pixel, std::int64_t number) {
    for (int v = 0; v < kImageLanes; v += kLanes<T>) store(pixel + v, load(tile + number * lanes + v));
  });
}

template <class T>
constexpr ImageKernels<T> image_kernels() {
  return {&to_plane<T>,          &from_plane<T>,       &with_halo<T>,
          &clear_halo<T>,        &add_planes<T>,       &max_pool<T>,
          &max_pool_gradient<T>, &average_pool<T>,     &average_pool_gradient<T>,
          &largest<T>,           &largest_gradient<T>, &to_features<T>,
          &from_features<T>};
}
