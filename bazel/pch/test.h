// rpc.h, and what tests include besides.
#include "bazel/pch/rpc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
