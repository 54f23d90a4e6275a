"""Local stand-ins for the rule repositories that Bazel 4 would download."""

def _builtin_shadow_impl(ctx):
    rules = "".join(["%s = native.%s\n" % (rule, rule) for rule in ctx.attr.rules])
    ctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % ctx.name)
    ctx.file("BUILD.bazel", "")
    ctx.file(ctx.attr.rules_package + "/BUILD.bazel", "exports_files([\"defs.bzl\"])\n")
    ctx.file(ctx.attr.rules_package + "/defs.bzl", rules)

builtin_shadow = repository_rule(
    implementation = _builtin_shadow_impl,
    doc = "Answers @NAME//PACKAGE:defs.bzl by re-exporting Bazel's native rules.",
    attrs = {
        "rules_package": attr.string(mandatory = True),
        "rules": attr.string_list(mandatory = True),
    },
)
