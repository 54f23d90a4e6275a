// Who may call: with TLS, client certificates, API keys and a worker's secret turned on, nothing of
// either port answers without them, and no secret is to be seen where it does not belong.

#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/tls.h"
#include "gmock/gmock.h"
#include "proto/conclave/v1/classification.grpc.pb.h"
#include "proto/conclave/v1/model.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

namespace fs = std::filesystem;
using ::google::protobuf::UnknownFieldSet;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kUser[] = "user-key-0123456789abcdef";
constexpr char kAdmin[] = "admin-key-0123456789abcde";
constexpr char kOld[] = "old-key-0123456789abcdefg";
constexpr char kLimited[] = "limited-key-0123456789abc";
constexpr char kLater[] = "later-key-0123456789abcd";
constexpr char kWorker[] = "worker-secret-0123456789";
constexpr char kSomeone[] = "someone-elses-0123456789";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// As an operator does it: a reader sees the old file or the new one.
void Replace(const std::string& path, const std::string& text) {
  std::ofstream(path + ".new") << text;
  fs::rename(path + ".new", path);
}

// Certificates and keys in a folder.
class Files {
 public:
  Files() {
    std::string name = std::string(std::getenv("TEST_TMPDIR")) + "/files-XXXXXX";
    dir_ = mkdtemp(name.data());
    MakeAuthority("ca");
    MakeAuthority("ca2");
    MakeCertificate("server", "ca");
    MakeCertificate("client", "ca");
    MakeCertificate("server2", "ca2");
    MakeCertificate("expired", "ca", /*days=*/-1);
    Replace(path("keys"), Keys(""));
    Replace(path("secret"), std::string("# of the workers\n") + kWorker + "\n");
    Replace(path("wrong_secret"), std::string(kSomeone) + "\n");
    Replace(path("user_key"), std::string(kUser) + "\n");
  }
  ~Files() { fs::remove_all(dir_); }

  std::string path(const std::string& name) const { return dir_ + "/" + name; }

  static std::string Keys(const std::string& more) {
    return std::string("user ") + kUser + "\nops " + kAdmin + " admin\nold " + kOld +
           " expires=2020-01-01\nlimited " + kLimited + " max-requests=1\n" + more;
  }

  // With the client's certificate unless told otherwise; of no `certificate`: with none.
  base::ChannelSecurity Security(const std::string& secret,
                                 const std::string& certificate = "client") const {
    base::ChannelSecurity security{.tls = true, .files = {.ca = path("ca.pem")}, .secret = secret};
    if (certificate.empty()) return security;
    security.files.cert = path(certificate + ".pem");
    security.files.key = path(certificate + ".key");
    return security;
  }

