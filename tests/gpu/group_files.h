#ifndef CONCLAVE_TESTS_GPU_GROUP_FILES_H_
#define CONCLAVE_TESTS_GPU_GROUP_FILES_H_

// Requests and results as files: how a test and the processes of its ranks tell each other.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/placement.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/group_driver.h"

namespace conclave::gpu {

using Json = nlohmann::json;

Json ToJson(const std::vector<worker::TestRequest>& requests);
std::vector<worker::TestRequest> RequestsFrom(const Json& json);
Json ToJson(const std::vector<worker::TestResult>& results);
std::vector<worker::TestResult> ResultsFrom(const Json& json);

// Discarded (is_discarded) where there is no such file, or no JSON in it.
Json ReadJson(const std::filesystem::path& path);

// The exchange modes that a shape has; of one rank the unspecified.
std::vector<internal::v1::ExchangeMode> ModesOf(const model::ParallelShape& shape);
std::string NameOf(internal::v1::ExchangeMode mode);

}  // namespace conclave::gpu

#endif  // CONCLAVE_TESTS_GPU_GROUP_FILES_H_
