// Operators by family.
#include "harness.h"

using namespace programs;
using torch::indexing::Ellipsis;
using torch::indexing::None;
using torch::indexing::Slice;

namespace {

constexpr auto f64 = torch::kDouble;

Tensor positive(std::vector<int64_t> sizes) { return torch::rand(sizes, f64) + 0.5; }

}  // namespace

BOOST_AUTO_TEST_SUITE(operators)

BOOST_AUTO_TEST_CASE(indexing) {
  check([] {
    return program(
        [](Tensor x, Tensor rows, Tensor columns) {
          return std::vector<Tensor>{x.index({rows}),
                                     x.index({rows - 5, columns}),
                                     x.index({Slice(), columns, Slice(1, None, 2)}),
                                     x.index({Ellipsis, 1}),
                                     x.index({1, None, Slice(None, -1)}),
                                     x.index({rows.unsqueeze(1), columns}),
                                     x.select(1, -1),
                                     x.slice(0, 1, 4, 2),
                                     x.narrow(2, 1, 2),
                                     x[0][1],
                                     x.index_select(1, columns),
                                     torch::take_along_dim(x, x.argsort(false, 2), 2),
                                     x.take(rows),
                                     x.diagonal(0, 1, 2),
                                     x.unfold(1, 2, 1)};
        },
        [](int) {
          const Tensor x = torch::randn({5, 4, 4}, f64), rows = torch::randint(5, {3});
          return std::tuple(x, rows, torch::randint(4, {3}));
        });
  });
}

BOOST_AUTO_TEST_CASE(masks) {
  check([] {
    return program(
        [](Tensor x, Tensor y) {
          const Tensor mask = x > 0.3;
          Tensor z = x.clone();
          z.masked_fill_(x.isnan() | (y < -1), 7.0);
          z.index_put_({mask}, torch::tensor(-1.0, f64));
          z.index_put_({mask.select(1, 0), Slice()}, torch::tensor(2.5, f64));
          return std::tuple(z, torch::where(mask, x, y), x.masked_fill(mask, 0.5), torch::where(mask, x, 1.0),
                            x.masked_scatter(mask, y), mask.logical_not(), mask.any(1), mask.all());
        },
        [](int) {
          const Tensor x = torch::randn({4, 5}, f64);
          return std::tuple(x, torch::randn({4, 5}, f64));
        });
  });
}

BOOST_AUTO_TEST_CASE(index_put) {
  check([] {
    return program(
        [](Tensor x, Tensor rows, Tensor values) {
          Tensor y = x.clone();
          y.index_put_({rows}, values);
          y.index_put_({rows, torch::zeros_like(rows)}, values[0].slice(0, 0, 3) * 2, /*accumulate=*/true);
          Tensor z = torch::zeros_like(x).index_add_(0, rows, values).index_fill_(1, torch::tensor({1}), 3.0);
          z.select(1, 0).copy_(values.sum());
          z.index({Slice(1, 3), 2}) += 5;
          return std::tuple(y, z, x.index_copy(0, torch::tensor({0, 2, 1}), values),
                            x.put(rows, values[0].slice(0, 0, 3)));
        },
        [](int) {
          const Tensor x = torch::randn({5, 4}, f64), rows = torch::randperm(5).slice(0, 0, 3);
          return std::tuple(x, rows, torch::randn({3, 4}, f64));
        });
  });
}

BOOST_AUTO_TEST_CASE(einsum_and_products) {
  check([] {
    return program(
        [](Tensor a, Tensor b) {
          return std::vector<Tensor>{torch::einsum("bij,bjk->bik", {a, b}),
                                     torch::einsum("bij,bij->b", {a, a}),
                                     torch::einsum("...ij->...ji", {a}),
                                     torch::einsum("bii->bi", {torch::matmul(a, b)}),
                                     torch::matmul(a, b[0]),
                                     torch::bmm(a, b),
                                     torch::baddbmm(torch::matmul(a, b), a, b, 0.5, 2),
                                     torch::addmm(torch::mm(a[0], b[0]), a[1], b[1]),
                                     torch::mv(a[0], b[0].select(1, 0)),
                                     torch::tensordot(a, b, {0, 2}, {0, 1}),
                                     torch::outer(a[0][0], b[0][0]),
                                     torch::kron(a[0], b[1]),
                                     torch::dot(a[0][0], b[0].select(1, 1)),
                                     torch::linalg_multi_dot({a[0], b[0], a[1]})};
        },
        [](int) {
          const Tensor a = torch::randn({2, 3, 4}, f64);
          return std::tuple(a, torch::randn({2, 4, 3}, f64));
        });
  });
}

