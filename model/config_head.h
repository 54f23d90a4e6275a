#ifndef CONCLAVE_MODEL_CONFIG_HEAD_H_
#define CONCLAVE_MODEL_CONFIG_HEAD_H_

// The architecture and the labels in a config.json.

#include <optional>

#include "model/config.h"
#include "model/config_reader.h"

namespace conclave::model {

// What `architectures` says; nothing when the key is absent. Errors stay in `fields`.
std::optional<Architecture> ReadArchitecture(FieldReader& fields);

// num_labels, id2label, label2id, problem_type. Errors stay in `fields`.
HeadConfig ReadHead(FieldReader& fields, Architecture kind);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CONFIG_HEAD_H_
