#ifndef CONCLAVE_CLIENT_SHAPE_TABLE_H_
#define CONCLAVE_CLIENT_SHAPE_TABLE_H_

// Which shape (dp x tp) decodes fastest at how many sequences, from a table of what was measured on
// GPUs. `conclave plan` says it.

#include <string>
#include <string_view>
#include <vector>

#include "client/json_shapes.h"
#include "model/config.h"
#include "model/placement.h"

namespace conclave::client {

// Tokens/s of one shape, by sequences that decode at once.
struct MeasuredShape {
  model::ParallelShape shape;
  std::vector<double> tokens_per_second;  // [ShapeTable::sequences]; 0: not measured
};

// What was measured of one model on one kind of machine.
struct ShapeTable {
  std::string_view measured;  // model, machine and date
  int layers = 0;             // of the models that it is for
  int experts = 0;
  std::vector<int> sequences;
  std::vector<MeasuredShape> shapes;
};

// Null where nothing was measured for models of this size.
const ShapeTable* FindShapeTable(const model::Config& config);

struct FastestShape {
  int sequences = 0;
  model::ParallelShape best;
  double tokens_per_second = 0;
  double margin = 0;  // of `best` over the second best, as a share of it; 0: there is no other
};

// For each number of sequences, ascending, that some shape of `world` ranks was measured at.
std::vector<FastestShape> FastestShapes(const ShapeTable& table, int world);

// Of `plan`: null or empty where there is nothing to go by.
Json FastestJson(const model::Config& config, int world);
std::string FastestText(const model::Config& config, int world);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SHAPE_TABLE_H_
