// Programs that read values, branch on them, count their calls, or write memory by pointer, in lazy mode: the same
// results as eager, and most operators compiled.
#include <torchcc/scope.h>

#include "harness.h"

#include <sstream>
#include <thread>

#include <ATen/autocast_mode.h>

using namespace programs;
namespace nn = torch::nn;

namespace {

Options lazy_options() {
  Options options = plain_options();
  options.mode = torchcc::CompileMode::lazy;
  return options;
}

auto one(int) { return std::tuple(torch::randn({3, 4})); }

/// Runs a program lazily and eagerly, and checks that of the operators in its last calls at least `share` ran compiled.
template <class Make>
void check_lazily(const Make& make, double share = 0.5, int calls = 8) {
  const at::AutoGradMode no_grad(false);
  torch::manual_seed(kSeed);
  auto plain = make();
  torch::manual_seed(kSeed);
  auto other = make();
  auto compiled = torchcc::compile(other.function, lazy_options());
  torchcc::CompileStats before;
  for (int call = 1; call <= calls; ++call) {
    if (call == calls - 1) before = compiled.stats();
    torch::manual_seed(kSeed + static_cast<uint64_t>(call));
    const Outcome expected = observe(plain.function, plain.inputs(call), plain.state);
    torch::manual_seed(kSeed + static_cast<uint64_t>(call));
    compare(observe(compiled, other.inputs(call), other.state), expected, {}, call);
  }
  const torchcc::CompileStats stats = compiled.stats();
  const auto ran = static_cast<double>(stats.compiled_ops - before.compiled_ops);
  const auto all = ran + static_cast<double>(stats.eager_ops - before.eager_ops);
  BOOST_TEST(stats.lazy == calls);
  BOOST_TEST(ran >= share * all, stats.str());
}

struct Scaled : torch::autograd::Function<Scaled> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, double factor) {
    context->save_for_backward({x});
    context->saved_data["factor"] = factor;
    return x * x * factor;
  }
  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context, std::vector<Tensor> gradients) {
    const Tensor x = context->get_saved_variables()[0];
    return {gradients[0] * x * 2 * context->saved_data["factor"].toDouble(), Tensor()};
  }
};

using Function = std::function<Tensor(const Tensor&, const Tensor&)>;

/// Compares gradients of functions that give a loss. Backward runs afterwards, or as the last thing in the function.
void check_gradients_lazily(const std::vector<std::pair<std::string, Function>>& functions) {
  for (size_t which = 0; which < functions.size(); ++which) {
    const auto& [name, function] = functions[which];
    const bool inside = which % 2 == 0;
    BOOST_TEST_CONTEXT(name << (inside ? ", backward inside" : ", backward outside")) {
      const auto run = [&function = function, inside](const Tensor& x, const Tensor& w) {
        const Tensor loss = function(x, w);
        if (inside) loss.backward();
        return loss;
      };
      const auto compiled = torchcc::compile(run, lazy_options());
      const Tensor weight = torch::randn({4, 4});
      const Tensor a = weight.clone().requires_grad_(), b = weight.clone().requires_grad_();
      for (int call = 0; call < 7; ++call) {
        const Tensor x = torch::randn({3, 4}), c = x.clone().requires_grad_(), d = x.clone().requires_grad_();
        torch::manual_seed(call);
        const Tensor got = compiled(c, a);
        torch::manual_seed(call);
        const Tensor expected = run(d, b);
        BOOST_TEST(difference(got.detach(), expected.detach()) == "");
        if (!inside) {
          got.backward();
          expected.backward();
        }
        const double tolerance = name == "autocast" ? 300 : 1;
        BOOST_TEST(difference(c.grad(), d.grad(), tolerance) == "", "call " << call);
        BOOST_TEST(difference(a.grad(), b.grad(), tolerance) == "", "call " << call);
        if (call % 3 != 2) continue;
        a.mutable_grad().reset();
        b.mutable_grad().reset();
      }
      BOOST_TEST(compiled.stats().compiled_ops > 0, compiled.stats().str());
    }
  }
}

/// Operators wait once they are compiled. Before torch 2.13, access to memory that is not there cannot say what to do.
bool lazy_thread_waits(int call) { return call > 3 && TORCH_VERSION_MAJOR * 100 + TORCH_VERSION_MINOR >= 213; }

void copy_weights(const nn::Module& from, const nn::Module& to) {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < from.parameters().size(); ++i) to.parameters()[i].copy_(from.parameters()[i]);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(lazy)

