"""@sys: the libraries and tools that the machine provides, found through pkg-config.

Headers are in the compiler's own search path (/usr/include), so a library here is its defines and
its link line. By default that is the shared library; with --config=static the Debian archive,
where there is one.
"""

# name -> how to find and link it:
#   pkgs     pkg-config modules
#   header   instead of pkgs, for a library without a .pc file, together with libs
#   libs     link these instead of what pkg-config says (by -l name)
#   static   link these instead in --config=static; absent: the archives of the usual libs
#   shared_only  there is no archive: stays a shared library in --config=static
#   static_defines  defines in --config=static, instead of pkg-config's
#   whole    link every object: the library registers itself in static initializers
#   deps     other entries
#   apt      Debian packages
_LIBRARIES = {
    "absl": struct(
        pkgs = [
            "absl_" + module
            for module in [
                "base",
                "bind_front",
                "btree",
                "cleanup",
                "core_headers",
                "cord",
                "flat_hash_map",
                "flat_hash_set",
                "hash",
                "inlined_vector",
                "random_random",
                "span",
                "status",
                "statusor",
                "str_format",
                "strings",
                "synchronization",
                "time",
            ]
        ],
        apt = "libabsl-dev",
    ),
    "benchmark": struct(pkgs = ["benchmark"], shared_only = True, apt = "libbenchmark-dev"),
    "cli11": struct(pkgs = ["CLI11"], apt = "libcli11-dev"),
    "cpp_httplib": struct(pkgs = ["cpp-httplib"], shared_only = True, apt = "libcpp-httplib-dev"),
    "edit": struct(pkgs = ["libedit"], shared_only = True, apt = "libedit-dev"),
    "fmt": struct(
        pkgs = ["fmt"],
        static = [],
        static_defines = ["FMT_HEADER_ONLY"],
        apt = "libfmt-dev",
    ),
    "gloo": struct(
        header = "gloo/algorithm.h",
        libs = ["gloo"],
        shared_only = True,
        apt = "libgloo-dev",
    ),
    "gmock": struct(pkgs = ["gmock"], libs = ["gmock"], deps = ["gtest"], apt = "libgmock-dev"),
    "grpc": struct(
        pkgs = ["grpc++"],
        deps = ["protobuf"],
        apt = "libgrpc++-dev",
    ),
    "grpc_reflection": struct(
        header = "grpcpp/ext/proto_server_reflection_plugin.h",
        libs = ["grpc++_reflection"],
        whole = True,
        deps = ["grpc"],
        apt = "libgrpc++-dev",
    ),
    "gtest": struct(pkgs = ["gtest"], apt = "libgtest-dev"),
    "gtest_main": struct(
        pkgs = ["gtest_main"],
        libs = ["gtest_main"],
        deps = ["gtest"],
        apt = "libgtest-dev",
    ),
    "hwy": struct(pkgs = ["libhwy"], shared_only = True, apt = "libhwy-dev"),
    "nlohmann_json": struct(pkgs = ["nlohmann_json"], apt = "nlohmann-json3-dev"),
    "openssl": struct(pkgs = ["openssl"], apt = "libssl-dev"),
    "pcre2": struct(pkgs = ["libpcre2-8"], apt = "libpcre2-dev"),
    "protobuf": struct(pkgs = ["protobuf"], apt = "libprotobuf-dev"),
    "spdlog": struct(
        pkgs = ["spdlog"],
        libs = ["spdlog"],
        static = [],
        static_defines = ["SPDLOG_FMT_EXTERNAL"],
        deps = ["fmt"],
        apt = "libspdlog-dev",
    ),
}

_TOOLS = {
    "grpc_cpp_plugin": "protobuf-compiler-grpc",
    "protoc": "protobuf-compiler",
}

# Part of libc (glibc 2.34 and later), or only for machines without wide atomic instructions.
_BUILTIN = ["atomic", "c", "dl", "m", "pthread", "rt"]

