#ifndef CONCLAVE_BASE_CHECK_H_
#define CONCLAVE_BASE_CHECK_H_

// CONCLAVE_CHECK(condition) ends the process when one of our own invariants is broken. Never for
// input: bad input is an absl::Status.

#include <cstdio>
#include <cstdlib>

#define CONCLAVE_CHECK(condition)                                                            \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (false)

#endif  // CONCLAVE_BASE_CHECK_H_