// Newton's method for a square root: as many iterations as the data wants.
BOOST_AUTO_TEST_CASE(newton) {
  check_lazily([] {
    return program(
        [](Tensor x) {
          Tensor guess = x.clone();
          while ((guess * guess - x).abs().max().item<float>() > 1e-5F) guess = 0.5 * (guess + x / guess);
          return guess;
        },
        [](int) { return std::tuple(torch::rand({3, 4}) * 10 + 0.5); });
  });
}

BOOST_AUTO_TEST_CASE(conjugate_gradient, *boost::unit_test::label("slow")) {
  check_lazily([] {
    return program(
        [](Tensor a, Tensor b) {
          Tensor x = torch::zeros_like(b);
          Tensor residual = b - a.mv(x);
          Tensor direction = residual.clone();
          Tensor square = residual.dot(residual);
          while (square.item<double>() > 1e-12) {
            const Tensor product = a.mv(direction);
            const Tensor step = square / direction.dot(product);
            x += step * direction;
            residual -= step * product;
            const Tensor next = residual.dot(residual);
            direction = residual + (next / square) * direction;
            square = next;
          }
          return x;
        },
        [](int) {
          const Tensor m = torch::randn({6, 6}, torch::kDouble);
          return std::tuple(m.mm(m.t()) + torch::eye(6, torch::kDouble), torch::randn({6}, torch::kDouble));
        });
  });
}

BOOST_AUTO_TEST_CASE(early_exit, *boost::unit_test::label("slow")) {
  check_lazily([] {
    auto layers = std::make_shared<std::vector<nn::Linear>>();
    for (int i = 0; i < 6; ++i) layers->push_back(nn::Linear(4, 4));
    return program(
        [layers](Tensor x) {
          for (auto& layer : *layers) {
            x = torch::tanh(layer(x) + x);
            if (x.mean().item<float>() > 0.2F) return x * 2;
          }
          return x;
        },
        one);
  });
}

// A number that is another one in each call.
BOOST_AUTO_TEST_CASE(schedule) {
  check_lazily([] {
    auto weight = torch::randn({3, 4});
    auto calls = std::make_shared<int>(0);
    return program(
        [weight, calls](Tensor x) {
          const double rate = 0.1 / (1 + (*calls)++);
          weight.add_((weight - x).tanh(), -rate);
          return weight * (1 - rate) + x;
        },
        one, [weight] { return std::vector<Tensor>{weight}; });
  });
}

BOOST_AUTO_TEST_CASE(logging_every_third_call, *boost::unit_test::label("slow")) {
  check_lazily(
      [] {
        auto calls = std::make_shared<int>(0);
        auto log = std::make_shared<std::ostringstream>();
        return program(
            [calls, log](Tensor x) {
              Tensor y = (x * 2).relu() + 1;
              if (++*calls % 3 == 0) *log << y.sum().item<float>() << '\n' << y << '\n';
              return std::tuple((y.exp() / 3).sum(1), log->str());
            },
            one);
      },
      0.5, 12);
}

BOOST_AUTO_TEST_CASE(not_a_number, *boost::unit_test::label("slow")) {
  check_lazily([] {
    return program(
        [](Tensor x) {
          for (int i = 0; i < 3; ++i) {
            x = (x * x - 0.5).log();
            if (x.isnan().any().item<bool>()) x = torch::nan_to_num(x, 1.5);
          }
          return x;
        },
        one);
  });
}

// Views and in-place operators of what is pending, and of what the program holds.
BOOST_AUTO_TEST_CASE(views_and_writes) {
  check_lazily([] {
    auto kept = torch::randn({4, 6});
    return program(
        [kept](Tensor x) {
          Tensor y = x * 2 + 1;
          Tensor row = y[1];
          row.mul_(3);
          y.t().add_(1);
          kept.select(0, 2).copy_(x[0]);
          kept.slice(1, 0, 3).mul_(0.9);
          Tensor picked = kept.narrow(1, 1, 4) + y.sum();
          const bool is_large = picked.abs().max().item<float>() > 2;
          if (is_large) kept.mul_(0.5);
          return std::tuple(y, row, picked, kept.select(1, 0) - 1);
        },
        [](int) { return std::tuple(torch::randn({3, 6})); }, [kept] { return std::vector<Tensor>{kept}; });
  });
}