def _pkg_config(ctx, pkgs, options):
    """The words that pkg-config answers, or None when a module is missing."""
    result = ctx.execute(["pkg-config"] + options + pkgs)
    if result.return_code != 0:
        return None
    return [word for word in result.stdout.replace("\n", " ").split(" ") if word]

def _unique(items):
    return {item: None for item in items}.keys()

def _lib_names(flags):
    names = [flag[2:] for flag in flags if flag.startswith("-l")]
    return [name for name in _unique(names) if name not in _BUILTIN]

def _probe(ctx, lib):
    """Defines and -l names of a library, or None when the machine lacks it."""
    pkgs = getattr(lib, "pkgs", [])
    if not pkgs:
        found = ctx.path("/usr/include/" + lib.header).exists
        return struct(defines = [], shared = lib.libs, static = lib.libs) if found else None
    cflags = _pkg_config(ctx, pkgs, ["--cflags"])
    shared = _pkg_config(ctx, pkgs, ["--libs"])
    static = _pkg_config(ctx, pkgs, ["--libs", "--static"])
    if cflags == None or shared == None or static == None:
        return None
    return struct(
        defines = [flag[2:] for flag in _unique(cflags) if flag.startswith("-D")],
        shared = getattr(lib, "libs", _lib_names(shared)),
        static = getattr(lib, "libs", _lib_names(static)),
    )

def _shared_line(lib, libs):
    if not libs:
        return []
    mode = "--no-as-needed" if getattr(lib, "whole", False) else "--as-needed"
    return ["-Wl,--push-state," + mode] + ["-l" + name for name in libs] + ["-Wl,--pop-state"]

def _static_line(lib, libs):
    if getattr(lib, "shared_only", False):
        return _shared_line(lib, libs)
    archives = ["-l:lib%s.a" % name for name in getattr(lib, "static", libs)]
    if archives and getattr(lib, "whole", False):
        return ["-Wl,--whole-archive"] + archives + ["-Wl,--no-whole-archive"]
    if archives:
        return ["-Wl,--start-group"] + archives + ["-Wl,--end-group"]
    return []

_LIBRARY = """
cc_library(
    name = "{name}",
    defines = select({{
        "@conclave//bazel:static": {static_defines},
        "//conditions:default": {defines},
    }}),
    linkopts = select({{
        "@conclave//bazel:static": {static_line},
        "//conditions:default": {shared_line},
    }}),
    deps = {deps},
)
"""


def _library(name, lib, probed):
    return _LIBRARY.format(
        name = name,
        defines = probed.defines,
        static_defines = getattr(lib, "static_defines", probed.defines),
        shared_line = _shared_line(lib, probed.shared),
        static_line = _static_line(lib, probed.static),
        deps = [":" + dep for dep in getattr(lib, "deps", [])],
    )

def _sys_libraries_impl(ctx):
    if not ctx.which("pkg-config"):
        fail("\n\npkg-config is missing. Run: sudo apt-get install pkg-config (or tools/setup)\n")
    build = ["package(default_visibility = [\"//visibility:public\"])\n"]
    missing = {}
    for name, lib in _LIBRARIES.items():
        probed = _probe(ctx, lib)
        if probed:
            build.append(_library(name, lib, probed))
        else:
            missing[lib.apt] = name
    for name, apt in _TOOLS.items():
        tool = ctx.which(name)
        if tool:
            ctx.symlink(tool, name)
            build.append("\nexports_files([\"%s\"])\n" % name)
        else:
            missing[apt] = name
    if missing:
        fail("\n\nMissing on this machine: {names}.\nRun: sudo apt-get install {packages}\n(or tools/setup)\n".format(
            names = ", ".join(missing.values()),
            packages = " ".join(missing.keys()),
        ))
    ctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % ctx.name)
    ctx.file("BUILD.bazel", "".join(build))

sys_libraries = repository_rule(
    implementation = _sys_libraries_impl,
    doc = "Declares the machine's libraries; fails with the apt-get line when one is missing.",
    configure = True,
    local = True,
    environ = ["PKG_CONFIG_PATH"],
)
