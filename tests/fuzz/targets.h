#ifndef CONCLAVE_TESTS_FUZZ_TARGETS_H_
#define CONCLAVE_TESTS_FUZZ_TARGETS_H_

// What is fuzzed. Each function takes any bytes, returns 0, and ends the process when a promise is
// broken. libFuzzer calls them (tools/fuzz), and so does corpus_test with every seed.
//
// The working directory is the root of the repository or of its runfiles.

#include <cstddef>
#include <cstdint>

namespace conclave::tests {

// A safetensors file: "R" and the file's bytes, or "H", a JSON header, a zero byte and the data.
int FuzzSafetensors(const uint8_t* data, size_t size);

// A config.json, of a model and of a head.
int FuzzConfig(const uint8_t* data, size_t size);

// A tokenizer.json; one that loads must still encode and decode.
int FuzzTokenizerJson(const uint8_t* data, size_t size);

// A text, valid or not: o200k's own matcher against PCRE2, then bytes to tokens and back. The bytes
// are read as token ids too.
int FuzzRoundTrip(const uint8_t* data, size_t size);

// One call of a live coordinator with a fake worker: a byte that picks the method, a byte of
// options, and the request's bytes. rpc_target.cc has the table.
int FuzzRpc(const uint8_t* data, size_t size);

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_FUZZ_TARGETS_H_