// Few of them, and more than are kept of segments that begin with one operator; none is in the way of one with work.
BOOST_AUTO_TEST_CASE(views_alone) {
  const torch::NoGradGuard no_grad;
  const auto run = [](Tensor x) {
    double sum = 0;
    for (int64_t i = 0; i < x.size(0); ++i) sum += x[i].item<double>();
    return x[0] * sum + x.sin();
  };
  for (const int64_t size : {3, 30}) {
    const auto compiled = torchcc::compile(run, lazy_options());
    for (int call = 0; call < 5; ++call) {
      const Tensor x = torch::randn({size}, torch::kDouble);
      BOOST_TEST(difference(compiled(x), run(x)) == "");
    }
    const torchcc::CompileStats stats = compiled.stats();
    BOOST_TEST(missing(stats.str(), "nothing but views") == "");
    BOOST_TEST(stats.compiled_ops > 0, stats.str());
  }
}

// What one call leaves in a variable is there in the next one.
BOOST_AUTO_TEST_CASE(state) {
  check_lazily([] {
    auto cell = nn::GRUCell(4, 4);
    auto hidden = std::make_shared<Tensor>(torch::zeros({3, 4}));
    return program(
        [cell, hidden](Tensor x) mutable {
          *hidden = cell(x, *hidden).tanh();
          return *hidden * 2;
        },
        one, [hidden] { return std::vector<Tensor>{*hidden}; });
  });
}

BOOST_AUTO_TEST_CASE(random_numbers, *boost::unit_test::label("slow")) {
  check_lazily(
      [] {
        return program(
            [](Tensor x) {
              Tensor noise = torch::randn_like(x);
              Tensor y = ((x + noise) * 2).tanh();
              y = torch::dropout(y, 0.5, true);
              return ((y + 1) * y).sum() + torch::rand({4}).exp().mul(2).sub(1);
            },
            one);
      },
      0.4);
}

// A buffer that the program fills by pointer.
BOOST_AUTO_TEST_CASE(filled_by_pointer) {
  check_lazily([] {
    auto buffer = torch::zeros({3, 4});
    auto calls = std::make_shared<int>(0);
    return program(
        [buffer, calls](Tensor x) {
          Tensor sum = torch::zeros_like(x);
          for (int i = 0; i < 2; ++i) {
            std::fill_n(buffer.data_ptr<float>(), 12, static_cast<float>(++*calls));
            sum = (sum + buffer * x).tanh();
            if (sum.sum().item<float>() > 100) break;
          }
          Tensor fresh = torch::empty({3, 4});
          std::fill_n(fresh.data_ptr<float>(), 12, 0.25F * static_cast<float>(*calls));
          std::vector<float> values(12, static_cast<float>(*calls));
          const Tensor wrapped = torch::from_blob(values.data(), {3, 4});
          const Tensor result = (sum * fresh - 1).relu() + wrapped;
          std::fill(values.begin(), values.end(), -1000.F);
          return result + torch::tensor({1.F, 2.F, 3.F, static_cast<float>(*calls)});
        },
        one);
  });
}

// Exceptions pass through, and what was pending is there.
BOOST_AUTO_TEST_CASE(exceptions) {
  const at::AutoGradMode no_grad(false);
  Tensor kept;
  auto compiled = torchcc::compile(
      [&](Tensor x, bool fails) {
        kept = (x * 2 + 1).tanh();
        if (fails) throw std::runtime_error("enough");
        return kept * 3;
      },
      lazy_options());
  for (int call = 0; call < 8; ++call) {
    const Tensor x = torch::randn({3, 4});
    if (call % 2 == 1) {
      BOOST_CHECK_THROW(compiled(x, true), std::runtime_error);
    } else {
      BOOST_TEST(difference(compiled(x, false), (x * 2 + 1).tanh() * 3) == "");
    }
    BOOST_TEST(difference(kept, (x * 2 + 1).tanh()) == "");
  }
}

