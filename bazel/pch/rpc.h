// std.h, and what the rooms that speak gRPC include besides.
#include "bazel/pch/std.h"

#include <google/protobuf/generated_message_reflection.h>
#include <google/protobuf/map.h>
#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/server_callback.h>
#include <spdlog/spdlog.h>