BOOST_AUTO_TEST_CASE(joining_and_splitting) {
  check([] {
    return program(
        [](Tensor x, Tensor y) {
          const auto parts = x.chunk(3, 1);
          const auto pieces = y.split({1, 3, 2}, 1);
          return std::tuple(torch::cat({parts[2], y, parts[0]}, 1), torch::stack({x, y}, -1),
                            torch::cat({pieces[1] * 2, parts[1]}, 1), x.tensor_split(4, 1), torch::hstack({x, y}),
                            torch::vstack({x, y}), x.unbind(0), x.repeat({2, 1}), x.repeat_interleave(2, 0),
                            x.expand({3, 4, 6}).sum(0), x.roll({1}, {0}), x.flip({0, 1}), torch::tile(x, {1, 2}),
                            torch::meshgrid({x[0], y[0]}, "ij"), torch::broadcast_tensors({x[0], y}));
        },
        [](int) {
          const Tensor x = torch::randn({4, 6});
          return std::tuple(x, torch::randn({4, 6}));
        });
  });
}

BOOST_AUTO_TEST_CASE(views_and_layouts) {
  check([] {
    return program(
        [](Tensor x) {
          const Tensor y = x * 2;
          return std::vector<Tensor>{y.view({6, 4}),
                                     y.t().contiguous(),
                                     y.t().reshape({-1}),
                                     y.permute({1, 0}),
                                     y.unsqueeze(1).squeeze(),
                                     y.as_strided({3, 3}, {1, 2}, 1).clone(),
                                     y.view({2, 2, 6}).transpose(0, 2),
                                     y.flatten().unflatten(0, {3, 8}),
                                     y.movedim(0, 1).swapaxes(0, 1),
                                     y.view(torch::kInt64).to(torch::kDouble).sign(),
                                     torch::atleast_3d(y),
                                     y.tril(1).triu(-1),
                                     torch::diag_embed(y),
                                     y.rot90(1, {0, 1})};
        },
        [](int) { return std::tuple(torch::randn({4, 6}, f64)); });
  });
}

BOOST_AUTO_TEST_CASE(sorting) {
  check([] {
    return program(
        [](Tensor x) {
          auto [sorted, order] = x.sort(1, /*descending=*/true);
          auto [largest, where] = x.topk(3, 1);
          auto [third, third_at] = x.kthvalue(3, 1);
          auto [middle, middle_at] = x.median(1);
          auto [maximum, maximum_at] = x.max(0);
          return std::tuple(sorted, order, largest, where, third, third_at, middle, middle_at, maximum, maximum_at,
                            x.argsort(false, 0), x.argmax(1), x.argmin(), x.msort(),
                            torch::searchsorted(std::get<0>(x.flatten().sort()), x[0]),
                            torch::bucketize(x, torch::linspace(-1, 1, 5, f64)));
        },
        [](int) { return std::tuple(torch::randn({5, 7}, f64)); });
  });
}

BOOST_AUTO_TEST_CASE(scatter_and_gather) {
  check([] {
    return program(
        [](Tensor x, Tensor at, Tensor source) {
          return std::tuple(
              x.gather(1, at), x.scatter(1, at, source), x.scatter_add(1, at, source), x.scatter(1, at, 1.5),
              x.scatter_reduce(1, at, source, "amax"), torch::zeros_like(x).scatter_(0, at, 1.0), torch::one_hot(at, 4),
              x.select_scatter(source[0].slice(0, 0, 4), 0, 1), x.slice_scatter(source.slice(0, 0, 2), 0, 1, 3));
        },
        [](int) {
          // Each row holds different positions: with a repeated one, scatter may write either value.
          const Tensor x = torch::randn({4, 4}, f64), at = torch::rand({4, 4}).argsort(false, 1);
          return std::tuple(x, at, torch::randn({4, 4}, f64));
        });
  });
}

