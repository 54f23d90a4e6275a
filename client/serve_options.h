#ifndef CONCLAVE_CLIENT_SERVE_OPTIONS_H_
#define CONCLAVE_CLIENT_SERVE_OPTIONS_H_

// What `conclave serve` was asked for, and the command lines of its children.

#include <string>
#include <vector>

#include "base/flags.h"
#include "client/server_flags.h"
#include "client/shape_flags.h"
#include "model/model_source.h"
#include "model/placement.h"

namespace conclave::client {

struct ServeOptions {
  std::string model;
  std::string weights = "file";
  model::RandomWeights random_flags;  // for --weights random
  std::string tokenizer;              // a file; empty: the one in the model's folder
  std::vector<std::string> heads;     // NAME=DIR
  ShapeFlags shape_flags{.workers = 1};
  std::string device = "cpu";
  bool no_graphs = false;
  std::string listen = kDefaultServer;
  std::string internal_listen = "127.0.0.1:0";
  int threads = 0;             // of each worker; 0: its share of the processors
  std::string health_listen;   // empty: none
  std::string metrics_listen;  // empty: none
  double drain_limit = 30;     // seconds
  std::string log_level = "info";
  std::string log_format = "text";
  std::string log_dir;  // empty: children's logs go to stderr
  bool no_restart = false;
  // Flags with their values that only the coordinator knows, in the order given.
  std::vector<std::string> coordinator_flags;
  std::vector<std::string> worker_flags;  // the same of the workers
  bool guarded = false;                   // the public port takes more than a plaintext connection

  // What the flags say of the model.
  model::ModelSource source() const;

  // Filled in after the parse.
  model::ParallelShape shape;
  std::string control_socket;  // by which a guarded coordinator is watched
  std::string coordinator_binary;
  std::string worker_binary;
};

// `options` must outlive the parse.
void AddServeFlags(base::FlagSet& command, ServeOptions* options);

// Where the coordinator listens: as given at first; one that is started again gets the addresses
// that the first one chose.
struct CoordinatorAddresses {
  std::string listen = {};
  std::string internal = {};
  std::string health = {};   // empty: nowhere
  std::string metrics = {};  // the same
};

std::vector<std::string> CoordinatorArgv(const ServeOptions& options,
                                         const CoordinatorAddresses& addresses);

// `internal` is where the coordinator waits for workers. Workers reach each other over loopback.
// Of worker `index`.
std::vector<std::string> WorkerArgv(const ServeOptions& options, int index,
                                    const std::string& internal);

// Where a client on this machine reaches what listens at `address`: 0.0.0.0 and [::] are not
// addresses to dial.
std::string DialAddress(const std::string& address);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVE_OPTIONS_H_
