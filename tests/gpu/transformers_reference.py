#!/usr/bin/env python3
"""What Transformers computes from a gpt-oss checkpoint, in float32 and in bf16; for compare_transformers.py.

    transformers_reference.py --model DIR --cases CASES.json --output DIR [--device cuda]

CASES.json is a list of token id lists. Transformers itself loads and dequantizes the files to bf16;
every MXFP4 value is exact there. The parameters are then widened to float32 in place, one by one, and
after the float32 run rounded back, which restores them exactly. Attention and experts are the eager
implementations, TF32 and reduced-precision accumulation are off.

Writes, each a list with an entry per case, with torch.save:
    float32.pt        logits [rows, V], hidden [layers + 2, rows, H], router_logits [layers, rows, E],
                      experts [layers, rows, k]
    bf16.pt           the same, experts forced to the float32 run's; values widened to float32
    bf16_layers.pt    the same, and each layer reads what the float32 run's layer read, rounded
    bf16_free.pt      experts alone, each layer's router choosing
Where experts are forced, router_logits still tell what the router would have chosen. hidden: after the embedding, after each layer, after the final norm.
"""

import argparse
import json
import os
import time

import torch
import transformers


def load(folder, device):
    options = {}
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        if "quantization_config" in json.load(file):
            options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        attn_implementation="eager",
        experts_implementation="eager",
        device_map=device,
        **options,
    )
    model.eval()
    name = type(model.model.layers[0].mlp.experts).__name__
    assert name == "GptOssExperts", f"experts are not dequantized: {name}"
    return model


def convert(model, dtype):
    """Parameters alone: the rotary table is float32 in every run, as Transformers has it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        if parameter.device.type == "cuda":
            torch.cuda.empty_cache()


class Recorder:
    """Keeps what the modules of one run put out; replaces what routers chose and layers read."""

    def __init__(self, model, forced=None, inputs=None):
        self.forced = forced  # [layers, rows, k]
        self.inputs = inputs  # [layers, rows, H]
        self.hidden = []
        self.router_logits = []
        self.experts = []
        base = model.model
        self.hooks = [base.embed_tokens.register_forward_hook(self.keep_hidden)]
        for index, layer in enumerate(base.layers):
            self.hooks.append(layer.register_forward_hook(self.keep_hidden))
            hook = lambda module, inputs, index=index: self.replace_input(index, inputs)
            self.hooks.append(layer.register_forward_pre_hook(hook))
            hook = lambda module, _, output, index=index: self.route(index, module, output)
            self.hooks.append(layer.mlp.router.register_forward_hook(hook))
        self.hooks.append(base.norm.register_forward_hook(self.keep_hidden))

    def keep_hidden(self, _module, _inputs, output):
        self.hidden.append(output[0].float().cpu())  # batch of one

    def replace_input(self, layer, inputs):
        if self.inputs is None:
            return inputs
        hidden, *rest = inputs
        return (self.inputs[layer].to(hidden).unsqueeze(0), *rest)

    def route(self, layer, _module, output):
        logits, scores, indices = output
        if self.forced is not None:
            indices = self.forced[layer].to(logits.device)
            chosen = logits.gather(-1, indices)
            scores = torch.softmax(chosen, dim=-1, dtype=chosen.dtype)  # as the router does
        self.router_logits.append(logits.float().cpu())
        self.experts.append(indices.cpu())
        return logits, scores, indices

    def close(self):
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def run(model, ids, forced=None, inputs=None, logits=True):
    recorder = Recorder(model, forced, inputs)
    device = model.get_input_embeddings().weight.device
    out = model(torch.tensor([ids], device=device), use_cache=False)
    recorder.close()
    result = {"experts": torch.stack(recorder.experts)}
    if logits:
        result["logits"] = out.logits[0].float().cpu()
        result["hidden"] = torch.stack(recorder.hidden)
        result["router_logits"] = torch.stack(recorder.router_logits)
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    transformers.utils.logging.disable_progress_bar()
    with open(args.cases, encoding="utf-8") as file:
        cases = json.load(file)
    os.makedirs(args.output, exist_ok=True)
    times = [time.monotonic()]

    def save(name, results):
        torch.save(results, os.path.join(args.output, name + ".pt"))
        times.append(time.monotonic())

    model = load(args.model, args.device)
    times.append(time.monotonic())
    convert(model, torch.float32)
    float32 = [run(model, ids) for ids in cases]
    save("float32", float32)
    convert(model, torch.bfloat16)
    forced = [run(model, ids, result["experts"]) for ids, result in zip(cases, float32)]
    save("bf16", forced)
    layers = [
        run(model, ids, result["experts"], result["hidden"][:-2])
        for ids, result in zip(cases, float32)
    ]
    save("bf16_layers", layers)
    save("bf16_free", [run(model, ids, logits=False) for ids in cases])
    seconds = [f"{end - begin:.1f}" for begin, end in zip(times, times[1:])]
    peak = torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else 0
    print(
        f"Transformers {transformers.__version__}, PyTorch {torch.__version__}: loading, float32, "
        f"bf16, by layer, free: {' + '.join(seconds)} s; at most {peak:.1f} GB on the GPU"
    )


if __name__ == "__main__":
    main()
