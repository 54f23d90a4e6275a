"""Precompiled headers: half of a compilation was parsing the headers of libraries.

    precompiled_header(
        name = "std",
        hdr = "std.h",
        deps = ["@sys//:absl"],
    )

Targets of cc.bzl get one of //bazel/pch in front of every source (`-include`). It is an
optimization and no more: sources include all that they use (clang-tidy reads them without it), and
where GCC finds that its flags or macros differ it reads the header itself, with -Winvalid-pch said.
The rule's targets carry the macros of their deps, but none of the libraries. GCC's alone: not with
--config=fuzz.
"""

load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "CPP_COMPILE_ACTION_NAME")
load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

def _command_line(ctx, toolchain, source, output, context):
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    # -Wvla takes a macro away, and macros must be the same on both sides.
    variables = cc_common.create_compile_variables(
        feature_configuration = features,
        cc_toolchain = toolchain,
        source_file = source.path,
        output_file = output.path,
        user_compile_flags = ctx.fragments.cpp.copts + ctx.fragments.cpp.cxxopts +
                             ["-Wvla", "-w", "-x", "c++-header"],
        quote_include_directories = depset([".", ctx.bin_dir.path]),
        preprocessor_defines = context.defines,
        use_pic = True,
    )
    return cc_common.get_memory_inefficient_command_line(
        feature_configuration = features,
        action_name = CPP_COMPILE_ACTION_NAME,
        variables = variables,
    ), cc_common.get_environment_variables(
        feature_configuration = features,
        action_name = CPP_COMPILE_ACTION_NAME,
        variables = variables,
    ), cc_common.get_tool_for_action(
        feature_configuration = features,
        action_name = CPP_COMPILE_ACTION_NAME,
    )

def _precompiled_header_impl(ctx):
    # A name that exists in the output folder alone, so that the search ends beside the .gch.
    header = ctx.actions.declare_file(ctx.label.name + ".pch.h")
    compiled = ctx.actions.declare_file(ctx.label.name + ".pch.h.gch")
    ctx.actions.write(header, "#include \"%s\"\n" % ctx.file.hdr.path)
    context = cc_common.merge_cc_infos(
        cc_infos = [dep[CcInfo] for dep in ctx.attr.deps],
    ).compilation_context
    toolchain = find_cpp_toolchain(ctx)
    arguments, environment, compiler = _command_line(ctx, toolchain, header, compiled, context)
    ctx.actions.run(
        executable = compiler,
        arguments = arguments,
        env = environment,
        inputs = depset(
            [header, ctx.file.hdr],
            transitive = [context.headers, toolchain.all_files],
        ),
        outputs = [compiled],
        mnemonic = "CppHeader",
        progress_message = "Precompiling %s" % ctx.file.hdr.short_path,
    )
    own = cc_common.create_compilation_context(
        headers = depset([header, compiled, ctx.file.hdr], transitive = [context.headers]),
        defines = context.defines,
    )
    return [CcInfo(compilation_context = own)]

precompiled_header = rule(
    implementation = _precompiled_header_impl,
    attrs = {
        "hdr": attr.label(allow_single_file = [".h"], mandatory = True),
        "deps": attr.label_list(providers = [CcInfo]),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
    incompatible_use_toolchain_transition = True,
)

def pch_copts(name):
    """The flags that put //bazel/pch:NAME in front of a source."""
    return select({
        "//bazel:fuzz": [],
        "//conditions:default": [
            "-include",
            "bazel/pch/%s.pch.h" % name,
            "-Winvalid-pch",
            "-Wno-error=invalid-pch",
        ],
    })

def pch_deps(name):
    """What a target with pch_copts(NAME) depends on."""
    return select({
        "//bazel:fuzz": [],
        "//conditions:default": ["//bazel/pch:" + name],
    })
