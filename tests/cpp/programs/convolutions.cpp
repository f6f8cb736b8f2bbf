// torch::nn layers for signals, images and volumes.
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;
namespace F = torch::nn::functional;

namespace {

/// A function that is a chain of modules, with random inputs of one shape.
auto chain(nn::Sequential net, std::vector<int64_t> sizes) {
  return program([net](Tensor x) mutable { return net->forward(x); },
                 [sizes](int) { return std::tuple(torch::randn(sizes)); }, tensors_of(net));
}

nn::Sequential digits() {
  nn::Sequential net(nn::Conv2d(nn::Conv2dOptions(1, 8, 3).padding(1)), nn::BatchNorm2d(8), nn::ReLU(),
                     nn::MaxPool2d(2), nn::Conv2d(nn::Conv2dOptions(8, 8, 3).padding(1)), nn::BatchNorm2d(8),
                     nn::ReLU(), nn::AdaptiveAvgPool2d(2), nn::Flatten(), nn::Dropout(0.3), nn::Linear(32, 10));
  return net;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(convolutions)

BOOST_AUTO_TEST_CASE(conv1d, *boost::unit_test::label("slow")) {
  check([] {
    return chain(nn::Sequential(nn::Conv1d(nn::Conv1dOptions(3, 6, 3).stride(2).padding(1)), nn::ELU(),
                                nn::Conv1d(nn::Conv1dOptions(6, 6, 2).groups(3).dilation(2).bias(false)), nn::Tanh()),
                 {2, 3, 17});
  });
}

BOOST_AUTO_TEST_CASE(conv2d) {
  check([] {
    return chain(
        nn::Sequential(nn::Conv2d(nn::Conv2dOptions(3, 4, {3, 2}).stride({1, 2}).padding(torch::kValid)), nn::ReLU(),
                       nn::Conv2d(nn::Conv2dOptions(4, 4, 3).padding(1).padding_mode(torch::kReflect)), nn::SiLU(),
                       nn::Conv2d(nn::Conv2dOptions(4, 4, 3).padding(torch::kSame).groups(4))),
        {2, 3, 9, 8});
  });
}

BOOST_AUTO_TEST_CASE(conv2d_with_channels_last_input, *boost::unit_test::label("slow")) {
  check([] {
    nn::Conv2d net(nn::Conv2dOptions(3, 4, 3).padding(1));
    return program(
        [net](Tensor x) mutable { return torch::relu(net->forward(x)); },
        [](int) { return std::tuple(torch::randn({2, 3, 6, 6}).contiguous(at::MemoryFormat::ChannelsLast)); },
        tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(conv3d, *boost::unit_test::label("slow")) {
  check([] {
    return chain(
        nn::Sequential(nn::Conv3d(nn::Conv3dOptions(2, 3, 2)), nn::BatchNorm3d(3), nn::ReLU(), nn::AvgPool3d(2)),
        {2, 2, 5, 5, 5});
  });
}

BOOST_AUTO_TEST_CASE(conv_transpose1d, *boost::unit_test::label("slow")) {
  check([] {
    return chain(
        nn::Sequential(nn::ConvTranspose1d(nn::ConvTranspose1dOptions(3, 4, 3).stride(2).padding(1).output_padding(1)),
                       nn::Sigmoid()),
        {2, 3, 7});
  });
}

BOOST_AUTO_TEST_CASE(conv_transpose2d) {
  check([] {
    return chain(nn::Sequential(nn::ConvTranspose2d(nn::ConvTranspose2dOptions(4, 6, 3).stride(2).groups(2)),
                                nn::GELU(), nn::ConvTranspose2d(nn::ConvTranspose2dOptions(6, 2, 2).dilation(2))),
                 {2, 4, 5, 4});
  });
}

BOOST_AUTO_TEST_CASE(conv_transpose3d, *boost::unit_test::label("slow")) {
  check([] {
    return chain(nn::Sequential(nn::ConvTranspose3d(nn::ConvTranspose3dOptions(2, 2, 2).stride(2).bias(false))),
                 {1, 2, 3, 3, 3});
  });
}

BOOST_AUTO_TEST_CASE(pooling) {
  check([] {
    return program(
        [](Tensor x) {
          auto [largest, where] = F::max_pool2d_with_indices(x, F::MaxPool2dFuncOptions(2).stride(2));
          return std::vector<Tensor>{
              largest,
              where,
              F::max_unpool2d(largest, where, F::MaxUnpool2dFuncOptions(2).stride(2)),
              F::max_pool2d(x, F::MaxPool2dFuncOptions(3).padding(1).ceil_mode(true)),
              F::avg_pool2d(x, F::AvgPool2dFuncOptions(3).stride(2).count_include_pad(false).padding(1)),
              F::adaptive_avg_pool2d(x, F::AdaptiveAvgPool2dFuncOptions({3, 5})),
              F::adaptive_max_pool2d(x, F::AdaptiveMaxPool2dFuncOptions(3)),
              F::lp_pool2d(x, F::LPPool2dFuncOptions(2, 2)),
              F::max_pool1d(x.flatten(2), F::MaxPool1dFuncOptions(4)),
              F::avg_pool1d(x.flatten(2), F::AvgPool1dFuncOptions(4)),
              F::adaptive_avg_pool1d(x.flatten(2), F::AdaptiveAvgPool1dFuncOptions(7)),
              F::max_pool3d(x, F::MaxPool3dFuncOptions(2)),
              F::adaptive_avg_pool3d(x, F::AdaptiveAvgPool3dFuncOptions(2))};
        },
        [](int) { return std::tuple(torch::rand({2, 3, 8, 8}) + 0.1); });
  });
}

BOOST_AUTO_TEST_CASE(padding_and_resampling) {
  check([] {
    return program(
        [](Tensor x) {
          auto bilinear = F::InterpolateFuncOptions().mode(torch::kBilinear).align_corners(false);
          return std::vector<Tensor>{
              F::pad(x, F::PadFuncOptions({1, 2, 0, 1})),
              F::pad(x, F::PadFuncOptions({1, 1, 2, 2}).mode(torch::kReplicate)),
              F::pad(x, F::PadFuncOptions({1, 1, 2, 2}).mode(torch::kCircular)),
              nn::ReflectionPad2d(2)(x),
              F::interpolate(x, bilinear.size(std::vector<int64_t>{9, 7})),
              F::interpolate(x,
                             F::InterpolateFuncOptions().scale_factor(std::vector<double>{2, 2}).mode(torch::kNearest)),
              F::pixel_shuffle(x, F::PixelShuffleFuncOptions(2)),
              nn::PixelUnshuffle(2)(x),
              F::unfold(x, F::UnfoldFuncOptions({2, 3})),
              F::fold(F::unfold(x, F::UnfoldFuncOptions(2)), F::FoldFuncOptions({6, 6}, 2)),
              nn::LocalResponseNorm(nn::LocalResponseNormOptions(2))(x)};
        },
        [](int) { return std::tuple(torch::randn({2, 4, 6, 6})); });
  });
}

BOOST_AUTO_TEST_CASE(grid_sampling, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor image, Tensor angle) {
          const Tensor turn = torch::stack({torch::cos(angle), -torch::sin(angle), torch::zeros_like(angle),
                                            torch::sin(angle), torch::cos(angle), torch::zeros_like(angle)},
                                           1)
                                  .view({-1, 2, 3});
          const Tensor grid = F::affine_grid(turn, image.sizes(), /*align_corners=*/false);
          return F::grid_sample(image, grid, F::GridSampleFuncOptions().align_corners(false));
        },
        [](int) { return std::tuple(torch::rand({2, 1, 8, 8}), torch::rand({2})); });
  });
}

BOOST_AUTO_TEST_CASE(digits_in_eval_with_frozen_weights, *boost::unit_test::label("slow")) {
  check(
      [] {
        nn::Sequential net = digits();
        net->eval();
        return program(net, [](int) { return std::tuple(torch::rand({4, 1, 8, 8})); }, tensors_of(net));
      },
      {}, freezing_options());
}

BOOST_AUTO_TEST_SUITE_END()
