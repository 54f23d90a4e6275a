#include "tests/files/model_folder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace conclave::tests {
namespace {

namespace fs = std::filesystem;

constexpr char kDemo[] = "demo/tiny_gpt_oss";
constexpr size_t kLengthBytes = sizeof(uint64_t);

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

uint64_t HeaderBytes(const std::string& contents) {
  uint64_t length = 0;
  std::memcpy(&length, contents.data(), kLengthBytes);
  return length;
}

}  // namespace

ModelFolder::ModelFolder(const std::string& name)
    : dir_((fs::path(testing::TempDir()) / name).lexically_normal().string()) {
  fs::remove_all(dir_);
  for (const auto& entry : fs::recursive_directory_iterator(kDemo)) {
    if (entry.is_directory()) continue;
    Restore(entry.path().lexically_relative(kDemo).string());  // links stay links
  }
}

ModelFolder::~ModelFolder() {
  std::error_code ignored;
  fs::remove_all(dir_, ignored);
}

std::string ModelFolder::Read(const std::string& file) const { return ReadAll(Path(file)); }

// Into the same inode: a process that has it mapped sees the new bytes.
void ModelFolder::Write(const std::string& file, const std::string& contents) const {
  fs::create_directories(fs::path(Path(file)).parent_path());
  std::ofstream out(Path(file), std::ios::binary);
  out << contents;
  ASSERT_TRUE(out.flush().good()) << file;
}

void ModelFolder::Restore(const std::string& file) const {
  Write(file, ReadAll(std::string(kDemo) + "/" + file));
}

void ModelFolder::Remove(const std::string& file) const { fs::remove_all(Path(file)); }

void ModelFolder::Resize(const std::string& file, uint64_t bytes) const {
  fs::resize_file(Path(file), bytes);
}

nlohmann::json ModelFolder::ReadJson(const std::string& file) const {
  return nlohmann::json::parse(Read(file));
}

void ModelFolder::SetField(const std::string& file, const std::string& name,
                           const nlohmann::json& value) const {
  nlohmann::json object = ReadJson(file);
  object[name] = value;
  Write(file, object.dump());
}

std::string ModelFolder::ReadHeader(const std::string& file) const {
  const std::string contents = Read(file);
  return contents.substr(kLengthBytes, HeaderBytes(contents));
}

void ModelFolder::WriteHeader(const std::string& file, const std::string& header) const {
  const std::string old = Read(file);
  // Padded as writers do, so that the data stays aligned.
  const uint64_t length = (header.size() + 7) / 8 * 8;
  std::string contents(reinterpret_cast<const char*>(&length), kLengthBytes);
  contents += header + std::string(length - header.size(), ' ');
  contents += old.substr(kLengthBytes + HeaderBytes(old));
  Write(file, contents);
}

void ModelFolder::EditHeader(const std::string& file, const std::string& from,
                             const std::string& to) const {
  std::string header = ReadHeader(file);
  const size_t at = header.find(from);
  ASSERT_NE(at, std::string::npos) << from << " in " << header.substr(0, 500);
  WriteHeader(file, header.replace(at, from.size(), to));
}

}  // namespace conclave::tests
