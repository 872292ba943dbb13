// The text of the kernels of update.h, included after power-inl.h.

/// Entries [at, at + count): a whole vector, or the part of one at the end of a range.
template <class T, bool whole>
struct Entries {
  std::int64_t at;
  std::size_t count;
  Vec<T> load(const T* from) const {
    Vec<T> v{};
    __builtin_memcpy(&v, from + at, whole ? sizeof v : count * sizeof(T));
    return v;
  }
  void store(T* to, Vec<T> v) const { __builtin_memcpy(to + at, &v, whole ? sizeof v : count * sizeof(T)); }
};

/// For each vector of entries: the gradient of phi from that of w, step(entries, phi, gradient) -> new phi, and w.
template <class T, class Step>
inline void update(const UpdateTensors<T>& t, std::int64_t begin, std::int64_t end, const Step& step) {
  with_power<T>(t.alpha, [&](const auto power) {
    const T alpha = static_cast<T>(t.alpha), decay = static_cast<T>(t.decay_w);
    const bool identity = t.alpha == 1;
    const auto one = [&](const auto& e) {
      Vec<T> phi = e.load(t.phi), g = e.load(t.g);
      if (identity) {
        g += phi * decay;
      } else {
        const Vec<T> factor = t.power != nullptr ? e.load(t.power) : power(magnitude(phi));
        g = (g + phi * factor * decay) * (factor * alpha);
      }
      phi = step(e, phi, g);
      e.store(t.phi, phi);
      if (identity) return;
      const Vec<T> factor = power(magnitude(phi));
      if (t.power != nullptr) e.store(t.power, factor);
      e.store(t.w, phi * factor);
    };
    std::int64_t i = begin;
    for (; i + kLanes<T> <= end; i += kLanes<T>) one(Entries<T, true>{i, kLanes<T>});
    if (i < end) one(Entries<T, false>{i, static_cast<std::size_t>(end - i)});
  });
}

template <class T>
void sgd(const UpdateTensors<T>& t, const SgdRule& rule, std::int64_t begin, std::int64_t end) {
  const T lr = static_cast<T>(rule.lr), momentum = static_cast<T>(rule.momentum),
          fresh = static_cast<T>(1 - rule.dampening), decay = static_cast<T>(rule.weight_decay);
  const bool has_decay = rule.weight_decay != 0, has_momentum = rule.momentum != 0;
  update<T>(t, begin, end, [&](const auto& e, Vec<T> phi, Vec<T> g) {
    if (has_decay) g += phi * decay;
    if (has_momentum) {
      const Vec<T> buffer = rule.first_step ? g : e.load(t.first) * momentum + g * fresh;
      e.store(t.first, buffer);
      g = rule.nesterov ? g + buffer * momentum : buffer;
    }
    return phi - g * lr;
  });
}

template <class T>
void adam(const UpdateTensors<T>& t, const AdamRule& rule, std::int64_t begin, std::int64_t end) {
  const T beta1 = static_cast<T>(rule.beta1), beta2 = static_cast<T>(rule.beta2), new1 = static_cast<T>(1 - rule.beta1),
          new2 = static_cast<T>(1 - rule.beta2), eps = static_cast<T>(rule.eps),
          step_size = static_cast<T>(rule.lr / rule.correction1),
          scale = static_cast<T>(1 / __builtin_sqrt(rule.correction2)), decay = static_cast<T>(rule.weight_decay),
          shrink = static_cast<T>(1 - rule.lr * rule.weight_decay);
  const bool has_decay = rule.weight_decay != 0;
  update<T>(t, begin, end, [&](const auto& e, Vec<T> phi, Vec<T> g) {
    if (has_decay) {
      if (rule.decoupled)
        phi *= shrink;
      else
        g += phi * decay;
    }
    const Vec<T> first = e.load(t.first) * beta1 + g * new1;
    const Vec<T> second = e.load(t.second) * beta2 + g * g * new2;
    e.store(t.first, first);
    e.store(t.second, second);
    return phi - first * step_size / (square_root(second) * scale + eps);
  });
}

template <class T>
constexpr UpdateKernels<T> update_kernels() {
  return {&sgd<T>, &adam<T>};
}
