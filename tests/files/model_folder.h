#ifndef CONCLAVE_TESTS_FILES_MODEL_FOLDER_H_
#define CONCLAVE_TESTS_FILES_MODEL_FOLDER_H_

// A copy of the shipped checkpoint, heads included, whose files may be broken one at a time.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace conclave::tests {

class ModelFolder {
 public:
  // In a folder of its own, `name`, of the test's scratch space.
  explicit ModelFolder(const std::string& name);
  ~ModelFolder();
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;

  const std::string& dir() const { return dir_; }
  std::string Path(const std::string& file) const { return dir_ + "/" + file; }

  std::string Read(const std::string& file) const;
  void Write(const std::string& file, const std::string& contents) const;
  // As it was in the beginning.
  void Restore(const std::string& file) const;
  void Remove(const std::string& file) const;
  // Cuts it short or fills it up with zeros, which take no space on disk.
  void Resize(const std::string& file, uint64_t bytes) const;

  nlohmann::json ReadJson(const std::string& file) const;
  // Sets one member of a JSON object.
  void SetField(const std::string& file, const std::string& name,
                const nlohmann::json& value) const;

  // The header of a safetensors file as text, and the file with another header.
  std::string ReadHeader(const std::string& file) const;
  void WriteHeader(const std::string& file, const std::string& header) const;
  // Replaces the first `from` of the header; the test fails when there is none.
  void EditHeader(const std::string& file, const std::string& from, const std::string& to) const;

 private:
  const std::string dir_;
};

inline constexpr char kShard[] = "model-00001-of-00002.safetensors";
inline constexpr char kIndex[] = "model.safetensors.index.json";

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_FILES_MODEL_FOLDER_H_
