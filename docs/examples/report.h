// What the examples say: the most probable classes, and tensors as files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

// Prints the five most probable classes of an output, best first.
inline void print_top(const char* when, const float* output, size_t classes) {
  const float largest = *std::max_element(output, output + classes);
  std::vector<double> odds(classes);
  for (size_t i = 0; i < classes; ++i) odds[i] = std::exp(double(output[i]) - largest);
  const double sum = std::accumulate(odds.begin(), odds.end(), 0.0);
  std::vector<size_t> order(classes);
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return odds[a] > odds[b]; });
  std::printf("%-6s", when);
  for (size_t i = 0; i < std::min<size_t>(5, classes); ++i) {
    std::printf("  %zu %.1f %%", order[i], 100 * odds[order[i]] / sum);
  }
  std::printf("\n");
}

// Writes FOLDER/NAME.f32: the numbers alone, as numpy.fromfile(path, "float32") reads them. No folder, no file.
inline void write_raw(const std::string& folder, const std::string& name, const float* values, size_t count) {
  if (folder.empty()) return;
  std::filesystem::create_directories(folder);
  std::ofstream file(folder + "/" + name + ".f32", std::ios::binary);
  if (!file.write(reinterpret_cast<const char*>(values), count * sizeof(float)).flush()) {
    throw std::runtime_error("nothing can be written to " + folder);
  }
}
