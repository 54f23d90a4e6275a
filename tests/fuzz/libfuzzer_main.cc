// Entry point of every libFuzzer program; the build names the function.

#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return conclave::tests::CONCLAVE_FUZZ_FUNCTION(data, size);
}