BOOST_AUTO_TEST_CASE(scans) {
  check([] {
    return program(
        [](Tensor x) {
          return std::tuple(x.cumsum(0), x.cumprod(1), x.cummax(1), x.logcumsumexp(0), x.diff(1, 1),
                            torch::trapezoid(x, 0.5, 1), (x > 1).cumsum(1),
                            x.to(torch::kFloat).cumsum(1, torch::kDouble));
        },
        [](int) { return std::tuple(positive({4, 5})); });
  });
}

BOOST_AUTO_TEST_CASE(reductions) {
  check([] {
    return program(
        [](Tensor x) {
          return std::tuple(x.sum(), x.sum(at::IntArrayRef({0, 2})), x.mean(1, /*keepdim=*/true), x.prod(), x.prod(1),
                            x.std(), x.var(1, false), x.amax({0, 1}), x.amin(), torch::aminmax(x), x.norm(),
                            x.norm(1, 2), x.logsumexp(1), torch::std_mean(x, at::OptionalIntArrayRef(1)), (x > 1).any(),
                            (x > 0).all(1), x.count_nonzero(std::optional<int64_t>(1)), x.nansum(),
                            torch::softmax(x, 1), x.median(), x.sum(torch::kFloat), torch::quantile(x.flatten(), 0.25));
        },
        [](int) { return std::tuple(positive({3, 4, 2})); });
  });
}

BOOST_AUTO_TEST_CASE(linear_algebra) {
  check([] {
    return program(
        [](Tensor a, Tensor b) {
          const Tensor spd = a.matmul(a.mT()) + 3 * torch::eye(4, f64);
          auto [values, vectors] = torch::linalg_eigh(spd);
          auto [q, r] = torch::linalg_qr(a);
          auto [sign, logarithm] = torch::linalg_slogdet(spd);
          return std::tuple(torch::linalg_cholesky(spd), torch::linalg_inv(spd), torch::linalg_solve(spd, b),
                            torch::linalg_det(spd), sign, logarithm, values, q.matmul(r), torch::linalg_svdvals(a),
                            vectors.matmul(vectors.mT()), torch::linalg_matrix_norm(a),
                            torch::linalg_solve_triangular(torch::linalg_cholesky(spd), b, false),
                            torch::linalg_matrix_power(a, 3), torch::trace(a), torch::linalg_pinv(spd));
        },
        [](int) {
          const Tensor a = torch::randn({4, 4}, f64);
          return std::tuple(a, torch::randn({4, 2}, f64));
        });
  });
}

BOOST_AUTO_TEST_CASE(fourier) {
  check([] {
    return program(
        [](Tensor x) {
          const Tensor spectrum = torch::fft_rfft(x);
          return std::tuple(torch::fft_irfft(spectrum * 0.5, x.size(-1)), spectrum.abs(), spectrum, torch::fft_fft2(x),
                            torch::fft_ifft(torch::fft_fft(x, 12)), torch::fft_fftshift(x),
                            torch::fft_fftfreq(8, 1.0, f64), torch::fft_hfft(torch::fft_fft(x)));
        },
        [](int) { return std::tuple(torch::randn({3, 8}, f64)); });
  });
}

BOOST_AUTO_TEST_CASE(complex_numbers) {
  check([] {
    return program(
        [](Tensor re, Tensor im) {
          const Tensor z = torch::complex(re, im);
          return std::tuple(z * z.conj(), torch::real(z) + torch::imag(z), torch::angle(z), torch::view_as_real(z * 2),
                            torch::exp(z), z.abs(), torch::polar(re.abs(), im), z.matmul(z.mH()), z / (z + 2),
                            z * c10::complex<double>(0.5, -1.5), torch::view_as_complex(torch::stack({re, im}, -1)),
                            z.sum(), z.conj().resolve_conj());
        },
        [](int) {
          const Tensor re = torch::randn({3, 3}, f64);
          return std::tuple(re, torch::randn({3, 3}, f64));
        });
  });
}