 private:
  void OpenSsl(const std::vector<std::string>& arguments) {
    std::vector<std::string> command = {"/usr/bin/openssl"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const CommandResult result = RunCommand(command);
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  void MakeAuthority(const std::string& name) {
    OpenSsl({"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", path(name + ".key"), "-out", path(name + ".pem"), "-days", "2", "-subj",
             "/CN=" + name});
  }
  void MakeCertificate(const std::string& name, const std::string& authority, int days = 2) {
    OpenSsl({"req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", path(name + ".key"), "-out", path(name + ".csr"), "-subj", "/CN=" + name});
    Replace(path("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n");
    OpenSsl({"x509", "-req", "-in", path(name + ".csr"), "-CA", path(authority + ".pem"), "-CAkey",
             path(authority + ".key"), "-CAcreateserial", "-extfile", path("san"), "-days",
             std::to_string(days), "-out", path(name + ".pem")});
  }

  std::string dir_;
};

std::shared_ptr<grpc::Channel> Dial(const std::string& address,
                                    const base::ChannelSecurity& security) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  auto channel = base::Dial(address, security, arguments);
  EXPECT_TRUE(channel.ok()) << channel.status();
  return *std::move(channel);
}

grpc::ByteBuffer Bytes(const UnknownFieldSet& message) {
  std::string bytes;
  message.SerializeToString(&bytes);
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// One call of any method with one message, and the last message of its answer.
grpc::Status CallAny(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const grpc::ByteBuffer& request, UnknownFieldSet* response = nullptr) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + Scaled(absl::Seconds(20))));
  grpc::CompletionQueue queue;
  bool ok = false;
  const auto wait = [&] {
    void* tag = nullptr;
    return queue.Next(&tag, &ok) && ok;
  };
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  if (wait()) {
    call->WriteLast(request, {}, nullptr);
    wait();
    for (grpc::ByteBuffer message;;) {
      call->Read(&message, nullptr);
      if (!wait()) break;
      grpc::Slice slice;
      if (response != nullptr && message.DumpToSingleSlice(&slice).ok()) {
        response->ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
      }
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  queue.Shutdown();
  while (wait()) {
  }
  return status;
}

// Fields of grpc.reflection.v1alpha.
constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
constexpr int kFileContainingSymbol = 4;
constexpr int kListServices = 7;
constexpr int kFileResponse = 4;
constexpr int kListResponse = 6;

// Field 1 of each entry of field `part` of what reflection answers.
std::vector<std::string> Reflect(const std::shared_ptr<grpc::Channel>& channel, int question,
                                 const std::string& about, int part, bool nested) {
  UnknownFieldSet request;
  request.AddLengthDelimited(question, about);
  UnknownFieldSet response;
  const grpc::Status status = CallAny(channel, kReflection, Bytes(request), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<std::string> found;
  for (int i = 0; i < response.field_count(); ++i) {
    if (response.field(i).number() != part) continue;
    UnknownFieldSet entries;
    entries.ParseFromString(response.field(i).length_delimited());
    for (int j = 0; j < entries.field_count(); ++j) {
      found.push_back(entries.field(j).length_delimited());
      UnknownFieldSet entry;
      if (nested && entry.ParseFromString(found.back()) && entry.field_count() > 0) {
        found.back() = entry.field(0).length_delimited();
      }
    }
  }
  return found;
}

// "/package.Service/Method" of all that the port has.
std::vector<std::string> Methods(const std::shared_ptr<grpc::Channel>& channel) {
  std::vector<std::string> methods;
  for (const std::string& name : Reflect(channel, kListServices, "", kListResponse, true)) {
    for (const std::string& bytes :
         Reflect(channel, kFileContainingSymbol, name, kFileResponse, false)) {
      google::protobuf::FileDescriptorProto file;
      if (!file.ParseFromString(bytes)) continue;
      for (const auto& service : file.service()) {
        if (file.package() + "." + service.name() != name) continue;
        for (const auto& method : service.method()) {
          methods.push_back("/" + name + "/" + method.name());
        }
      }
    }
  }
  // gRPC's own health service is not in its reflection.
  for (const char* method : {"Check", "Watch"}) {
    methods.push_back(std::string("/grpc.health.v1.Health/") + method);
  }
  return methods;
}

void ExpectAll(const std::vector<std::string>& methods, const std::string& address,
               const base::ChannelSecurity& security, grpc::StatusCode code, const char* what) {
  const auto channel = Dial(address, security);
  for (const std::string& method : methods) {
    const grpc::Status status = CallAny(channel, method, Bytes({}));
    EXPECT_EQ(status.error_code(), code)
        << what << ": " << method << ": " << status.error_message();
  }
}

// All that a port that asks for certificates refuses before any call.
void ExpectNoConnection(const std::vector<std::string>& methods, const std::string& address,
                        const Files& files, const std::string& secret) {
  const auto gone = grpc::StatusCode::UNAVAILABLE;
  ExpectAll(methods, address, files.Security(secret, ""), gone, "no certificate");
  ExpectAll(methods, address, files.Security(secret, "server2"), gone,
            "a certificate of another authority");
  ExpectAll(methods, address, files.Security(secret, "expired"), gone, "an expired certificate");
  ExpectAll(methods, address, {.secret = secret}, gone, "plaintext");
}

class ProtectionTest : public ::testing::Test {
 protected:
  ProtectionTest() {
    // What a user exports for the client is none of the children's business.
    setenv("CONCLAVE_API_KEY", kSomeone, 1);
    server_ = std::make_unique<Server>(ServerOptions{
        .workers = 2,
        .args = {"--tls-cert", files_.path("server.pem"), "--tls-key", files_.path("server.key"),
                 "--tls-client-ca", files_.path("ca.pem"), "--api-keys", files_.path("keys"),
                 "--internal-secret", files_.path("secret"), "--log-level", "debug"}});
    unsetenv("CONCLAVE_API_KEY");
  }

  void SetUp() override { ASSERT_TRUE(server_->WaitServing()) << server_->log(); }

  std::shared_ptr<grpc::Channel> As(const std::string& secret) {
    return Dial(server_->address(), files_.Security(secret));
  }
  grpc::Status GetModel(const std::shared_ptr<grpc::Channel>& channel) {
    return CallAny(channel, "/conclave.v1.ModelService/GetModel", Bytes({}));
  }
  bool WaitFor(const std::string& secret, grpc::StatusCode code) {
    const absl::Time end = absl::Now() + Scaled(absl::Seconds(10));
    const auto channel = As(secret);
    while (GetModel(channel).error_code() != code) {
      if (absl::Now() > end) return false;
      absl::SleepFor(absl::Milliseconds(20));
    }
    return true;
  }

  std::vector<pid_t> Processes() const {
    std::vector<pid_t> pids = {server_->pid()};
    const std::string pid = std::to_string(server_->pid());
    std::stringstream children(ReadFile("/proc/" + pid + "/task/" + pid + "/children"));
    for (pid_t child = 0; children >> child;) pids.push_back(child);
    return pids;
  }
  // As a worker was told it.
  std::string InternalAddress() const {
    for (const pid_t pid : Processes()) {
      const std::string line = ReadFile("/proc/" + std::to_string(pid) + "/cmdline");
      const std::string flag = std::string("--coordinator") + '\0';
      const size_t at = line.find(flag);
      if (at != std::string::npos) return line.c_str() + at + flag.size();
    }
    return "";
  }
  CommandResult Conclave(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), BinaryPath("client/conclave"));
    arguments.insert(
        arguments.end(),
        {"--server", server_->address(), "--tls-ca", files_.path("ca.pem"), "--tls-cert",
         files_.path("client.pem"), "--tls-key", files_.path("client.key")});
    return RunCommand(arguments);
  }

  Files files_;
  std::unique_ptr<Server> server_;
};

TEST_F(ProtectionTest, NothingOfEitherPortAnswersWithoutCredentials) {
  const std::vector<std::string> methods = Methods(As(kUser));
  for (const char* method :
       {"/conclave.v1.GenerationService/Chat", "/conclave.v1.ClassificationService/ScoreLabels",
        "/conclave.v1.ModelService/Tokenize", "/conclave.v1.ClusterService/Rebalance",
        "/conclave.v1.ClusterService/Drain", kReflection}) {
    EXPECT_THAT(methods, Contains(method));
  }
  const std::string& address = server_->address();
  const auto unknown = grpc::StatusCode::UNAUTHENTICATED;
  ExpectAll(methods, address, files_.Security(""), unknown, "no key");
  ExpectAll(methods, address, files_.Security(kSomeone), unknown, "wrong key");
  ExpectAll(methods, address, files_.Security(kOld), unknown, "expired key");
  ExpectAll({"/no.such.Service/Method"}, address, files_.Security(""), unknown, "no method");
  ExpectNoConnection(methods, address, files_, kUser);
  EXPECT_TRUE(GetModel(As(kUser)).ok());

  const std::string internal = InternalAddress();
  const std::vector<std::string> inside = Methods(Dial(internal, {.secret = kWorker}));
  EXPECT_THAT(inside, Contains("/conclave.internal.v1.WorkerRegistry/Join"));
  ExpectAll(inside, internal, {}, unknown, "no secret");
  ExpectAll(inside, internal, {.secret = kSomeone}, unknown, "wrong secret");
  ExpectAll(inside, internal, {.secret = kAdmin}, unknown, "an API key");
  EXPECT_TRUE(server_->WaitForLog("event=call_refused port=public method=\"" + methods.front() +
                                  "\" code=UNAUTHENTICATED"));
  EXPECT_TRUE(server_->WaitForLog("event=call_refused port=internal method=\"" + inside.front() +
                                  "\" code=UNAUTHENTICATED"));
}

TEST_F(ProtectionTest, TheLogSaysWhoseKeyARequestBrought) {
  GetModel(As(kUser));
  EXPECT_TRUE(server_->WaitForLog("method=ModelService.GetModel code=OK"));
  EXPECT_THAT(server_->log(), HasSubstr(" key=\"user\" "));
}

grpc::Status ScoreTwoLabels(const std::shared_ptr<grpc::Channel>& channel) {
  v1::ScoreLabelsRequest request;
  request.add_inputs()->set_text("It is");
  request.add_labels(" good");
  request.add_labels(" bad");
  v1::ScoreLabelsResponse response;
  grpc::ClientContext context;
  return v1::ClassificationService::NewStub(channel)->ScoreLabels(&context, request, &response);
}

TEST_F(ProtectionTest, AKeyIsHeldToItsLimitByBothServicesThatCompute) {
  const auto channel = As(kLimited);
  v1::GenerateRequest two = GreedyRequest({1, 2, 3}, 4);
  two.set_n(2);
  EXPECT_TRUE(GenerateOne(As(kUser), two).ok());
  EXPECT_EQ(GenerateOne(channel, two).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(ScoreTwoLabels(As(kUser)).ok());
  EXPECT_EQ(ScoreTwoLabels(channel).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  // The limit is of what is open, over all connections.
  const v1::GenerateRequest one = GreedyRequest({1, 2, 3}, 200);
  grpc::ClientContext context;
  const auto reader = v1::GenerationService::NewStub(channel)->Generate(&context, one);
  v1::GenerateResponse part;
  ASSERT_TRUE(reader->Read(&part));
  EXPECT_EQ(GenerateOne(As(kLimited), one).status().code(), absl::StatusCode::kResourceExhausted);
  while (reader->Read(&part)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(GenerateOne(As(kLimited), one).ok());
}

TEST_F(ProtectionTest, WhatChangesTheClusterTakesAnAdmin) {
  for (const std::string& method : Methods(As(kUser))) {
    if (!method.starts_with("/conclave.v1.ClusterService/")) continue;
    const auto code = CallAny(As(kUser), method, Bytes({})).error_code();
    EXPECT_EQ(code == grpc::StatusCode::PERMISSION_DENIED, !method.ends_with("/GetCluster"))
        << method;
  }
  UnknownFieldSet dry_run;
  dry_run.AddVarint(2, 1);
  const grpc::Status admin =
      CallAny(As(kAdmin), "/conclave.v1.ClusterService/Rebalance", Bytes(dry_run));
  EXPECT_NE(admin.error_code(), grpc::StatusCode::PERMISSION_DENIED) << admin.error_message();
}

TEST_F(ProtectionTest, KeysAndCertificatesChangeUnderTrafficAndNothingIsDropped) {
  const auto channel = As(kUser);
  std::atomic<bool> done = false;
  std::atomic<int> streams = 0;
  std::thread traffic([&] {
    while (!done.load()) {
      const auto tokens = GenerateOne(channel, GreedyRequest({1, 2, 3}, 40));
      EXPECT_TRUE(tokens.ok()) << tokens.status();
      streams.fetch_add(1);
    }
  });
  EXPECT_TRUE(WaitFor(kLater, grpc::StatusCode::UNAUTHENTICATED));
  Replace(files_.path("keys"), Files::Keys(std::string("later ") + kLater + "\n"));
  EXPECT_TRUE(WaitFor(kLater, grpc::StatusCode::OK));
  Replace(files_.path("keys"), "this is\nno such file\n");
  EXPECT_TRUE(server_->WaitForLog("event=api_keys_refused"));
  EXPECT_TRUE(WaitFor(kLater, grpc::StatusCode::OK));
  Replace(files_.path("keys"), Files::Keys(""));
  EXPECT_TRUE(WaitFor(kLater, grpc::StatusCode::UNAUTHENTICATED));

  // Between the two files the pair does not fit, and the old one goes on.
  Replace(files_.path("server.pem"), ReadFile(files_.path("server2.pem")));
  EXPECT_TRUE(GetModel(As(kUser)).ok());
  EXPECT_THAT(server_->log(), HasSubstr("event=tls_files_refused"));
  Replace(files_.path("server.key"), ReadFile(files_.path("server2.key")));
  EXPECT_EQ(GetModel(As(kUser)).error_code(), grpc::StatusCode::UNAVAILABLE);
  base::ChannelSecurity second = files_.Security(kUser);
  second.files.ca = files_.path("ca2.pem");
  EXPECT_TRUE(GetModel(Dial(server_->address(), second)).ok());

  const int so_far = streams.load();
  const absl::Time end = absl::Now() + Scaled(absl::Seconds(20));
  while (streams.load() < so_far + 3 && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  done.store(true);
  traffic.join();
  EXPECT_GT(streams.load(), so_far);
}

TEST_F(ProtectionTest, TheClientCommandsBringWhatIsAskedFor) {
  const std::string key = files_.path("user_key");
  const CommandResult status = Conclave({"status", "--json", "--api-key-file", key});
  EXPECT_EQ(status.exit_code, 0) << status.err;
  const CommandResult text = Conclave(
      {"generate", "--tokens", "1,2,3", "--max-tokens", "4", "--json", "--api-key-file", key});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  setenv("CONCLAVE_API_KEY", kUser, 1);
  EXPECT_EQ(Conclave({"status"}).exit_code, 0);
  unsetenv("CONCLAVE_API_KEY");
  const CommandResult without = Conclave({"status"});
  EXPECT_EQ(without.exit_code, 1);
  EXPECT_THAT(without.err, HasSubstr("an API key is required"));
  const CommandResult wrong = Conclave({"status", "--api-key-file", files_.path("wrong_secret")});
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_THAT(wrong.err, HasSubstr("the API key is not valid"));
  const CommandResult no_file = Conclave({"status", "--api-key-file", "/nonexistent"});
  EXPECT_EQ(no_file.exit_code, 1);
  EXPECT_THAT(no_file.err, HasSubstr("/nonexistent"));
}

TEST_F(ProtectionTest, NoSecretIsSeenWhereItDoesNotBelong) {
  GetModel(As(kUser));
  GetModel(As(kSomeone));
  CallAny(Dial(InternalAddress(), {.secret = kSomeone}), kReflection, Bytes({}));
  Replace(files_.path("keys"), std::string("user ") + kUser + "\nbroken " + kLater + " x\n");
  // It is looked at when a key is.
  const absl::Time end = absl::Now() + Scaled(absl::Seconds(10));
  const auto refused = [&] {
    return server_->log().find("event=api_keys_refused") != std::string::npos;
  };
  while (!refused() && absl::Now() < end) GetModel(As(kUser));
  EXPECT_TRUE(refused());
  std::string seen = server_->log();
  const CommandResult status =
      Conclave({"status", "--json", "--api-key-file", files_.path("user_key")});
  seen += status.out + status.err;
  const std::vector<pid_t> processes = Processes();
  ASSERT_EQ(processes.size(), 4u);
  for (const pid_t pid : processes) {
    const std::string folder = "/proc/" + std::to_string(pid);
    seen += ReadFile(folder + "/cmdline");
    if (pid != server_->pid()) seen += ReadFile(folder + "/environ");
  }
  EXPECT_THAT(seen, HasSubstr("--api-keys"));
  for (const char* secret : {kUser, kAdmin, kOld, kLimited, kLater, kWorker, kSomeone}) {
    EXPECT_THAT(seen, Not(HasSubstr(secret)));
  }
  EXPECT_THAT(seen, Not(HasSubstr("PRIVATE KEY")));
}

TEST_F(ProtectionTest, AWorkerWithAnotherSecretDoesNotJoin) {
  const CommandResult worker =
      RunCommand({BinaryPath("worker/conclave-worker"), "--coordinator", InternalAddress(),
                  "--advertise-address", "127.0.0.1", "--interface", "lo", "--no-rejoin",
                  "--internal-secret", files_.path("wrong_secret")});
  EXPECT_EQ(worker.exit_code, 1);
  EXPECT_THAT(worker.err, HasSubstr("this port is for workers"));
  EXPECT_THAT(worker.err, Not(HasSubstr(kSomeone)));
}

TEST(ProtectionStartTest, WorkersMayProveThemselvesWithCertificates) {
  const Files files;
  Server server({.workers = 2,
                 .args = {"--internal-tls-cert", files.path("server.pem"), "--internal-tls-key",
                          files.path("server.key"), "--internal-tls-ca", files.path("ca.pem"),
                          "--internal-listen", "0.0.0.0:0"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  EXPECT_TRUE(GenerateOne(server.channel(), GreedyRequest({1, 2}, 4)).ok());
  const std::string& port = server.internal_address();
  const std::string internal = "127.0.0.1" + port.substr(port.rfind(':'));
  const std::vector<std::string> inside = Methods(Dial(internal, files.Security("")));
  EXPECT_THAT(inside, Contains("/conclave.internal.v1.WorkerRegistry/Join"));
  ExpectNoConnection(inside, internal, files, "");
}

TEST(ProtectionStartTest, AWorkersPortOpenToOthersIsRefused) {
  const CommandResult serve =
      RunCommand({BinaryPath("client/conclave"), "serve", "--model", "demo/tiny_gpt_oss",
                  "--listen", "127.0.0.1:0", "--internal-listen", "0.0.0.0:0"});
  EXPECT_EQ(serve.exit_code, 2);
  EXPECT_THAT(serve.err, HasSubstr("--internal-listen 0.0.0.0:0 can be reached"));
  EXPECT_THAT(serve.err, HasSubstr("--internal-secret FILE"));
}

}  // namespace
}  // namespace conclave::tests
