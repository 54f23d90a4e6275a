#ifndef CONCLAVE_MODEL_CHECKPOINT_TESTING_H_
#define CONCLAVE_MODEL_CHECKPOINT_TESTING_H_

// For tests: the demo's checkpoint with something changed, in a folder of its own.

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "tools/checkpoint/folder.h"
#include "tools/checkpoint/safetensors_writer.h"

namespace conclave::model {

inline constexpr char kDemoDir[] = "demo/tiny_gpt_oss";

class ChangedCheckpointTest : public testing::Test {
 protected:
  ChangedCheckpointTest()
      : dir_(testing::TempDir() + "/checkpoint_" +
             testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    auto config = LoadConfig(kDemoDir);
    if (config.ok()) config_ = *std::move(config);
    const std::filesystem::path demo(kDemoDir);
    config_json_ = *tools::ReadJson(demo / "config.json");
    AddTensors(demo / "model-00000-of-00002.safetensors");
    AddTensors(demo / "model-00001-of-00002.safetensors");
  }
  ~ChangedCheckpointTest() override { std::filesystem::remove_all(dir_); }

  // Appends the tensors of a file to `tensors_`.
  void AddTensors(const std::string& path) {
    auto file = SafetensorsFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    for (const TensorView& view : (*file)->tensors()) {
      tensors_.push_back(tools::CopyOf(view.name, view.type, view.shape, {view.bytes}));
    }
    files_.push_back(*std::move(file));
  }

  tools::NewTensor& Tensor(const std::string& name) {
    const auto found = std::find_if(tensors_.begin(), tensors_.end(),
                                    [&](const auto& tensor) { return tensor.name == name; });
    EXPECT_NE(found, tensors_.end()) << name;
    return *found;
  }

  void Remove(const std::string& name) {
    const auto removed =
        std::erase_if(tensors_, [&](const auto& tensor) { return tensor.name == name; });
    EXPECT_EQ(removed, 1u) << name;
  }

  void AddBf16(const std::string& name, std::vector<int64_t> shape, std::byte value = {}) {
    tensors_.push_back(
        {name, TensorType::kBf16, std::move(shape),
         [value](int64_t, std::span<std::byte> out) { std::fill(out.begin(), out.end(), value); }});
  }

  // Flips the lowest bit of a byte.
  void Damage(const std::string& name, int64_t at) {
    tools::NewTensor& tensor = Tensor(name);
    tensor.fill = [at, inner = tensor.fill](int64_t offset, std::span<std::byte> out) {
      inner(offset, out);
      if (at >= offset && at < offset + static_cast<int64_t>(out.size())) {
        out[static_cast<size_t>(at - offset)] ^= std::byte{1};
      }
    };
  }

  // Two shards and an index.
  void Write() {
    const absl::Status status =
        tools::WriteShards(dir_, tensors_, 2, tools::ShardNumbers::kReleased);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(tools::WriteJson(dir_ + "/config.json", config_json_).ok());
  }

  const std::string dir_;
  Config config_;
  nlohmann::json config_json_;
  std::vector<tools::NewTensor> tensors_;

 private:
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CHECKPOINT_TESTING_H_
