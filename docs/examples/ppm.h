// Pictures as binary PPM (P6), a format that needs no library: a line of header, then the bytes of the pixels.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Photo {
  int height = 0, width = 0;
  std::vector<float> values;  // 3 x height x width, in [-1, 1], which is how bundles take photos
};

inline Photo read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  Photo photo;
  int largest = 0;
  file >> magic >> photo.width >> photo.height >> largest;
  file.get();  // the white space before the pixels
  if (!file || magic != "P6" || largest != 255) throw std::runtime_error(path + " is no binary PPM (P6)");
  const size_t plane = size_t(photo.height) * photo.width;
  std::vector<unsigned char> bytes(3 * plane);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), bytes.size())) throw std::runtime_error(path + " is cut short");
  photo.values.resize(bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) photo.values[i % 3 * plane + i / 3] = bytes[i] / 127.5f - 1;
  return photo;
}

inline void write_ppm(const std::string& path, int height, int width, const float* values) {
  const size_t plane = size_t(height) * width;
  std::vector<unsigned char> bytes(3 * plane);
  for (size_t i = 0; i < bytes.size(); ++i) {
    const float level = (values[i % 3 * plane + i / 3] + 1) * 127.5f;
    bytes[i] = static_cast<unsigned char>(std::lround(std::clamp(level, 0.0f, 255.0f)));
  }
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << width << " " << height << "\n255\n";
  if (!file.write(reinterpret_cast<const char*>(bytes.data()), bytes.size()).flush()) {
    throw std::runtime_error(path + " cannot be written");
  }
}
