// Runs a bundle's ONNX artifacts by ONNX Runtime's C++ API: the pullback of a class at a photo, and five steps along
// such pullbacks.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "../ppm.h"
#include "../report.h"

// One of the bundle's artifacts. Its weights are in a file beside it, which ONNX Runtime finds.
Ort::Session open(Ort::Env& env, const std::string& bundle, const char* name) {
  return Ort::Session(env, (std::filesystem::path(bundle) / name).c_str(), Ort::SessionOptions());
}

int main(int argc, char** argv) try {
  if (argc < 5) throw std::invalid_argument("usage: ascend BUNDLE PHOTO.ppm CLASS OUT.ppm [RAW]");
  const std::string bundle = argv[1], out = argv[4], raw = argc > 5 ? argv[5] : "";
  const size_t target = std::stoul(argv[3]);
  Photo photo = read_ppm(argv[2]);

  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);  // less than an error is only that some inputs have defaults
  Ort::Session pullback = open(env, bundle, "pullback.onnx"), ascent = open(env, bundle, "ascent.onnx");

  // What the artifacts take they say themselves: [N, 3, height, width] and [N, classes], N being free.
  const auto input_shape = pullback.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  const auto output_shape = pullback.GetInputTypeInfo(1).GetTensorTypeAndShapeInfo().GetShape();
  const std::array<int64_t, 4> image_shape{1, 3, photo.height, photo.width};
  const std::array<int64_t, 2> row_shape{1, output_shape[1]};
  if (input_shape[2] != photo.height || input_shape[3] != photo.width) {
    throw std::invalid_argument("the photo is not " + std::to_string(input_shape[3]) + " x " +
                                std::to_string(input_shape[2]) + " pixels");
  }
  std::vector<float> one_hot(row_shape[1]);
  if (target >= one_hot.size()) throw std::invalid_argument("there is no class " + std::to_string(target));
  one_hot[target] = 1;

  // Tensors that borrow the vectors' memory.
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  int64_t steps = 5;  // left out, as temperature, step_size and radius are here, it has the bundle's default
  const std::array<Ort::Value, 3> feeds{
      Ort::Value::CreateTensor<float>(memory, photo.values.data(), photo.values.size(), image_shape.data(), 4),
      Ort::Value::CreateTensor<float>(memory, one_hot.data(), one_hot.size(), row_shape.data(), 2),
      Ort::Value::CreateTensor<int64_t>(memory, &steps, 1, nullptr, 0),
  };
  const char* inputs[] = {"input", "cotangent", "steps"};

  const char* pulled_names[] = {"output", "pullback"};
  const auto pulled = pullback.Run(Ort::RunOptions(), inputs, feeds.data(), 2, pulled_names, 2);

  const char* climbed_names[] = {"perturbed", "output", "score"};
  const auto climbed = ascent.Run(Ort::RunOptions(), inputs, feeds.data(), 3, climbed_names, 3);

  const float *output = pulled[0].GetTensorData<float>(), *direction = pulled[1].GetTensorData<float>();
  const float *perturbed = climbed[0].GetTensorData<float>(), *output_after = climbed[1].GetTensorData<float>();
  const float* score = climbed[2].GetTensorData<float>();  // before each step, and after the last
  print_top("before", output, one_hot.size());
  print_top("after", output_after, one_hot.size());
  std::printf("score   %.4g -> %.4g\n", score[0], score[steps]);
  write_ppm(out, photo.height, photo.width, perturbed);
  write_raw(raw, "output", output, one_hot.size());
  write_raw(raw, "pullback", direction, photo.values.size());
  write_raw(raw, "perturbed", perturbed, photo.values.size());
  write_raw(raw, "score", score, steps + 1);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
