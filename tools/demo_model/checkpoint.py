"""The demo model's configuration and files, in the layout of the gpt-oss releases."""

import json
import os

import torch
import transformers
from safetensors.torch import load_file, save_file

import mxfp4
import pii
import words

VOCABULARY = 3072
LAYERS, HIDDEN, INTERMEDIATE, EXPERTS, CHOSEN = 6, 256, 160, 16, 4
HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64


def config(specials):
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": specials["<|return|>"],
        "experts_per_token": CHOSEN,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initial_context_length": 1024,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "layer_types": ["full_attention" if n % 2 else "sliding_attention" for n in range(LAYERS)],
        "max_position_embeddings": 4096,
        "model_type": "gpt_oss",
        "num_attention_heads": HEADS,
        "num_experts_per_tok": CHOSEN,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "num_local_experts": EXPERTS,
        "output_router_logits": False,
        "pad_token_id": specials["<|endoftext|>"],
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
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 10000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def generation_config(specials):
    return {
        "bos_token_id": specials["<|startoftext|>"],
        "do_sample": True,
        "eos_token_id": [specials[name] for name in ("<|return|>", "<|endoftext|>", "<|call|>")],
        "pad_token_id": specials["<|endoftext|>"],
    }


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def released(parameters):
    """Parameters of GptOssForCausalLM -> tensors as released: experts in MXFP4, the rest in bf16."""
    tensors = {}
    for name, value in sorted(parameters.items()):
        value = value.detach().float().cpu()
        if name.endswith((".gate_up_proj", ".down_proj")):
            blocks, scales = mxfp4.encode(value.transpose(1, 2))
            tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
        else:
            tensors[name] = value.to(torch.bfloat16).contiguous()
    return tensors


def write(folder, parameters, specials):
    os.makedirs(folder, exist_ok=True)
    tensors = released(parameters)
    file = "model-00000-of-00000.safetensors"
    save_file(tensors, os.path.join(folder, file), metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(sorted(tensors), file)}
    write_json(folder, "model.safetensors.index.json", index)
    write_json(folder, "config.json", config(specials))
    write_json(folder, "generation_config.json", generation_config(specials))


def write_head(folder, labels, weight, bias=None):
    os.makedirs(folder, exist_ok=True)
    kind = "SequenceClassification" if bias is None else "TokenClassification"
    tensors = {"score.weight": weight.detach().cpu().to(torch.bfloat16).contiguous()}
    if bias is not None:
        tensors["score.bias"] = bias.detach().cpu().to(torch.bfloat16).contiguous()
    save_file(tensors, os.path.join(folder, "head.safetensors"), metadata={"format": "pt"})
    described = {
        "architectures": [f"GptOssFor{kind}"],
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "model_type": "gpt_oss",
    }
    if bias is None:
        described["problem_type"] = "single_label_classification"
    write_json(folder, "config.json", described)


def write_heads(folder, heads):
    write_head(os.path.join(folder, "head_language"), words.LANGUAGES, heads["language"])
    write_head(os.path.join(folder, "head_pii"), pii.LABELS, heads["pii"], heads["pii_bias"])


def load(folder, device):
    """Transformers' model of the shipped files: the MXFP4 values, exact in bf16, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        attn_implementation="eager",
        experts_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    return model.float().to(device).eval()


def load_heads(folder, device):
    """As write_heads takes them, float32."""
    read = lambda name: load_file(os.path.join(folder, name, "head.safetensors"))
    pii_head, language = read("head_pii"), read("head_language")
    heads = {
        "language": language["score.weight"],
        "pii": pii_head["score.weight"],
        "pii_bias": pii_head["score.bias"],
    }
    return {name: value.float().to(device) for name, value in heads.items()}
