#include "client/serve_options.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

using ::testing::Contains;
using ::testing::Not;

// The value that follows `flag`.
std::string ValueOf(const std::vector<std::string>& argv, const std::string& flag) {
  const auto it = std::find(argv.begin(), argv.end(), flag);
  return it == argv.end() || it + 1 == argv.end() ? "" : *(it + 1);
}

ServeOptions Parse(std::vector<std::string> arguments) {
  base::FlagSet app("", "serve");
  ServeOptions options;
  AddServeFlags(app, &options);
  const base::ParsedFlags parsed = app.Parse(std::move(arguments));
  EXPECT_EQ(parsed.outcome, base::ParsedFlags::Outcome::kOk) << parsed.text;
  options.shape = *Resolve(options.shape_flags);
  options.coordinator_binary = "/bin/conclave-coordinator";
  options.worker_binary = "/bin/conclave-worker";
  // What was parsed into the local above is referred to by `app` alone, which ends here.
  return options;
}

TEST(ServeOptionsTest, TheCoordinatorGetsAddressesAndShape) {
  const ServeOptions options = Parse({"--model", "/m/", "--workers", "4", "--dp", "2"});
  const auto argv = CoordinatorArgv(options, {.listen = "127.0.0.1:7", .internal = "127.0.0.1:8"});
  EXPECT_EQ(argv[0], "/bin/conclave-coordinator");
  EXPECT_EQ(ValueOf(argv, "--model"), "/m");
  EXPECT_EQ(ValueOf(argv, "--listen"), "127.0.0.1:7");
  EXPECT_EQ(ValueOf(argv, "--internal-listen"), "127.0.0.1:8");
  EXPECT_EQ(ValueOf(argv, "--workers"), "4");
  EXPECT_EQ(ValueOf(argv, "--dp"), "2");
  EXPECT_EQ(ValueOf(argv, "--tp"), "2");
  EXPECT_THAT(argv, Not(Contains("--max-running")));
  EXPECT_THAT(argv, Not(Contains("--health-listen")));
}

TEST(ServeOptionsTest, HealthIsServedWhereItIsAskedFor) {
  const ServeOptions options = Parse({"--model", "m", "--health-listen", "0.0.0.0:7000"});
  EXPECT_EQ(options.health_listen, "0.0.0.0:7000");
  const auto argv = CoordinatorArgv(options, {.health = options.health_listen});
  EXPECT_EQ(ValueOf(argv, "--health-listen"), "0.0.0.0:7000");
}

TEST(ServeOptionsTest, WorkersAreToldWhatGoesPastNccl) {
  const ServeOptions options = Parse({"--model", "m", "--device", "cuda", "--direct-kib", "512"});
  EXPECT_EQ(ValueOf(WorkerArgv(options, 1, "127.0.0.1:9"), "--direct-kib"), "512");
}

TEST(ServeOptionsTest, AWorkerWaitsLongerThanTheCoordinatorHasToLetItGo) {
  const ServeOptions options = Parse({"--model", "m", "--drain-limit", "100"});
  EXPECT_EQ(ValueOf(CoordinatorArgv(options, {}), "--drain-limit"), "100");
  EXPECT_EQ(ValueOf(WorkerArgv(options, 0, "127.0.0.1:9"), "--drain-limit"), "105");
}

TEST(ServeOptionsTest, EngineFlagsPassThroughAsGiven) {
  const ServeOptions options = Parse({"--model",           "m",
                                      "--exchange",        "exact",
                                      "--max-running",     "3",
                                      "--max-queued",      "0",
                                      "--max-step-tokens", "64",
                                      "--prefill-chunk",   "7",
                                      "--pipeline-depth",  "1",
                                      "--kv-cache-bytes",  "8589934592",
                                      "--require-mxfp4",   "--allow-forced-routing",
                                      "--tokenizer",       "/t.json"});
  const auto argv = CoordinatorArgv(options, {.listen = "a:1", .internal = "a:2"});
  EXPECT_EQ(ValueOf(argv, "--exchange"), "exact");
  EXPECT_EQ(ValueOf(argv, "--max-running"), "3");
  EXPECT_EQ(ValueOf(argv, "--max-queued"), "0");
  EXPECT_EQ(ValueOf(argv, "--max-step-tokens"), "64");
  EXPECT_EQ(ValueOf(argv, "--prefill-chunk"), "7");
  EXPECT_EQ(ValueOf(argv, "--pipeline-depth"), "1");
  EXPECT_EQ(ValueOf(argv, "--kv-cache-bytes"), "8589934592");
  EXPECT_EQ(ValueOf(argv, "--tokenizer"), "/t.json");
  EXPECT_THAT(argv, Contains("--require-mxfp4"));
  EXPECT_THAT(argv, Contains("--allow-forced-routing"));
}

TEST(ServeOptionsTest, RandomWeightsPassThrough) {
  ServeOptions options =
      Parse({"--model", "m", "--weights", "random", "--seed", "9", "--layers", "2"});
  const auto argv = CoordinatorArgv(options, {.listen = "a:1", .internal = "a:2"});
  EXPECT_EQ(ValueOf(argv, "--weights"), "random");
  EXPECT_EQ(ValueOf(argv, "--seed"), "9");
  EXPECT_EQ(ValueOf(argv, "--layers"), "2");
  options = Parse({"--model", "m"});
  EXPECT_THAT(CoordinatorArgv(options, {.listen = "a:1", .internal = "a:2"}),
              Not(Contains("--weights")));
}

TEST(ServeOptionsTest, EachHeadPassesThroughWithAnAbsoluteFolder) {
  const ServeOptions options = Parse({"--model", "m", "--head", "a=/x/y", "--head", "b=/z/"});
  const auto argv = CoordinatorArgv(options, {.listen = "a:1", .internal = "a:2"});
  EXPECT_EQ(std::count(argv.begin(), argv.end(), "--head"), 2);
  EXPECT_THAT(argv, Contains("a=/x/y"));
  EXPECT_THAT(argv, Contains("b=/z"));
}

TEST(ServeOptionsTest, WorkersUseLoopbackAndShareTheProcessors) {
  ServeOptions options = Parse({"--model", "m", "--workers", "2", "--threads", "3"});
  auto argv = WorkerArgv(options, 0, "127.0.0.1:9");
  EXPECT_EQ(ValueOf(argv, "--coordinator"), "127.0.0.1:9");
  EXPECT_EQ(ValueOf(argv, "--advertise-address"), "127.0.0.1");
  EXPECT_EQ(ValueOf(argv, "--interface"), "lo");
  EXPECT_EQ(ValueOf(argv, "--threads"), "3");
  options = Parse({"--model", "m", "--workers", "4000"});
  argv = WorkerArgv(options, 0, "127.0.0.1:9");
  EXPECT_EQ(ValueOf(argv, "--threads"), "1");
}

TEST(ServeOptionsTest, HeadsAreNameEqualsFolder) {
  EXPECT_EQ(model::ParseHeadFlag("a=b=c")->dir, "b=c");
  for (const char* bad : {"", "a", "a=", "=b"}) {
    EXPECT_EQ(model::ParseHeadFlag(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ServeOptionsTest, WildcardAddressesAreDialledOverLoopback) {
  EXPECT_EQ(DialAddress("0.0.0.0:5"), "127.0.0.1:5");
  EXPECT_EQ(DialAddress("[::]:5"), "[::1]:5");
  EXPECT_EQ(DialAddress(":5"), "127.0.0.1:5");
  EXPECT_EQ(DialAddress("10.1.2.3:5"), "10.1.2.3:5");
}

}  // namespace
}  // namespace conclave::client
