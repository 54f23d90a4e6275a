#!/usr/bin/env python3
"""Writes a gpt-oss checkpoint with random weights, at a released model's shape, in the release's layout.

    make_checkpoint.py --shape 120b --layers 4 --seed 1 --output /dev/shm/gpt-oss-120b-4

Weights are drawn with standard deviation 0.02 (norm weights around 1, sinks with 1, so that both
count), experts rounded to MXFP4: a block of 32 inputs shares the power of two that puts its largest
value within 6. One shard a layer, the embeddings in the last. The same seed gives the same bytes on
the same device and version of PyTorch.
"""

import argparse
import json
import os
import time

import torch
from safetensors.torch import save_file

SHAPES = {"120b": {"experts": 128, "layers": 36}, "20b": {"experts": 32, "layers": 24}}
HIDDEN = 2880
INTERMEDIATE = 2880
HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
VOCABULARY = 201088
STD = 0.02

# Halfway between neighbours of the E2M1 magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6.
MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def to_mxfp4(weights):
    """[rows, cols] float32 -> blocks u8 [rows, cols / 32, 16], scales u8 [rows, cols / 32]."""
    rows, cols = weights.shape
    groups = weights.view(rows, cols // 32, 32)
    largest = groups.abs().amax(dim=-1)
    exponent = torch.ceil(torch.log2(largest.clamp_min(2.0**-120) / 6)).to(torch.int32)
    scaled = torch.ldexp(groups, -exponent.unsqueeze(-1))
    midpoints = torch.tensor(MIDPOINTS, device=weights.device)
    codes = torch.bucketize(scaled.abs(), midpoints).to(torch.uint8)
    codes |= torch.signbit(scaled).to(torch.uint8) << 3
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4  # low nibble first
    return blocks, (exponent + 127).to(torch.uint8)


class Writer:
    """Collects tensors, writes shards and the index."""

    def __init__(self, folder, shards, device, seed):
        self.folder = folder
        self.shards = shards
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.tensors = {}
        self.weight_map = {}
        self.total_size = 0

    def normal(self, *shape, std=STD, mean=0.0):
        drawn = torch.randn(*shape, generator=self.generator, device=self.device)
        return drawn * std + mean

    def add(self, name, tensor):
        self.tensors[name] = tensor.contiguous().cpu()

    def dense(self, name, *shape, **distribution):
        self.add(name, self.normal(*shape, **distribution).to(torch.bfloat16))

    def experts(self, name, experts, rows, cols):
        """One expert at a time: a layer of float32 experts would be 12 GB."""
        blocks = torch.empty(experts, rows, cols // 32, 16, dtype=torch.uint8, device=self.device)
        scales = torch.empty(experts, rows, cols // 32, dtype=torch.uint8, device=self.device)
        for expert in range(experts):
            blocks[expert], scales[expert] = to_mxfp4(self.normal(rows, cols))
        self.add(name + "_blocks", blocks)
        self.add(name + "_scales", scales)

    def close_shard(self):
        number = len(set(self.weight_map.values()))
        file = f"model-{number:05d}-of-{self.shards - 1:05d}.safetensors"
        save_file(self.tensors, os.path.join(self.folder, file))
        for name, tensor in self.tensors.items():
            self.weight_map[name] = file
            self.total_size += tensor.numel() * tensor.element_size()
        self.tensors = {}

    def close(self):
        index = {"metadata": {"total_size": self.total_size}, "weight_map": self.weight_map}
        write_json(self.folder, "model.safetensors.index.json", index)


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def config(shape, layers):
    """The released config.json, with `layers` layers."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initial_context_length": 4096,
        "initializer_range": STD,
        "intermediate_size": INTERMEDIATE,
        "layer_types": ["full_attention" if l % 2 else "sliding_attention" for l in range(layers)],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": HEADS,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "num_local_experts": SHAPES[shape]["experts"],
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def write_layer(writer, layer, experts):
    prefix = f"model.layers.{layer}."
    attention = prefix + "self_attn."
    for projection, out, inputs in (
        ("q_proj", HEADS * HEAD_DIM, HIDDEN),
        ("k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
        ("v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
        ("o_proj", HIDDEN, HEADS * HEAD_DIM),
    ):
        writer.dense(attention + projection + ".weight", out, inputs)
        writer.dense(attention + projection + ".bias", out)
    writer.dense(attention + "sinks", HEADS, std=1.0)
    writer.dense(prefix + "input_layernorm.weight", HIDDEN, std=0.1, mean=1.0)
    writer.dense(prefix + "post_attention_layernorm.weight", HIDDEN, std=0.1, mean=1.0)
    writer.dense(prefix + "mlp.router.weight", experts, HIDDEN)
    writer.dense(prefix + "mlp.router.bias", experts)
    moe = prefix + "mlp.experts."
    writer.experts(moe + "gate_up_proj", experts, 2 * INTERMEDIATE, HIDDEN)
    writer.dense(moe + "gate_up_proj_bias", experts, 2 * INTERMEDIATE)
    writer.experts(moe + "down_proj", experts, HIDDEN, INTERMEDIATE)
    writer.dense(moe + "down_proj_bias", experts, HIDDEN)
    writer.close_shard()


def write_ends(writer):
    writer.dense("model.embed_tokens.weight", VOCABULARY, HIDDEN)
    writer.dense("lm_head.weight", VOCABULARY, HIDDEN)
    writer.dense("model.norm.weight", HIDDEN, std=0.1, mean=1.0)
    writer.close_shard()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="default: all of the released model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    layers = args.layers or SHAPES[args.shape]["layers"]
    start = time.monotonic()
    os.makedirs(args.output, exist_ok=True)
    write_json(args.output, "config.json", config(args.shape, layers))
    writer = Writer(args.output, layers + 1, args.device, args.seed)
    for layer in range(layers):
        write_layer(writer, layer, SHAPES[args.shape]["experts"])
    write_ends(writer)
    writer.close()
    seconds = time.monotonic() - start
    print(f"{args.output}: {writer.total_size / 1e9:.2f} GB, {layers} layers, {seconds:.1f} s")


if __name__ == "__main__":
    main()