BOOST_AUTO_TEST_CASE(integers_and_bools) {
  check([] {
    return program(
        [](Tensor a, Tensor b, Tensor flag) {
          return std::tuple(a + b, a * b - 3, torch::floor_divide(a, b), a.remainder(b), a.fmod(b), a / b,
                            a.bitwise_and(b), a.bitwise_xor(b), a.bitwise_left_shift(1), ~a, a.pow(2),
                            a.abs().to(torch::kUInt8), a.to(torch::kInt8), a == b, flag.logical_xor(a > b), ~flag,
                            flag.to(torch::kLong).sum(), torch::where(flag, a, b), a.clamp(-2, 2), a.sign(), a.min(),
                            flag & (a < 0), a % 3, torch::gcd(a.abs(), b.abs()), a.to(torch::kShort) * 2,
                            a.sum(torch::kInt));
        },
        [](int) {
          const Tensor a = torch::randint(-9, 9, {3, 4}, torch::kLong), b = torch::randint(1, 5, {3, 4}, torch::kLong);
          return std::tuple(a, b, torch::rand({3, 4}) > 0.5);
        });
  });
}

BOOST_AUTO_TEST_CASE(half_and_bfloat16) {
  check(
      [] {
        return program(
            [](Tensor x, Tensor w) {
              const Tensor h = x.to(torch::kHalf), b = x.to(torch::kBFloat16);
              return std::tuple(h * 2 + 1, b.exp(), torch::matmul(b, w.to(torch::kBFloat16)),
                                h.to(torch::kFloat).tanh(), h.sum(), b.softmax(1), torch::relu(h),
                                (h > 0.5).to(torch::kBFloat16), h + x, torch::layer_norm(b, {6}));
            },
            [](int) {
              const Tensor x = torch::rand({4, 6}) + 0.1;
              return std::tuple(x, torch::rand({6, 3}));
            });
      },
      // Compiled code does not round between operators, and so is nearer to the truth than eager code.
      {.tolerance = 10, .gradient_tolerance = 300});
}

BOOST_AUTO_TEST_CASE(pointwise) {
  check([] {
    return program(
        [](Tensor x, Tensor y) {
          const Tensor unit = torch::tanh(x) * 0.9;
          return std::vector<Tensor>{x.exp().log1p(),
                                     x.abs().sqrt(),
                                     x.erf(),
                                     x.sin().atan2(y.cos()),
                                     unit.asin(),
                                     unit.atanh(),
                                     x.lgamma(),
                                     y.sigmoid().logit(),
                                     x.floor() + y.ceil(),
                                     x.round(),
                                     x.trunc(),
                                     x.frac(),
                                     torch::hypot(x, y),
                                     torch::maximum(x, y),
                                     torch::fmin(x, y),
                                     x.clamp(-0.5, {}),
                                     x.lerp(y, 0.3),
                                     torch::addcmul(x, x, y, 0.5),
                                     torch::addcdiv(x, y, y.abs() + 1),
                                     x.pow(2),
                                     torch::pow(2.0, x),
                                     x.abs().pow(y),
                                     torch::logaddexp(x, y),
                                     x.nan_to_num(),
                                     x.sign(),
                                     x.copysign(y),
                                     x.square().rsqrt(),
                                     x.digamma(),
                                     torch::sinc(x),
                                     x.expm1(),
                                     torch::heaviside(x, y),
                                     x.reciprocal(),
                                     1 / (y * y + 1),
                                     3 - x,
                                     torch::rsub(x, 1)};
        },
        [](int) {
          const Tensor x = torch::randn({3, 4}, f64);
          return std::tuple(x, torch::randn({3, 4}, f64));
        });
  });
}

BOOST_AUTO_TEST_CASE(creation_inside) {
  check([] {
    return program(
        [](Tensor x) {
          const auto like = x.options();
          return std::tuple(x + torch::ones({3}, like), torch::arange(3, like) * x, torch::full_like(x, 2.5) - x,
                            torch::linspace(0, 1, 3, like) + x, torch::eye(3, like), torch::zeros({2, 0}),
                            x.new_full({2}, 4), torch::scalar_tensor(1.5, like) * x, torch::tril_indices(3, 3),
                            torch::logspace(0, 1, 3, 10, like), torch::empty_like(x).copy_(x * 2),
                            torch::empty({2, 3}, like).fill_(1.25), torch::hann_window(4));
        },
        [](int) { return std::tuple(torch::randn({2, 3}, f64)); });
  });
}

BOOST_AUTO_TEST_SUITE_END()
