#ifndef CONCLAVE_BASE_STATUS_MACROS_H_
#define CONCLAVE_BASE_STATUS_MACROS_H_

// RETURN_IF_ERROR(expr);               returns the status of expr when it is not OK
// ASSIGN_OR_RETURN(auto x, expr);      x = value of expr, or returns its status

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RETURN_IF_ERROR(expr)                    \
  do {                                           \
    ::absl::Status status_macro_result = (expr); \
    if (!status_macro_result.ok()) {             \
      return status_macro_result;                \
    }                                            \
  } while (false)

#define CONCLAVE_STATUS_CONCAT_INNER(a, b) a##b
#define CONCLAVE_STATUS_CONCAT(a, b) CONCLAVE_STATUS_CONCAT_INNER(a, b)

#define ASSIGN_OR_RETURN(lhs, expr) \
  CONCLAVE_ASSIGN_OR_RETURN_IMPL(CONCLAVE_STATUS_CONCAT(status_or_, __LINE__), lhs, expr)

#define CONCLAVE_ASSIGN_OR_RETURN_IMPL(temporary, lhs, expr) \
  auto temporary = (expr);                                   \
  if (!temporary.ok()) {                                     \
    return std::move(temporary).status();                    \
  }                                                          \
  lhs = *std::move(temporary)

#endif  // CONCLAVE_BASE_STATUS_MACROS_H_