// Memory that is not there yet: a clear message, and materialize() makes it.
BOOST_AUTO_TEST_CASE(memory_that_is_not_there) {
  const at::AutoGradMode no_grad(false);
  const std::vector<std::pair<std::string, std::function<void(const Tensor&)>>> touches = {
      {"data_ptr", [](const Tensor& x) { x.data_ptr(); }},
      {"data_ptr<float>", [](const Tensor& x) { x.data_ptr<float>(); }},
      {"const_data_ptr", [](const Tensor& x) { x.const_data_ptr(); }},
      {"mutable_data_ptr", [](const Tensor& x) { x.mutable_data_ptr<float>(); }},
      {"accessor", [](const Tensor& x) { x.accessor<float, 2>(); }},
      {"storage", [](const Tensor& x) { x.storage().data(); }},
      {"mutable storage", [](const Tensor& x) { x.storage().mutable_data(); }},
      {"save",
       [](const Tensor& x) {
         std::ostringstream stream;
         torch::save(x, stream);
       }},
      {"another thread",
       [](const Tensor& x) {
         std::exception_ptr thrown;
         std::thread([&] {
           try {
             const at::AutoGradMode inner(false);
             (void)(x + 1).sum().item<float>();
           } catch (...) {
             thrown = std::current_exception();
           }
         }).join();
         if (thrown != nullptr) std::rethrow_exception(thrown);
       }},
  };
  bool touch_now = false;
  bool materializes = false;
  size_t which = 0;
  auto compiled = torchcc::compile(
      [&](Tensor x) {
        const Tensor y = (x * 2 + 1).tanh() - 0.25;
        if (materializes) torchcc::materialize(y);
        if (touch_now) touches[which].second(y);
        return y * 3;
      },
      lazy_options());
  const auto expected = [](const Tensor& x) { return ((x * 2 + 1).tanh() - 0.25) * 3; };
  for (int call = 0; call < 4; ++call) {
    const Tensor x = torch::randn({3, 4});
    BOOST_TEST(difference(compiled(x), expected(x)) == "");
  }
  touch_now = true;
  for (which = 0; which < touches.size(); ++which) {
    BOOST_TEST_CONTEXT(touches[which].first) {
      const Tensor x = torch::randn({3, 4});
      BOOST_CHECK_EXCEPTION(compiled(x), torchcc::CaptureError, [](const torchcc::CaptureError& error) {
        return missing(error.what(), "materialize(x)") == "";
      });
    }
  }
  materializes = true;
  for (which = 0; which < touches.size(); ++which) {
    for (int call = 0; call < 2; ++call) {
      const Tensor x = torch::randn({3, 4});
      BOOST_TEST(difference(compiled(x), expected(x)) == "");
    }
  }
}

