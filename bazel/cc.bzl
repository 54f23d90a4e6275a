"""C++ targets of Conclave: our warnings, as errors, on our own code.

Language level (C++20) and optimization come from .bazelrc, for every target alike. Headers of
@sys libraries live in /usr/include and generated headers declare themselves system headers, so
neither warns.
"""

load("//bazel:pch.bzl", "pch_copts", "pch_deps")

CONCLAVE_COPTS = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wnon-virtual-dtor",
    "-Woverloaded-virtual",
    "-Wextra-semi",
    "-Wimplicit-fallthrough",
    "-Wvla",
    # GCC 12 misfires on std::string concatenation (GCC bug 105651).
    "-Wno-restrict",
    "-Werror",
]

# Warnings are GCC's business: clang, which only fuzzing uses, has others.
_WARNINGS = select({
    "//bazel:fuzz": ["-w"],
    "//conditions:default": CONCLAVE_COPTS,
})

# For arithmetic in inner loops. A debug or sanitizer build keeps its own level.
_HOT_COPTS = select({
    "//bazel:debug": [],
    "//bazel:sanitizer": [],
    "//conditions:default": ["-O3"],
})

_RUNTIME = select({
    "//bazel:tsan": ["//bazel/tsan:edges"],
    "//conditions:default": [],
})

# Rooms whose sources mostly include gRPC or generated code.
_RPC_ROOMS = ["bench", "client", "coordinator", "tests", "worker"]

def _pch():
    return "rpc" if native.package_name().split("/")[0] in _RPC_ROOMS else "std"

def _copts(copts, hot, pch):
    return pch_copts(pch) + _WARNINGS + copts + (_HOT_COPTS if hot else [])

def conclave_cc_library(name, deps = [], copts = [], hot = False, testonly = False, **kwargs):
    """A library: one per header pair.

    Args:
      name: the target, as a rule the header's name without `.h`.
      deps: as for cc_library.
      copts: added to our warnings.
      hot: compile with -O3.
      testonly: as for cc_library.
      **kwargs: as for cc_library.
    """
    pch = "test" if testonly else _pch()
    native.cc_library(
        name = name,
        copts = _copts(copts, hot, pch),
        linkstatic = True,
        testonly = testonly,
        deps = deps + pch_deps(pch),
        **kwargs
    )

def conclave_cc_binary(name, deps = [], copts = [], hot = False, **kwargs):
    """A program. Arguments as for conclave_cc_library."""
    native.cc_binary(
        name = name,
        copts = _copts(copts, hot, _pch()),
        deps = deps + _RUNTIME + pch_deps(_pch()),
        **kwargs
    )

def conclave_fuzz_binary(name, function, deps):
    """A libFuzzer program; builds with --config=fuzz only (tools/fuzz).

    Args:
      name: ends in `_fuzzer`.
      function: the fuzzed one, declared in tests/fuzz/targets.h.
      deps: the library that defines it.
    """
    native.cc_binary(
        name = name,
        srcs = ["libfuzzer_main.cc"],
        copts = _copts([], False, "std"),
        linkopts = ["-fsanitize=fuzzer"],
        local_defines = ["CONCLAVE_FUZZ_FUNCTION=" + function],
        tags = ["manual"],
        testonly = True,
        deps = deps + [":targets"],
    )

def conclave_cc_test(name, deps = [], copts = [], hot = False, main = True, size = "small", **kwargs):
    """A GoogleTest program.

    Args:
      name: ends in `_test`.
      deps: beside GoogleTest and GoogleMock, which every test gets.
      copts: added to our warnings.
      hot: compile with -O3.
      main: link GoogleTest's main(); False when the test brings its own.
      size: small (2 min limit), medium (5), large (15), enormous (30).
      **kwargs: as for cc_test.
    """
    native.cc_test(
        name = name,
        size = size,
        copts = _copts(copts, hot, "test"),
        deps = deps + _RUNTIME + pch_deps("test") + ["@sys//:gmock", "@sys//:gtest_main" if main else "@sys//:gtest"],
        **kwargs
    )
