#include <iostream>

#include "client/client.h"

int main() {
  conclave::client::Client client("127.0.0.1:50051");
  conclave::v1::GenerateRequest request;
  request.mutable_prompt()->set_text("Hello");
  request.mutable_stop()->set_max_tokens(32);
  const auto finish = client.Generate(request, [](const conclave::v1::GenerateResponse& part) {
    std::cout << part.text() << std::flush;
  });
  if (!finish.ok()) std::cerr << finish.status().ToString() << "\n";
  return finish.ok() ? 0 : 1;
}