// Each thread has its own pending operators; all share the segments.
BOOST_AUTO_TEST_CASE(threads) {
  const auto function = [](Tensor x) {
    int count = 0;
    while (x.norm().item<float>() > 1 && ++count < 20) x = (x * 0.75).sin() + x * 0.01;
    return x * count;
  };
  const auto compiled = torchcc::compile(function, lazy_options());
  std::vector<std::thread> threads;
  std::vector<std::string> wrong(4);
  for (size_t i = 0; i < wrong.size(); ++i) {
    threads.emplace_back([&, i] {
      const at::AutoGradMode no_grad(false);
      for (int call = 0; call < 50 && wrong[i].empty(); ++call) {
        const Tensor x = torch::randn({3, 4}) * 3;
        wrong[i] = difference(compiled(x), function(x));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& one : wrong) BOOST_TEST(one == "");
  BOOST_TEST(compiled.stats().compiled_ops > compiled.stats().eager_ops, compiled.stats().str());
}

// Autograd works on operators that wait as on others.
BOOST_AUTO_TEST_CASE(gradients) {
  check_gradients_lazily({
      {"layers",
       [](const Tensor& x, const Tensor& w) {
         return (torch::layer_norm((x * 2 + 1).tanh().mm(w), {4}).relu() - 1).square().mean();
       }},
      {"a branch on a value",
       [](const Tensor& x, const Tensor& w) {
         Tensor y = x.mm(w).sin();
         for (int i = 0; i < 4 && y.norm().item<float>() > 1; ++i) y = (y * 0.7).mm(w.t()).tanh();
         return y.exp().sum();
       }},
      {"views and writes",
       [](const Tensor& x, const Tensor& w) {
         Tensor y = x * 2;
         y.select(1, 0).mul_(w[0].sum());
         Tensor z = torch::zeros({3, 4});
         z.narrow(0, 0, 2).copy_(y.narrow(0, 1, 2).mm(w));
         z[2].add_(x[0]);
         return (z * z).sum() + y.t().mean();
       }},
  });
}

BOOST_AUTO_TEST_CASE(gradients_of_other_functions, *boost::unit_test::label("slow")) {
  check_gradients_lazily({
      {"parts of one memory that count versions apart",
       [](const Tensor& x, const Tensor& w) {
         const std::vector<Tensor> parts = x.mm(w).unsafe_chunk(2, 1);
         parts[0].sigmoid_();
         parts[1].tanh_();
         return (parts[0] * parts[1]).sum();
       }},
      {"gradients of gradients",
       [](const Tensor& x, const Tensor& w) {
         const Tensor y = x.mm(w).tanh().sum();
         const Tensor gradient = torch::autograd::grad({y}, {w}, {}, true, true)[0];
         return gradient.square().sum() + y;
       }},
      {"a function of its own", [](const Tensor& x, const Tensor& w) { return Scaled::apply(x.mm(w), 3.0).mean(); }},
      {"hooks",
       [](const Tensor& x, const Tensor& w) {
         Tensor y = x.mm(w);
         y.register_hook([](const Tensor& gradient) { return gradient.clamp(-0.5, 0.5) * 3; });
         return y.square().sum();
       }},
      {"parts without",
       [](const Tensor& x, const Tensor& w) {
         Tensor scale;
         {
           const torch::NoGradGuard no_grad;
           scale = x.mm(w).abs().amax(1, true) + 1;
         }
         return ((x / scale).mm(w.detach()) + w.sum() * x).pow(2).sum();
       }},
      {"dropout",
       [](const Tensor& x, const Tensor& w) {
         return torch::dropout(torch::dropout(x * 3, 0.3, true).mm(w).relu(), 0.5, true).sum();
       }},
      {"autocast",
       [](const Tensor& x, const Tensor& w) {
         at::autocast::set_autocast_enabled(at::kCPU, true);
         const Tensor y = (x.mm(w).relu() + 1).mm(w.t());
         at::autocast::clear_cache();
         at::autocast::set_autocast_enabled(at::kCPU, false);
         return y.to(torch::kFloat).square().mean();
       }},
  });
}

// Printing copies nothing where the dtype is double already, and so calls no operator below autograd.
BOOST_AUTO_TEST_CASE(printing_with_gradients) {
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    const Tensor weight = torch::randn({4, 4}, dtype).requires_grad_();
    const auto text = [](const Tensor& tensor) {
      std::ostringstream stream;
      stream << tensor;
      return stream.str();
    };
    std::string printed;
    const auto compiled = torchcc::compile(
        [&](Tensor x) {
          const Tensor y = x.mm(weight).tanh();
          printed = text(y);
          return y.sum();
        },
        lazy_options());
    for (int call = 0; call < 5; ++call) {
      const Tensor x = torch::randn({3, 4}, dtype);
      compiled(x).backward();
      const Tensor got = weight.grad().clone();
      weight.mutable_grad().reset();
      const Tensor y = x.mm(weight).tanh();
      y.sum().backward();
      // Of floats, the last printed digit may differ.
      BOOST_TEST((dtype == torch::kDouble ? printed == text(y) : printed.find("{3,4}") != std::string::npos), printed);
      BOOST_TEST(difference(got, weight.grad()) == "");
      weight.mutable_grad().reset();
    }
    BOOST_TEST(compiled.stats().compiled_ops > 0, compiled.stats().str());
  }
}

// PyTorch's own error where a tensor that backward needs was written to, and where backward ran before.
BOOST_AUTO_TEST_CASE(errors_of_autograd) {
  const Tensor weight = torch::randn({4, 4}).requires_grad_();
  bool writes = false, twice = false;
  const auto compiled = torchcc::compile(
      [&](Tensor x) {
        Tensor y = x.mm(weight).exp();
        const Tensor loss = y.sum();
        if (writes) y.mul_(2);
        loss.backward();
        if (twice) loss.backward();
        return loss.detach();
      },
      lazy_options());
  const auto call = [&] { return compiled(torch::randn({3, 4})); };
  for (int i = 0; i < 5; ++i) call();
  writes = true;
  BOOST_CHECK_EXCEPTION(call(), c10::Error, [](const c10::Error& error) {
    return missing(error.what(), "modified by an inplace operation") == "";
  });
  writes = false;
  twice = true;
  BOOST_CHECK_EXCEPTION(call(), c10::Error, [](const c10::Error& error) {
    return missing(error.what(), "Trying to backward through the graph a second time") == "";
  });
  twice = false;
  weight.mutable_grad().reset();
  const Tensor x = torch::randn({3, 4});
  compiled(x);
  const Tensor got = weight.grad().clone();
  BOOST_TEST(difference(got, torch::autograd::grad({x.mm(weight).exp().sum()}, {weight})[0]) == "");
}

// In the default mode, functions that cannot be replayed run lazily; those that use memory by pointer, eagerly.
BOOST_AUTO_TEST_CASE(automatic) {
  const at::AutoGradMode no_grad(false);
  const auto check_calls = [](const auto& function) {
    const auto compiled = torchcc::compile(function, plain_options());
    for (int call = 0; call < 7; ++call) {
      const Tensor x = torch::randn({3, 4});
      BOOST_TEST(difference(compiled(x), function(x)) == "");
    }
    return compiled.stats();
  };
  const auto reads = check_calls([](Tensor x) {
    x = (x * 2 + 1).tanh() / 3;
    return x.sum().item<float>() > 0 ? x.exp() * 2 - 1 : x - 1;
  });
  BOOST_TEST(reads.lazy == 6);
  BOOST_TEST(reads.compiled_ops >= 8, reads.str());
  BOOST_TEST(missing(reads.reason, "on the host") == "");
  const auto touches = check_calls([](Tensor x) {
    x = (x * 2 + 1).tanh() / 3;
    const float sum = x.sum().item<float>();
    const Tensor y = x.exp() * 2;
    y.data_ptr<float>()[0] = sum;
    return y + 1;
  });
  BOOST_TEST(touches.lazy == 1);
  BOOST_TEST(touches.eager == 5, touches.str());
}

// One line makes a block lazy; all executions of it share what they have seen.
BOOST_AUTO_TEST_CASE(scope_in_a_loop) {
  nn::Linear net(4, 2), other(4, 2);
  copy_weights(*net, *other);
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  torch::optim::SGD plain(other->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  torchcc::CompileStats stats;
  for (int i = 0; i < 8; ++i) {
    const Tensor x = torch::randn({3, 4});
    const auto step = [&](nn::Linear& module, torch::optim::SGD& update) {
      update.zero_grad();
      const Tensor loss = torch::tanh(module(x)).square().mean();
      loss.backward();
      update.step();
      return loss;
    };
    const Tensor expected = step(other, plain);
    Tensor got;
    {
      torchcc::Scope lazy(plain_options());
      got = step(net, optimizer);
      if (i == 7) lazy.finish();
      stats = lazy.stats();
    }
    BOOST_TEST(difference(got.detach(), expected.detach()) == "");
    BOOST_TEST(difference(net->weight.detach(), other->weight.detach()) == "");
  }
  BOOST_TEST(stats.lazy == 8);
  BOOST_TEST(stats.compiled_ops > stats.eager_ops, stats.str());
}

// A whole thread; where a segment ends, stats() names the line of this file and the operators behind it.
BOOST_AUTO_TEST_CASE(lazy_thread) {
  const torch::NoGradGuard no_grad;
  BOOST_TEST(!torchcc::set_lazy(true));
  BOOST_TEST(torchcc::set_lazy(true));
  for (int i = 0; i < 6; ++i) {
    const Tensor x = torch::rand({5}) + 1;
    const Tensor y = (x * 2 + 1).tanh() / 3;
    const double sum = y.sum().item<double>();
    const Tensor z = (y / sum).exp() - 1;
    BOOST_TEST(z.sum().item<double>() > 0);
    const Tensor w = torch::sigmoid(z) * 2;
    if (lazy_thread_waits(i)) {
      BOOST_CHECK_EXCEPTION(w.data_ptr<float>(), c10::Error, [](const c10::Error& error) {
        return missing(error.what(), "torchcc::materialize(x)") == "";
      });
    }
    BOOST_TEST(*torchcc::materialize(w).data_ptr<float>() > 1);
    BOOST_TEST(torchcc::set_lazy(false));
    BOOST_TEST(!torchcc::set_lazy(false));
    const Tensor again = torch::sigmoid(((x * 2 + 1).tanh() / 3 / sum).exp() - 1) * 2;
    BOOST_TEST(difference(w, again) == "");
    torchcc::set_lazy(true);
  }
  torchcc::set_lazy(false);
  const torchcc::CompileStats stats = torchcc::lazy_stats();
  BOOST_TEST(stats.compiled_ops > 0, stats.str());
  const auto has_line = [](const torchcc::SegmentStats& one) {
    return one.where.find("lazy_thread") != std::string::npos || one.where.starts_with("lazy.cpp:");
  };
  BOOST_TEST(std::any_of(stats.segments.begin(), stats.segments.end(), has_line), stats.str());
  BOOST_TEST(std::any_of(stats.segments.begin(), stats.segments.end(),
                         [](const torchcc::SegmentStats& one) { return one.next_ops > 0; }),
             stats.str());
}

BOOST_AUTO_TEST_SUITE_END()
