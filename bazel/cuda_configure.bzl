"""@cuda: the CUDA toolkit of the machine, or its absence.

Looks for nvcc in $CUDA_HOME, /usr/local/cuda and $PATH. Without one, `CUDA_COMPATIBLE` marks every
GPU target incompatible: `bazel build //...` skips them and says so, asking for one by name fails.
`NCCL_COMPATIBLE` does the same where nccl.h is missing, in /usr/include and beside CUDA's headers.
"""

def _find_cuda_home(ctx):
    candidates = [ctx.os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    for home in candidates:
        if home and ctx.path(home + "/bin/nvcc").exists:
            return ctx.path(home).realpath
    nvcc = ctx.which("nvcc")
    return nvcc.realpath.dirname.dirname if nvcc else None

_DEFS = """
CUDA_HOME = "{home}"
CUDA_COMPATIBLE = {compatible}
NCCL_COMPATIBLE = {nccl_compatible}
"""

# The headers are one directory, not a glob: they are thousands.
_BUILD = """
package(default_visibility = ["//visibility:public"])

exports_files(["include"])

constraint_setting(name = "toolkit")

constraint_value(
    name = "missing",
    constraint_setting = ":toolkit",
)

cc_library(
    name = "cudart",
    includes = ["include"],
    linkopts = ["{lib}/libcudart_static.a"],
    target_compatible_with = {compatible},
    textual_hdrs = {headers},
)

# A shared library in every configuration (half a gigabyte). The path of the build machine is a hint;
# elsewhere the loader finds it through LD_LIBRARY_PATH.
cc_library(
    name = "cublaslt",
    linkopts = ["{lib}/libcublasLt.so", "-Wl,-rpath,{lib}"],
    target_compatible_with = {compatible},
    deps = [":cudart"],
)

# The declarations alone: the program itself loads libnccl.so.2 when it needs it, so that a worker
# runs where there is none. The path of the build machine is a hint to the loader.
cc_library(
    name = "nccl",
    linkopts = ["-ldl", "-Wl,-rpath,{lib}"],
    target_compatible_with = {nccl_compatible},
    deps = [":cudart"],
)
"""

# No platform has this constraint value: a target that asks for it is incompatible.
_INCOMPATIBLE = ["@cuda//:missing"]

def _nccl_found(ctx, home):
    for include in ["/usr/include", str(home) + "/include"]:
        if ctx.path(include + "/nccl.h").exists:
            return True
    return False

def _cuda_configure_impl(ctx):
    home = _find_cuda_home(ctx)
    lib = ""
    if home:
        ctx.symlink(str(home) + "/include", "include")
        lib = str(home) + "/lib64"
    compatible = [] if home else _INCOMPATIBLE
    nccl_compatible = [] if home and _nccl_found(ctx, home) else _INCOMPATIBLE
    ctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % ctx.name)
    ctx.file("BUILD.bazel", _BUILD.format(
        lib = lib,
        headers = ["include"] if home else [],
        compatible = compatible,
        nccl_compatible = nccl_compatible,
    ))
    ctx.file("defs.bzl", _DEFS.format(
        home = home or "",
        compatible = compatible,
        nccl_compatible = nccl_compatible,
    ))

cuda_configure = repository_rule(
    implementation = _cuda_configure_impl,
    doc = "Finds nvcc, the CUDA headers and libraries, and NCCL.",
    configure = True,
    local = True,
    environ = ["CUDA_HOME", "PATH"],
)
