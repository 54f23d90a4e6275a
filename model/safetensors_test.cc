#include "model/safetensors.h"

#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A file with any header and data, right or wrong.
class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest()
      : path_(testing::TempDir() + "/" +
              testing::UnitTest::GetInstance()->current_test_info()->name() + ".safetensors") {}
  ~SafetensorsTest() override { std::filesystem::remove_all(path_); }

  void WriteRaw(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }

  void Write(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    std::string bytes(sizeof(length), '\0');
    std::memcpy(bytes.data(), &length, sizeof(length));
    WriteRaw(bytes + header + data);
  }

  absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open() {
    return SafetensorsFile::Open(path_);
  }

  std::string ErrorOf(const std::string& header, const std::string& data) {
    Write(header, data);
    const auto file = Open();
    EXPECT_FALSE(file.ok()) << "accepted: " << header;
    if (file.ok()) return "";
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(file.status().message()), testing::StartsWith(path_));
    return std::string(file.status().message());
  }

  const std::string path_;
};

TEST_F(SafetensorsTest, ViewsAreTheBytesOfTheFile) {
  Write(R"({"__metadata__":{"format":"pt"},)"
        R"("b":{"dtype":"U8","shape":[2,1],"data_offsets":[4,6]},)"
        R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}  )",
        "abcdef");
  const auto file = Open();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), path_);
  const std::vector<TensorView>& tensors = (*file)->tensors();
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "b");
  EXPECT_EQ(tensors[0].type, TensorType::kU8);
  EXPECT_THAT(tensors[0].shape, ElementsAre(2, 1));
  EXPECT_EQ(std::memcmp(tensors[0].bytes.data(), "ef", 2), 0);
  EXPECT_EQ(tensors[1].type, TensorType::kBf16);
  EXPECT_EQ(tensors[1].num_elements(), 2);
  EXPECT_EQ(tensors[1].bytes.size(), 4u);
  EXPECT_EQ(std::memcmp(tensors[1].bytes.data(), "abcd", 4), 0);
  EXPECT_EQ(tensors[1].file, path_);
}

TEST_F(SafetensorsTest, EmptyTensorsAndScalarsHaveTheirPlace) {
  Write(R"({"none":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},)"
        R"("one":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
        R"("end":{"dtype":"F16","shape":[0],"data_offsets":[8,8]}})",
        "12345678");
  const auto file = Open();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors()[0].num_elements(), 0);
  EXPECT_THAT((*file)->tensors()[0].bytes, IsEmpty());
  EXPECT_EQ((*file)->tensors()[1].num_elements(), 1);
  EXPECT_THAT((*file)->tensors()[2].bytes, IsEmpty());
}

TEST_F(SafetensorsTest, FileWithoutTensorsIsValid) {
  Write("{}", "");
  const auto file = Open();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->tensors(), IsEmpty());
}

