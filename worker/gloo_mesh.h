#ifndef CONCLAVE_WORKER_GLOO_MESH_H_
#define CONCLAVE_WORKER_GLOO_MESH_H_

// A gloo context whose ranks are all connected to each other, with addresses exchanged through a
// Rendezvous. Gloo's exceptions leave these functions unless they say otherwise: the caller is
// gloo_communicator.cc, which stops them.

#include <gloo/context.h>
#include <gloo/transport/device.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/communicator.h"

namespace conclave::worker {

// What gloo says, without the source position that it puts before its messages.
std::string GlooReason(const std::exception& error);

// Pairs are in gloo's synchronous mode: the thread that communicates reads and writes the sockets
// itself and sleeps in the kernel, with no hand-over to gloo's loop thread and no handshake before
// a message.
class GlooMesh final : public gloo::Context {
 public:
  // Listens once for every peer. `timeout` bounds one read or write.
  GlooMesh(int my_rank, int num_ranks, std::shared_ptr<gloo::transport::Device> device,
           absl::Duration timeout);
  ~GlooMesh() override;

  // Publishes this rank's addresses as `prefix`/rank, waits for the others' and connects.
  // CloseConnections, from another thread, cuts it short. A peer that cannot be connected to is
  // UNAVAILABLE, with its rank and address.
  absl::Status Connect(const std::string& prefix, Rendezvous& rendezvous, absl::Time deadline);

  // Any thread, after Connect. Every read and write, running or to come, fails, here and at the
  // peers.
  void Break();

 private:
  absl::Status ConnectPairs(const std::string& prefix, Rendezvous& rendezvous, absl::Time deadline);
  absl::Status DuplicateSockets();

  std::vector<std::vector<char>> peer_addresses_;  // [size]
  // Second descriptors of the pairs' sockets: gloo holds a lock while it reads, so that closing a
  // pair would wait for the very read it should end. Fixed after Connect.
  std::vector<int> sockets_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_GLOO_MESH_H_
