#ifndef CONCLAVE_BASE_VERSION_H_
#define CONCLAVE_BASE_VERSION_H_

namespace conclave::base {

// Of the project; raised with its releases.
inline constexpr char kVersion[] = "0.1.0";

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_VERSION_H_