TEST_F(SafetensorsTest, EveryDtypeIsCheckedAgainstItsSize) {
  const struct {
    const char* dtype;
    int bits;
  } types[] = {{"BF16", 16}, {"F16", 16}, {"F32", 32}, {"U8", 8},     {"I64", 64},
               {"BOOL", 8},  {"F64", 64}, {"F4", 4},   {"F8_E4M3", 8}};
  for (const auto& [dtype, bits] : types) {
    const int bytes = 6 * bits / 8;
    const auto header = [&](int end) {
      return std::string(R"({"t":{"dtype":")") + dtype + R"(","shape":[2,3],"data_offsets":[0,)" +
             std::to_string(end) + "]}}";
    };
    Write(header(bytes), std::string(static_cast<size_t>(bytes), 'x'));
    EXPECT_TRUE(Open().ok()) << dtype << Open().status();
    EXPECT_THAT(ErrorOf(header(bytes - 1), std::string(static_cast<size_t>(bytes), 'x')),
                HasSubstr("tensor t: "));
  }
}

TEST_F(SafetensorsTest, RefusesOffsetsThatLeaveOrOverlap) {
  const auto two = [](const char* first, const char* second) {
    return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  EXPECT_THAT(ErrorOf(two("[0,4]", "[4,8]"), "1234567"),
              HasSubstr("tensor b: data_offsets [4, 8]"));
  EXPECT_THAT(ErrorOf(two("[0,4]", "[2,6]"), "123456"), HasSubstr("tensor b: begins at byte 2"));
  EXPECT_THAT(ErrorOf(two("[0,4]", "[0,4]"), "1234"), HasSubstr("begins at byte 0"));
  EXPECT_THAT(ErrorOf(two("[0,4]", "[5,9]"), "123456789"), HasSubstr("hole"));
  EXPECT_THAT(ErrorOf(two("[0,4]", "[4,8]"), "123456789"), HasSubstr("9 bytes of data"));
  EXPECT_THAT(ErrorOf(two("[4,0]", "[4,8]"), "12345678"), HasSubstr("tensor a"));
  EXPECT_THAT(ErrorOf(two("[18446744073709551612,18446744073709551615]", "[0,4]"), "1234"),
              HasSubstr("tensor a"));
}

TEST_F(SafetensorsTest, RefusesShapesThatOverflow) {
  const auto shaped = [](const char* shape) {
    return std::string(R"({"t":{"dtype":"BF16","shape":)") + shape + R"(,"data_offsets":[0,4]}})";
  };
  for (const char* shape :
       {"[4294967296,4294967296]", "[9223372036854775807,2]", "[9223372036854775809,2]",
        "[18446744073709551615]", "[18446744073709551616]", "[-2]", "[2.0]", "[\"2\"]", "[[2]]",
        "[null]", "2", "{}", "[1,1,1,1,1,1,1,1,2]", "[3]", "[0]"}) {
    EXPECT_THAT(ErrorOf(shaped(shape), "1234"), HasSubstr("tensor t: ")) << shape;
  }
}

TEST_F(SafetensorsTest, RefusesMalformedEntries) {
  const char* const entries[] = {
      R"({"t":{"shape":[2],"data_offsets":[0,2]}})",
      R"({"t":{"dtype":"U8","data_offsets":[0,2]}})",
      R"({"t":{"dtype":"U8","shape":[2]}})",
      R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0]}})",
      R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2,2]}})",
      R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[-1,2]}})",
      R"({"t":{"dtype":"U8","shape":[2],"data_offsets":"0,2"}})",
      R"({"t":{"dtype":8,"shape":[2],"data_offsets":[0,2]}})",
      R"({"t":{"dtype":"U7","shape":[2],"data_offsets":[0,2]}})",
      R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"extra":1}})",
      R"({"t":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
      R"({"t":{"dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,2]}})",
  };
  for (const char* entry : entries) {
    EXPECT_THAT(ErrorOf(entry, "12"), HasSubstr("tensor t: ")) << entry;
  }
  for (const char* header :
       {R"({"t":[1]})", R"({"t":3})", R"({"__metadata__":{"a":1}})", R"({"__metadata__":{"a":{}}})",
        R"({"__metadata__":3})", "[]", "3", "\"x\"", "", "{", "{}x", "{\"a\xff\":1}"}) {
    EXPECT_THAT(ErrorOf(header, ""), HasSubstr("header: ")) << header;
  }
}

TEST_F(SafetensorsTest, RefusesANameGivenTwice) {
  EXPECT_THAT(ErrorOf(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                      R"("t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                      "12"),
              HasSubstr("\"t\" is given twice"));
}

TEST_F(SafetensorsTest, RefusesHeaderLengthsBeyondTheFile) {
  WriteRaw("");
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("empty"));
  WriteRaw("1234567");
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("7 bytes"));
  WriteRaw(std::string("\x03\0\0\0\0\0\0\0{}", 10));
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("claims 3 bytes"));
  WriteRaw(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10));
  EXPECT_FALSE(Open().ok());
}

// Sparse: takes no space on disk.
TEST_F(SafetensorsTest, RefusesAHeaderOverOneHundredMegabytes) {
  const uint64_t length = 100'000'001;
  WriteRaw(std::string(reinterpret_cast<const char*>(&length), sizeof(length)));
  std::filesystem::resize_file(path_, 8 + length);
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("claims 100000001 bytes"));
}

TEST_F(SafetensorsTest, RefusesWhatIsNotAFile) {
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directory(path_);
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("not a regular file"));
  std::filesystem::remove(path_);
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("not a regular file"));
}

// Whatever byte of a file is damaged: an error or views within the file, never anything else.
TEST_F(SafetensorsTest, AnyDamagedByteIsRefusedOrHarmless) {
  const std::string header = R"({"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})";
  Write(header, "0123456789x");
  std::ifstream in(path_, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  int refused = 0;
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int flip : {1 << (at % 8), 1 << ((at + 5) % 8)}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      WriteRaw(bad);
      const auto file = Open();
      if (!file.ok()) {
        ++refused;
        continue;
      }
      uint64_t total = 0;
      for (const TensorView& view : (*file)->tensors()) {
        for (const std::byte byte : view.bytes) total += static_cast<uint64_t>(byte) + 1;
      }
      EXPECT_GT(total, 0u);
    }
  }
  EXPECT_GT(refused, 150);
}

TEST(SafetensorsTypeTest, SizesAndNames) {
  EXPECT_EQ(BytesPerElement(TensorType::kBf16), 2);
  EXPECT_EQ(BytesPerElement(TensorType::kF32), 4);
  EXPECT_EQ(BytesPerElement(TensorType::kU8), 1);
  EXPECT_EQ(BytesPerElement(TensorType::kI64), 8);
  EXPECT_EQ(BytesPerElement(TensorType::kOther), 0);
  EXPECT_EQ(TensorTypeName(TensorType::kF16), "F16");
}

}  // namespace
}  // namespace conclave::model
