"""CUDA C++ targets: nvcc for Hopper (sm_90a), skipped where there is no CUDA toolkit.

    cuda_library(
        name = "rms_norm",
        srcs = ["rms_norm.cu"],
        hdrs = ["rms_norm.h"],
        deps = ["//kernels:ops"],
    )

A cuda_library is an ordinary dependency of cc targets (it returns CcInfo). Those must carry
`target_compatible_with = CUDA_COMPATIBLE` too, or be selected by --config=cuda.
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@cuda//:defs.bzl", "CUDA_HOME", _CUDA_COMPATIBLE = "CUDA_COMPATIBLE", _NCCL_COMPATIBLE = "NCCL_COMPATIBLE")

CUDA_COMPATIBLE = _CUDA_COMPATIBLE

# Of targets that need NCCL's header too: instead of the above.
NCCL_COMPATIBLE = _NCCL_COMPATIBLE

_NVCC_FLAGS = [
    "-gencode",
    "arch=compute_90a,code=sm_90a",
    "-std=c++20",
    "-lineinfo",
    "-O3",
    "--expt-relaxed-constexpr",
    "-Werror=all-warnings",
    "-Xcompiler=-Wall,-fPIC",
]

def _include_flags(compilation_context):
    flags = []
    for include in compilation_context.includes.to_list():
        flags += ["-I", include]
    for include in compilation_context.quote_includes.to_list():
        flags += ["-Xcompiler=-iquote," + include, "-I", include]
    for include in compilation_context.system_includes.to_list():
        flags += ["-isystem", include]
    return flags

def _compile(ctx, src, context, headers):
    obj = ctx.actions.declare_file("_objs/%s/%s.o" % (ctx.label.name, src.basename))
    args = ctx.actions.args()
    args.add_all(_NVCC_FLAGS)
    args.add_all(ctx.attr.copts)
    args.add_all(["-D" + define for define in context.defines.to_list() + ctx.attr.local_defines])
    args.add_all(_include_flags(context))
    args.add_all(["-c", src, "-o", obj])
    ctx.actions.run(
        executable = CUDA_HOME + "/bin/nvcc",
        arguments = [args],
        inputs = depset([src], transitive = [headers]),
        outputs = [obj],
        mnemonic = "Nvcc",
        progress_message = "Compiling %s for sm_90a" % src.short_path,
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    return obj

def _cuda_library_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(ctx = ctx, cc_toolchain = toolchain)
    own = cc_common.create_compilation_context(
        headers = depset(ctx.files.hdrs),
        quote_includes = depset([".", ctx.bin_dir.path, ctx.genfiles_dir.path]),
        defines = depset(ctx.attr.defines),
    )
    infos = [dep[CcInfo] for dep in ctx.attr.deps + [ctx.attr._cudart]]
    context = cc_common.merge_cc_infos(
        cc_infos = [CcInfo(compilation_context = own)] + infos,
    ).compilation_context
    headers = depset(
        [f for f in ctx.files.srcs if f.extension in ["h", "cuh"]],
        transitive = [context.headers],
    )
    objects = depset([
        _compile(ctx, src, context, headers)
        for src in ctx.files.srcs
        if src.extension == "cu"
    ])
    linking, outputs = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        name = ctx.label.name,
        feature_configuration = features,
        cc_toolchain = toolchain,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = objects,
            pic_objects = objects,
        ),
        linking_contexts = [info.linking_context for info in infos],
        disallow_dynamic_library = True,
        alwayslink = ctx.attr.alwayslink,
    )
    archive = outputs.library_to_link
    files = [archive.static_library or archive.pic_static_library] if archive else []
    return [
        DefaultInfo(files = depset(files)),
        CcInfo(compilation_context = context, linking_context = linking),
    ]

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu", ".cuh", ".h"]),
        "hdrs": attr.label_list(allow_files = [".cuh", ".h"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "copts": attr.string_list(),
        "defines": attr.string_list(),
        "local_defines": attr.string_list(),
        "alwayslink": attr.bool(),
        "_cudart": attr.label(default = "@cuda//:cudart"),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

def cuda_library(name, target_compatible_with = [], tags = [], **kwargs):
    """Kernels and their launchers.

    Args:
      name: the target.
      target_compatible_with: beside the need for a CUDA toolkit.
      tags: beside "cuda".
      **kwargs: srcs (.cu, and private .cuh/.h), hdrs, deps, copts (for nvcc), defines,
        local_defines, alwayslink, visibility.
    """
    _cuda_library(
        name = name,
        target_compatible_with = CUDA_COMPATIBLE + target_compatible_with,
        tags = tags + ["cuda"],
        **kwargs
    )
