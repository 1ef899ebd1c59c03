// Runs a bundle's TorchScript twins by libtorch: the pullback of a class at a photo, and five steps along such
// pullbacks.
#include <torch/script.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "../ppm.h"
#include "../report.h"

int main(int argc, char** argv) try {
  if (argc < 6) throw std::invalid_argument("usage: ascend BUNDLE PHOTO.ppm CLASS CLASSES OUT.ppm [RAW]");
  const std::string bundle = argv[1], out = argv[5], raw = argc > 6 ? argv[6] : "";
  const int64_t target = std::stol(argv[3]), classes = std::stol(argv[4]);
  if (target < 0 || target >= classes) throw std::invalid_argument("there is no class " + std::to_string(target));
  Photo photo = read_ppm(argv[2]);

  const c10::InferenceMode no_autograd;  // a pullback is a forward computation
  torch::jit::Module pullback = torch::jit::load(bundle + "/pullback.ts");
  torch::jit::Module ascent = torch::jit::load(bundle + "/ascent.ts");

  const auto input = torch::from_blob(photo.values.data(), {1, 3, photo.height, photo.width});
  auto cotangent = torch::zeros({1, classes});
  cotangent[0][target] = 1;

  // temperature, step_size and radius are left out, and have the bundle's defaults.
  const auto pulled = pullback.forward({input, cotangent}).toTuple();
  const auto climbed = ascent.forward({input, cotangent}, {{"steps", torch::tensor(5)}}).toTuple();

  const auto tensor = [](const c10::IValue& value) { return value.toTensor().contiguous(); };
  const auto output = tensor(pulled->elements()[0]), direction = tensor(pulled->elements()[1]);
  const auto perturbed = tensor(climbed->elements()[0]), output_after = tensor(climbed->elements()[1]);
  const auto score = tensor(climbed->elements()[3]);  // before each step, and after the last; [2] is the last pullback
  print_top("before", output.const_data_ptr<float>(), classes);
  print_top("after", output_after.const_data_ptr<float>(), classes);
  std::printf("score   %.4g -> %.4g\n", score[0][0].item<float>(), score[-1][0].item<float>());
  write_ppm(out, photo.height, photo.width, perturbed.const_data_ptr<float>());
  write_raw(raw, "output", output.const_data_ptr<float>(), output.numel());
  write_raw(raw, "pullback", direction.const_data_ptr<float>(), direction.numel());
  write_raw(raw, "perturbed", perturbed.const_data_ptr<float>(), perturbed.numel());
  write_raw(raw, "score", score.const_data_ptr<float>(), score.numel());
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
