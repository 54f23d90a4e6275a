"""Protobuf and gRPC code from `.proto` files, by the protoc of the machine.

    conclave_proto_library(
        name = "generation_proto",
        srcs = ["generation.proto"],
        deps = [":sampling_proto"],
        grpc = True,
    )

A file is imported by its path from the workspace root (`import "proto/conclave/v1/x.proto"`) and
included likewise (`#include "proto/conclave/v1/x.pb.h"`, and `x.grpc.pb.h` for its services).
`NAME_descriptors.pb` is a FileDescriptorSet with all imports and comments.
"""

load("//bazel:pch.bzl", "pch_copts", "pch_deps")

_ProtoSources = provider(
    doc = "Sources of one conclave_proto_library.",
    fields = {"all": "depset of .proto files, imports included"},
)

# Generated headers declare themselves system headers: they are included by code compiled with
# -Werror, and the generator's style is not ours to fix.
_PROTOC = """set -eu
protoc="$1"; shift
headers=()
while [ "$1" != -- ]; do headers+=("$1"); shift; done
shift
"$protoc" "$@"
sed -i '1i #pragma GCC system_header' "${headers[@]}"
"""

def _protoc_impl(ctx):
    sources = depset(
        ctx.files.srcs,
        transitive = [dep[_ProtoSources].all for dep in ctx.attr.deps],
    )
    args = ctx.actions.args()
    args.add(ctx.executable._protoc)
    args.add_all([out for out in ctx.outputs.outs if out.extension == "h"])
    args.add_all(["--", "--proto_path=.", "--cpp_out=" + ctx.bin_dir.path])
    tools = [ctx.executable._protoc]
    if ctx.attr.grpc:
        args.add("--plugin=protoc-gen-grpc=" + ctx.executable._grpc_plugin.path)
        args.add("--grpc_out=" + ctx.bin_dir.path)
        tools.append(ctx.executable._grpc_plugin)
    args.add("--descriptor_set_out=" + ctx.outputs.descriptors.path)
    args.add_all(["--include_imports", "--include_source_info"])
    args.add_all(ctx.files.srcs)
    ctx.actions.run_shell(
        command = _PROTOC,
        arguments = [args],
        inputs = sources,
        outputs = ctx.outputs.outs + [ctx.outputs.descriptors],
        tools = tools,
        mnemonic = "Protoc",
        progress_message = "Generating code from %s" % ctx.label,
    )
    return [_ProtoSources(all = sources)]

_protoc = rule(
    implementation = _protoc_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "deps": attr.label_list(providers = [_ProtoSources]),
        "grpc": attr.bool(),
        "outs": attr.output_list(mandatory = True),
        "descriptors": attr.output(mandatory = True),
        "_protoc": attr.label(
            default = "@sys//:protoc",
            allow_single_file = True,
            executable = True,
            cfg = "host",
        ),
        "_grpc_plugin": attr.label(
            default = "@sys//:grpc_cpp_plugin",
            allow_single_file = True,
            executable = True,
            cfg = "host",
        ),
    },
)

def _sources_of(dep):
    """The _protoc target behind another conclave_proto_library."""
    if ":" in dep:
        return dep + "_codegen"
    return "%s:%s_codegen" % (dep, dep.split("/")[-1])

def conclave_proto_library(name, srcs, deps = [], grpc = False, visibility = None, **kwargs):
    """A C++ library with the messages, and with grpc = True the services, of `srcs`.

    Args:
      name: the cc_library; by custom ends in `_proto`.
      srcs: `.proto` files of this package.
      deps: the conclave_proto_library targets whose files are imported.
      grpc: generate service stubs too.
      visibility: as usual.
      **kwargs: passed to the cc_library.
    """
    suffixes = [".pb"] + ([".grpc.pb"] if grpc else [])
    stems = [src[:-len(".proto")] for src in srcs]
    hdrs = [stem + suffix + ".h" for stem in stems for suffix in suffixes]
    ccs = [stem + suffix + ".cc" for stem in stems for suffix in suffixes]

    messages = [cc for cc in ccs if not cc.endswith(".grpc.pb.cc")]
    services = [cc for cc in ccs if cc.endswith(".grpc.pb.cc")]
    if services:
        # One unit for all services: most of such a file's compilation is the headers of gRPC.
        native.genrule(
            name = name + "_services",
            outs = [name + "_services.cc"],
            cmd = "printf '#include \"%s\"\\n' {} > $@".format(
                " ".join(["%s/%s" % (native.package_name(), cc) for cc in services]),
            ),
        )
    _protoc(
        name = name + "_codegen",
        srcs = srcs,
        deps = [_sources_of(dep) for dep in deps],
        grpc = grpc,
        outs = hdrs + ccs,
        descriptors = name + "_descriptors.pb",
        visibility = visibility,
    )
    native.cc_library(
        name = name,
        srcs = messages + ([name + "_services.cc"] if services else []),
        hdrs = hdrs,
        textual_hdrs = services,
        copts = pch_copts("rpc") + ["-Wvla", "-w"],
        linkstatic = True,
        deps = deps + pch_deps("rpc") + ["@sys//:protobuf"] + (["@sys//:grpc"] if grpc else []),
        visibility = visibility,
        **kwargs
    )
